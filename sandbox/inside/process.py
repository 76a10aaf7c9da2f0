"""Runs one command in its own process group with a deadline; not what its output means.

A command ends when its first process ends, whatever its children hold open: they are killed with the group, and an
escaped one (`setsid`) that still holds the pipe is not waited for. The container's end takes it with it.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_CHUNK_BYTES = 65_536
_TICK_S = 0.05
_DRAIN_S = 0.2


class Ended(NamedTuple):
    """How a command ended."""

    exit_code: int | None
    """None: it was killed at its timeout. Negative: a signal's number."""
    duration_s: float


class CommandNotStarted(Exception):
    """The command's program is not there or cannot be executed."""


def run_process(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float,
    sink: Callable[[bytes], None],
    reads: Path = Path(os.devnull),
    on_start: Callable[[int], None] = lambda _: None,
    pass_fds: Sequence[int] = (),
) -> Ended:
    """Run a command, giving stdout and stderr, merged, to `sink` as they come.

    Args:
        argv: Its words.
        cwd: Where it runs.
        env: All of its environment.
        timeout_s: When it is killed.
        sink: Takes its output.
        reads: The file that is its standard input; nothing by default.
        on_start: Told its process id.
        pass_fds: Descriptors it inherits, besides its input and output.

    Raises:
        CommandNotStarted: No such program, not executable, or its arguments are too long.
    """
    started = time.monotonic()
    read_fd, write_fd = os.pipe()
    try:
        try:
            with reads.open("rb") as stdin:
                process = subprocess.Popen(
                    argv, cwd=cwd, env=env, stdin=stdin, stdout=write_fd, stderr=write_fd, start_new_session=True, pass_fds=pass_fds
                )
        except (OSError, ValueError) as error:
            raise CommandNotStarted(f"{argv[0]}: {error}") from error
        finally:
            os.close(write_fd)
        on_start(process.pid)
        try:
            in_time = _pump(process.pid, read_fd, started + timeout_s, sink)
        finally:
            _kill_group(process)
        _drain(read_fd, sink)
    finally:
        os.close(read_fd)
    return Ended(process.returncode if in_time else None, time.monotonic() - started)


def _pump(pid: int, read_fd: int, deadline: float, sink: Callable[[bytes], None]) -> bool:
    """Pass output on until the process has ended (but is not reaped) or the deadline; return whether it ended by itself."""
    poller = select.poll()
    poller.register(read_fd, select.POLLIN)
    is_open = True
    while not _has_ended(pid):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        if not is_open:
            time.sleep(min(_TICK_S, left_s))
            continue
        if poller.poll(min(_TICK_S, left_s) * 1000):
            chunk = os.read(read_fd, _CHUNK_BYTES)
            is_open = bool(chunk)
            if chunk:
                sink(chunk)
    return True


def _has_ended(pid: int) -> bool:
    # WNOWAIT leaves it unreaped, so that its group id cannot be taken by another before the group is killed.
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:  # some process of the group changed its uid: kill what is ours
        process.kill()
    process.wait()


def _drain(read_fd: int, sink: Callable[[bytes], None]) -> None:
    """Take what is left in the pipe, without waiting for an escaped grandchild that holds it."""
    os.set_blocking(read_fd, False)
    deadline = time.monotonic() + _DRAIN_S
    while time.monotonic() < deadline:
        try:
            chunk = os.read(read_fd, _CHUNK_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            return
        sink(chunk)
