"""What an executor is told at its start, and the collaborators every attempt shares; not where the values come from (`__main__`)."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from sandbox.contract.ids import ExecutorName, PoolName
from sandbox.contract.job import JobSpec
from sandbox.contract.model import Frozen
from sandbox.contract.wire import ExecutorLink
from sandbox.executor.slots import SlotPool
from sandbox.gateway.upstream import Upstream
from sandbox.mirror import Mirror
from sandbox.runtime.container_spec import Runtime
from sandbox.telemetry import Spans

MIRROR_NAME = "executor.git"


class ExecutorConfig(Frozen):
    """One executor's settings; unknown keys are errors."""

    name: ExecutorName
    state: Path
    """`$XDG_STATE_HOME/andon/executor`: mirrors, slots, results (DECISIONS G10)."""
    sockets: Path
    """`/tmp/andon-<uid>/<instance>`; short, because a socket path has at most 108 bytes."""
    uid_locks: Path | None
    """`/run/lock/andon` as root, None otherwise."""
    pools: tuple[PoolName, ...] = ("default",)
    labels: dict[str, str] = Field(default_factory=dict)
    slots: int = Field(2, ge=1, le=64)
    docker_host: str | None = None
    release: str = "0"


@dataclass(frozen=True)
class Host:
    """What attempts of one executor share."""

    config: ExecutorConfig
    link: ExecutorLink
    mirror: Mirror
    runtime: Runtime
    upstream: Upstream | None
    slots: SlotPool
    image_of: Callable[[JobSpec], Awaitable[str]]
    """Resolve a job's image to an image id, building it if it is missing."""
    exec_spans: Spans
    gateway_spans: Spans
    agent_spans: Spans
    instance: str
    """Label of every container of this executor; the sweep touches no other."""
    missing: tuple[str, ...]
    """Protections this host cannot give, one line each."""
    tool_environment: Mapping[str, str]
    """Environment of tools and checks in every sandbox of this host, e.g. a locale."""
