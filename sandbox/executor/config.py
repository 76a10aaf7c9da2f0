"""What an executor is told at its start, and the collaborators every attempt shares; not where the values come from (`__main__`)."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from sandbox.contract.ids import ExecutorName, PoolName
from sandbox.contract.job import JobSpec
from sandbox.contract.labels import Labels
from sandbox.contract.model import Frozen
from sandbox.contract.wire import HEARTBEAT_S, LEASE_DOUBT_S, ExecutorLink
from sandbox.executor.outbox import Outbox
from sandbox.executor.protections import Show, nothing_shown
from sandbox.executor.slots import SlotPool
from sandbox.gateway.content import Capture
from sandbox.gateway.registries.source import PackageSource
from sandbox.gateway.upstream import Upstream
from sandbox.mirror import Mirror
from sandbox.runtime.container_spec import Runtime
from sandbox.runtime.proof import Relay
from sandbox.telemetry import Spans

MIRROR_NAME = "executor.git"


class Pace(Frozen):
    """How often an executor does what it does again and again; the defaults are the ones to use outside of tests."""

    renew_s: float = Field(HEARTBEAT_S, gt=0)
    """Between two renewals of a lease."""
    doubt_s: float = Field(LEASE_DOUBT_S, gt=0)
    """The age of the last confirmed renewal at which an attempt stands still (DECISIONS D2)."""
    beat_s: float = Field(5.0, gt=0)
    """Between two life signs."""
    look_s: float = Field(5.0, gt=0)
    """Between two looks at the disk."""
    sweep_s: float = Field(60.0, gt=0)
    """Between two sweeps of the janitor."""
    join_s: float = Field(2.0, gt=0)
    """Between two tries to join while no supervisor answers."""
    post_s: float = Field(1.0, gt=0)
    """Between two tries to deliver a result."""
    spans_s: float = Field(2.0, gt=0)
    """Between two times that an attempt's ended spans are sent."""
    stop_s: float = Field(5.0, gt=0)
    """How long an executor that is stopped at once tries to deliver what it has."""


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
    no_quota: str = ""
    """Why workspaces cannot be file systems of their own here; empty: they can."""
    labels: Labels = Field(default_factory=dict)
    slots: int = Field(2, ge=1, le=64)
    docker_host: str | None = None
    disk_floor_mib: int = Field(1024, ge=0)
    """With less room where `state` is, no job is taken."""
    pace: Pace = Pace()
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
    user_spans: Spans
    """Of a user's own code in tools and checks."""
    instance: str
    """Label of every container of this executor; the sweep touches no other."""
    missing: tuple[str, ...]
    """Protections this host cannot give, one line each, whatever the runtime."""
    tool_environment: Mapping[str, str]
    """Environment of tools and checks in every sandbox of this host, e.g. a locale."""
    missing_by_default: tuple[str, ...] = ()
    """What a sandbox of the default runtime does without, for the life sign."""
    shown: Show = nothing_shown
    """What a runtime's first container shows to be missing."""
    relay: Relay | None = None
    """Carries the gateway's socket into sandboxes, where that container showed that the engine does not."""
    capture: Capture | None = None
    """Puts what was said in model calls into their spans; None: nobody opted in."""
    packages: PackageSource | None = None
    """This host's package indexes, for stages that may install something; None: there are none."""

    @property
    def outbox(self) -> Outbox:
        """Return where results wait for the broker."""
        return Outbox(self.config.state / "results", self.config.name)
