"""Makes one attempt and prints how it went, as a line of JSON; not what is attempted, nor whether it should have been possible.

An attempt returns what it gained, in words, if it succeeded; anything it raises is how it was stopped. Most run in a child of
their own: one may be killed for it, and one that hangs is given up.
"""

import errno
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable

MARK = "andon-prove "
"""Begins each line of a report."""
ATTEMPT_S = 30.0
"""An attempt takes milliseconds; the rest is for a host that is busy."""
_SAID_CHARS_MAX = 300

Attempt = Callable[[], str]


class Stopped(Exception):
    """The attempt was stopped, by something that is no error of the system."""


def report(name: str, won: bool, said: str, *, made: bool = True) -> None:
    """Print one line of the report; an attempt that was not `made` to its end shows nothing, neither a wall nor a hole."""
    sys.stdout.write(MARK + json.dumps({"name": name, "won": won, "said": said[:_SAID_CHARS_MAX], "made": made}) + "\n")
    sys.stdout.flush()


def attempt_here(name: str, attempt: Attempt) -> None:
    """Make an attempt in this process and report it."""
    report(name, *_made(attempt))


def attempt(name: str, attempt: Attempt, limit_s: float = ATTEMPT_S) -> None:
    """Make an attempt in a child and report it; killed is stopped, and one that does not end is given up."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        won, said = _made(attempt)
        os.write(writing, json.dumps([won, said[:_SAID_CHARS_MAX]]).encode())
        os._exit(0)
    os.close(writing)
    is_late = not select.select([reading], [], [], limit_s)[0]
    if is_late:
        os.kill(pid, signal.SIGKILL)
    answer = os.read(reading, 4096)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if answer:
        won, said = json.loads(answer)
        report(name, won, said)
    else:
        killed = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
        report(name, False, f"did not end in {limit_s:g} s" if is_late else killed, made=not is_late)


def _made(attempt: Attempt) -> tuple[bool, str]:
    try:
        return True, attempt()
    except Stopped as stopped:
        return False, str(stopped)
    except OSError as error:
        return False, named(error)
    except Exception as error:  # whatever it was: the report says it
        return False, f"{type(error).__name__}: {error}"


def named(error: OSError) -> str:
    """Return an error's name as the kernel's manual has it."""
    return errno.errorcode.get(error.errno or 0, str(error))


def wait_for(path: str, limit_s: float) -> None:
    """Wait until a file is there; it is the host that makes it.

    Raises:
        Stopped: It did not come.
    """
    deadline = time.monotonic() + limit_s
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise Stopped(f"{path} did not come in {limit_s:g} s")
        time.sleep(0.02)
