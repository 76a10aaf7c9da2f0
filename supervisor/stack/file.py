"""What is on disk of an embedded stack: `stack.json`, whether one runs, and what it has to be started with; not its processes."""

import fcntl
import hashlib
import os
from pathlib import Path

from sandbox.contract.model import Frozen
from supervisor.config import Config, StateDirectory
from supervisor.store.broker.listen import Listen

POLL_S = 0.1
STOP_S = 20.0
"""How long a stack may take to stop."""


class StackFile(Frozen):
    """`stack.json`: how to reach a running stack."""

    pid: int
    nats_url: str
    supervisor_credentials: Path
    fingerprint: str
    """Digest of the environment it was started with; says nothing about the values."""
    release: str
    keep: bool
    listen: str = ""
    """Where the broker serves other hosts, as it was asked for; empty: this host alone."""
    advertise: str = ""
    others_url: str = ""
    """How other hosts reach the broker; empty: they do not."""
    children: dict[str, int]


def fingerprint(config: Config) -> str:
    """Return what must be equal for a run to use a running stack (DECISIONS D14)."""
    models = hashlib.sha256(repr((sorted(config.models.items()), config.database_url)).encode()).hexdigest()[:8]
    return f"{config.provider_fingerprint}-{config.docker_host or ''}-{config.telemetry_fingerprint}-{config.slots}-{models}"


def listen_of(config: Config) -> Listen | None:
    """Return where the broker is to serve other hosts; None: this host alone.

    Raises:
        UsageError: The address is none.
    """
    return Listen.parse(config.listen, config.advertise) if config.listen else None


def read_stack(state: StateDirectory) -> StackFile | None:
    """Return the running stack's file; None if none runs, whatever an old file says."""
    if not is_locked(state.root / "stack.lock"):
        return None
    try:
        return StackFile.model_validate_json(state.stack_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def is_locked(path: Path) -> bool:
    """Return whether some process holds a lock that keeps others out."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
