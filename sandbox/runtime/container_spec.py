"""What a runtime is: what it is asked for, what it gives back, what it promises; not how an engine does it (`docker`).

A sandbox is made in two steps, so that it can later be started before its job is known: `Runtime.stand_by` starts the
container of a slot, whose program waits on the gateway socket; `Sandbox.assign` changes what may still change. A sandbox
is used once and removed. Between the two the host may fill the bound directories, never the container itself: nothing
runs `exec` or `cp` in a container that has started (ABUSE.md D05).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field

from sandbox.contract.job import Limits
from sandbox.contract.model import Frozen
from sandbox.runtime.users import UserMap

PROGRAM = ("/opt/andon/bin/python", "-I", "-m", "sandbox.inside")
"""The program every sandbox starts; it asks the gateway socket what to do."""
WORKSPACE = "/workspace"
TASK = "/task"
GATEWAY = "/gw"
OUT = "/out"
HOME = "/home/agent"
LOG_BYTES_MAX = 10 << 20
"""What is kept of a container's output: the first and the last half of it (DECISIONS D20)."""
LAST_WORDS_BYTES_MAX = 16 << 10
"""Of each stream, for the executor's own log."""
LABEL_INSTANCE = "andon.instance"
LABEL_SLOT = "andon.slot"
LABEL_DEADLINE = "andon.deadline"


class SlotSpec(Frozen):
    """One slot's place for one sandbox. The directories exist, are absolute, and belong to `uid` where writable."""

    instance: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$")
    """Who owns the container; a janitor tells its own by it."""
    slot: int = Field(ge=0)
    uid: int = Field(ge=1, le=2**32 - 2)
    """Never 0. As root one of its own per slot, otherwise the caller's (DECISIONS D9)."""
    gid: int = Field(ge=1, le=2**32 - 2)
    workspace: Path
    """Bound read-write at `/workspace`."""
    task: Path
    """Bound read-only at `/task`; the directory above it is the host's own and holds the container's `hosts` file."""
    gateway: Path
    """Bound read-only at `/gw`; holds `gateway.sock`."""
    gateway_from: str = Field("", pattern=r"^[a-zA-Z0-9_.-]{0,200}$")
    """The container whose volume is at `/gw` instead, where the engine carries no sockets (`relay`); empty: none."""
    out: Path
    """Bound read-write at `/out`."""
    limits: Limits = Limits()
    deadline: float = Field(ge=0)
    """Unix seconds after which a janitor may remove the container; a label, it kills nothing by itself."""
    runtime: str = Field("runc", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$")
    """A runtime name the engine knows."""
    command: tuple[str, ...] = Field(PROGRAM, min_length=1)
    """What process 1's child is; only tests and probes change it."""


class Exit(Frozen):
    """How a container ended."""

    code: int
    """Exit status of its first process; 128 + signal when a signal ended it, so 137 after a kill."""
    oom_killed: bool
    """The kernel killed at least one process of it for memory; the first process may still have ended well."""


class FoundContainer(Frozen):
    """A container of any Andon executor on this engine, as its labels tell."""

    container_id: str
    instance: str
    slot: int | None
    """None: its label is no number."""
    deadline: float
    """Unix seconds; 0: its label says none."""
    workspace: Path | None
    """The directory of the host that is bound at `/workspace`."""


class EngineFacts(Frozen):
    """What the engine is, read once when it was found."""

    endpoint: str
    source: str
    """Where the endpoint was found: DOCKER_HOST, a context, or the default."""
    version: str
    api_version: str
    architecture: str
    kernel: str
    cgroup_version: str
    storage_driver: str
    default_runtime: str
    runtimes: tuple[str, ...]
    gvisor: tuple[str, ...] = ()
    """Those of them that are gVisor."""
    users: UserMap = UserMap()
    security_options: tuple[str, ...]
    cpus: int
    memory_bytes: int
    missing: tuple[str, ...] = ()
    """Protections this engine cannot give, one line each."""
    warnings: tuple[str, ...] = ()
    """What `doctor` should say, e.g. an old runc."""

    @property
    def has_selinux(self) -> bool:
        """Return whether the engine labels containers for SELinux."""
        return any("selinux" in option for option in self.security_options)


Step = Literal["create", "start"]
OnStep = Callable[[Step, str], None]
"""Told of each step of a start as it begins, with the container's id, which is empty before `create`. It must not block."""


def unheard(_step: Step, _container_id: str) -> None:
    """Listen to nothing."""


Stream = Literal["stdout", "stderr"]
LastWords = Mapping[Stream, bytes]


class Sandbox(Protocol):
    """One started container. Every call is bounded but `wait`; every call after `remove` is an `EngineError` or does nothing."""

    @property
    def container_id(self) -> str:
        """Return the engine's full id."""
        ...

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the protections this container does not have, one line each."""
        ...

    async def assign(self, limits: Limits) -> None:
        """Change memory, cpu and pids limits of the running container to those of the job."""
        ...

    async def pause(self) -> None:
        """Freeze every process; a paused container stays paused when paused again."""
        ...

    async def unpause(self) -> None:
        """Let a frozen container go on."""
        ...

    async def kill(self) -> None:
        """Kill every process at once, frozen or not, and return when none is left; a dead container is left alone."""
        ...

    async def wait(self) -> Exit:
        """Wait until the container is dead, without bound: the caller owns the deadline."""
        ...

    async def log(self) -> bytes:
        """Return the first and last of what it printed, at most `LOG_BYTES_MAX` and a line that says what was dropped."""
        ...

    async def last_words(self) -> LastWords:
        """Return the last of what it printed on each stream, at most `LAST_WORDS_BYTES_MAX` of each."""
        ...

    async def remove(self) -> None:
        """Kill it if need be and remove it; idempotent, and safe in a `finally`."""
        ...


class Runtime(Protocol):
    """Makes sandboxes. Nothing here blocks the event loop."""

    async def facts(self) -> EngineFacts:
        """Return what the engine is."""
        ...

    async def stand_by(self, slot: SlotSpec, image_id: str, on_step: OnStep = unheard) -> Sandbox:
        """Start a container in a slot; when it raises or is cancelled, no container is left. Before `create` it waits for its turn.

        Raises:
            EngineError: The engine refused; the message is its reason.
        """
        ...

    async def containers(self) -> list[FoundContainer]:
        """Return every container with our instance label, running or not, whoever's it is."""
        ...

    async def discard(self, container_id: str) -> None:
        """Kill and remove a container that was found; nothing if it is gone."""
        ...
