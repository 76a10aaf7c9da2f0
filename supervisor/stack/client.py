"""How a command uses the embedded stack: attaches, starts it, keeps it up, shuts it down; not the stack itself (`process`)."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from supervisor.config import Config, StateDirectory
from supervisor.errors import InfrastructureError, UsageError
from supervisor.stack.file import POLL_S, STOP_S, StackFile, fingerprint, is_locked, listen_of, read_stack

READY_S = 30.0
LOG_TAIL_BYTES = 16 << 10

Say = Callable[[str], None]


@asynccontextmanager
async def attached(config: Config, state: StateDirectory, environment: Mapping[str, str], say: Say) -> AsyncIterator[StackFile]:
    """Use the running stack or start one; it lives at least as long as this block.

    Raises:
        UsageError: A busy stack has another environment (another key, engine or exporter).
        InfrastructureError: The stack does not come up; the message names its log.
    """
    with _client(state) as descriptor:
        await _make_room(config, state, descriptor, say)
        yield await _started(config, state, environment, keep=False)


async def keep_up(config: Config, state: StateDirectory, environment: Mapping[str, str], say: Say) -> StackFile:
    """Start the stack and keep it until `shut_down`; a running one is told to stay.

    Raises:
        UsageError: The address to listen on is none, or a busy stack has another environment.
        InfrastructureError: The stack does not come up; the message names its log.
    """
    listen_of(config)
    with _client(state) as descriptor:
        await _make_room(config, state, descriptor, say)
        (state.root / "stack.keep").touch(mode=0o600)
        return await _started(config, state, environment, keep=True)


async def shut_down(state: StateDirectory) -> bool:
    """Stop the stack; return whether one ran. Runs in progress go on when the next stack starts."""
    (state.root / "stack.keep").unlink(missing_ok=True)
    stack = read_stack(state)
    if stack is None:
        return False
    await _stop(state, stack)
    return True


@contextmanager
def presence(state: StateDirectory) -> Iterator[None]:
    """Keep the stack from stopping while the block runs, as a client does; the supervisor holds it while runs are open."""
    with _client(state):
        yield


@contextmanager
def _client(state: StateDirectory) -> Iterator[int]:
    descriptor = os.open(state.root / "stack.clients", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock_shared(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock_shared(descriptor: int) -> None:
    """Take the shared lock; a stack that is stopping holds it exclusively until its process ends, so that is waited for."""
    deadline = time.monotonic() + STOP_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise InfrastructureError(f"the stack did not stop within {STOP_S:.0f} s; see stack.log in the state directory") from None
            time.sleep(POLL_S)
        else:
            return


async def _make_room(config: Config, state: StateDirectory, descriptor: int, say: Say) -> None:
    """Stop an idle stack that has another environment; refuse when somebody else uses it."""
    stack = read_stack(state)
    if stack is None or (stack.fingerprint == fingerprint(config) and _listens_as(stack, config)):
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        raise UsageError(
            "the running stack has another environment (key, engine, exporter, listen) and is busy; "
            "wait for its runs or set another ANDON_STATE_DIRECTORY"
        ) from None
    say("restarting the idle stack: its environment differs")
    await _stop(state, stack)
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def _listens_as(stack: StackFile, config: Config) -> bool:
    """Return whether a stack listens as configured; a run that says nothing of it uses whatever is there."""
    return config.listen is None or (stack.listen, stack.advertise) == (config.listen, config.advertise or "")


async def _stop(state: StateDirectory, stack: StackFile) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(stack.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while is_locked(state.root / "stack.lock"):
        if time.monotonic() > deadline:
            raise InfrastructureError(f"stack process {stack.pid} did not stop within {STOP_S:.0f} s; see {state.stack_log}")
        await asyncio.sleep(POLL_S)


async def _started(config: Config, state: StateDirectory, environment: Mapping[str, str], *, keep: bool) -> StackFile:
    deadline = time.monotonic() + READY_S
    process: subprocess.Popen[bytes] | None = None
    while True:
        stack = read_stack(state)
        if stack is not None:
            return stack
        if process is None:
            process = _spawn(config, state, environment, keep=keep)
        elif process.poll() == 0:  # another one was faster; if it is gone already, the next round starts ours
            process = None
        elif process.returncode is not None:
            raise InfrastructureError(f"the stack did not come up: {_last_words(state)}; see {state.stack_log}")
        if time.monotonic() > deadline:
            raise InfrastructureError(f"the stack did not come up within {READY_S:.0f} s; see {state.stack_log}")
        await asyncio.sleep(POLL_S / 2)


def _last_words(state: StateDirectory) -> str:
    """Return why the stack said that it ended."""
    with state.stack_log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            said = json.loads(line)
            if said["level"] == "error":
                return ": ".join(str(said[name]) for name in ("msg", "error.message") if said.get(name))
    return "it said nothing"


def _spawn(config: Config, state: StateDirectory, environment: Mapping[str, str], *, keep: bool) -> subprocess.Popen[bytes]:
    own = {**environment, "ANDON_STATE_DIRECTORY": str(state.root), "ANDON_SLOTS": str(config.slots)}
    own |= {"ANDON_LISTEN": config.listen or "", "ANDON_ADVERTISE": config.advertise or ""}
    argv = [sys.executable, "-m", "supervisor.stack", *(["--keep"] if keep else [])]
    with state.stack_log.open("ab") as out:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=own, cwd="/", start_new_session=True)
