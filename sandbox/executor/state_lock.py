"""One executor for each state directory: the kernel's lock says so, and shows others whether it lives; not uid locks (`slots`)."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox.contract.errors import InfrastructureError, UsageError

LOCK_NAME = "executor.lock"
TAKE_S = 1.0
"""Whoever only looks holds the lock for a moment, so a taken one is tried again this long."""
_TRY_EVERY_S = 0.05


@contextmanager
def held_state(state: Path) -> Iterator[None]:
    """Hold a state directory, which is made if it is absent, as long as the block runs; it frees itself when the process dies.

    Raises:
        UsageError: Another executor holds it, or it cannot be made.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(state / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UsageError(f"the state directory {state} cannot be used: {error.strerror}; choose another with --state") from error
    try:
        _take(descriptor, state)
        yield
    finally:
        os.close(descriptor)


def is_state_free(state: Path) -> bool:
    """Return whether no executor holds a state directory; one without a lock file is nobody's we know: not free."""
    try:
        descriptor = os.open(state / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _take(descriptor: int, state: Path) -> None:
    deadline = time.monotonic() + TAKE_S
    while True:
        with contextlib.suppress(BlockingIOError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError as error:
                raise InfrastructureError(f"the state directory {state} cannot be locked: {error.strerror}") from error
            return
        if time.monotonic() > deadline:
            raise UsageError(f"another executor uses the state directory {state}; stop it, or choose another with --state")
        time.sleep(_TRY_EVERY_S)
