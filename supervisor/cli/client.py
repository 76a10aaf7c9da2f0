"""The CLI's side of the supervisor, as protocols; `supervisor.bootstrap` is the implementation, the tests' scripted client another."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from sandbox.contract.blob import BlobRef
from sandbox.contract.wire import Heartbeat, Progress
from supervisor.api.views import Probe
from supervisor.api.walls import WallProof
from supervisor.config import Config
from supervisor.pipeline.events import AnyEvent
from supervisor.pipeline.submit import (
    Answer,
    DeliveredRequest,
    ResumeRequest,
    StopRequest,
    SubmitReply,
    SubmitRequest,
    WhyReply,
    WhyRequest,
)

Say = Callable[[str], None]
"""Takes one line of progress for a person."""


class Client(Protocol):
    """A connection to a supervisor (DECISIONS D19). Every call is bounded; a supervisor that does not answer raises `BrokerError`."""

    async def submit(self, request: SubmitRequest) -> SubmitReply:
        """Open a run; a refusal is a reply with `error`, not an exception."""
        ...

    def follow(self, run_id: str) -> AsyncIterator[AnyEvent | Progress]:
        """Yield every event of a run from its first, in order and with `seq`, and in between what running attempts do; never ends."""
        ...

    async def stop(self, request: StopRequest) -> Answer:
        """Ask for a run to be parked or cancelled; returns when that is noted, not when it is done."""
        ...

    async def resume(self, request: ResumeRequest) -> Answer:
        """Ask for a run to go on; returns when that is noted."""
        ...

    async def why(self, request: WhyRequest) -> WhyReply:
        """Ask what a run waits for or does; asked once, answered within seconds."""
        ...

    async def delivered(self, request: DeliveredRequest) -> Answer:
        """Tell how the delivery of a landed run into its repository went; harmless twice."""
        ...

    async def runs(self) -> list[str]:
        """Return the ids of all runs of the fleet, oldest first."""
        ...

    async def read(self, run_id: str) -> list[AnyEvent]:
        """Return a run's events so far; empty for an unknown run."""
        ...

    async def executors(self) -> list[Heartbeat]:
        """Return the executors whose life sign has not expired."""
        ...

    async def drain(self, executor: str, reason: str) -> None:
        """Tell an executor to leave when the jobs it has are done; may be lost, harmless twice."""
        ...

    async def put_blob(self, name: str, data: bytes) -> BlobRef:
        """Store an object in IN."""
        ...

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read an object and verify its digest."""
        ...


class Bootstrap(Protocol):
    """What commands need of `supervisor.bootstrap`, the composition root."""

    def connect(self, config: Config, say: Say) -> AbstractAsyncContextManager[Client]:
        """Reach the fleet's supervisor, or start the embedded stack, or use the one that runs."""
        ...

    def look(self, config: Config) -> AbstractAsyncContextManager[Client | None]:
        """Reach what runs already, for a verb that starts nothing; None: the embedded stack does not run."""
        ...

    async def ensure_host(self, config: Config, say: Say) -> None:
        """See to the container engine and the agent image, telling `say` what takes long."""
        ...

    async def doctor_probes(self, config: Config) -> Sequence[Probe]:
        """Look at everything Andon needs on this host; changes nothing."""
        ...

    async def prove(self, config: Config, oci_runtime: str | None, say: Say) -> Sequence[WallProof]:
        """Attack sandboxes on this host's engine and return what every probe came to."""
        ...

    async def up(self, config: Config, say: Say) -> str:
        """Start the embedded stack and keep it when no run is left; return one line that says where it is."""
        ...

    async def down(self, config: Config, say: Say) -> str:
        """Stop the embedded stack; return one line that says what was stopped."""
        ...


class RealBootstrap:
    """`supervisor.bootstrap`, each part imported when it is needed: together they bring docker, git, nats and telemetry."""

    def connect(self, config: Config, say: Say) -> AbstractAsyncContextManager[Client]:
        """Reach the fleet's supervisor, or start the embedded stack, or use the one that runs."""
        from supervisor.bootstrap.client import connect

        return connect(config, say)

    def look(self, config: Config) -> AbstractAsyncContextManager[Client | None]:
        """Reach what runs already."""
        from supervisor.bootstrap.client import look

        return look(config)

    async def ensure_host(self, config: Config, say: Say) -> None:
        """See to the container engine and the agent image."""
        from supervisor.bootstrap.host import ensure_host

        await ensure_host(config, say)

    async def doctor_probes(self, config: Config) -> Sequence[Probe]:
        """Look at everything Andon needs on this host."""
        from supervisor.bootstrap.probes import doctor_probes

        return await doctor_probes(config)

    async def prove(self, config: Config, oci_runtime: str | None, say: Say) -> Sequence[WallProof]:
        """Attack sandboxes on this host's engine."""
        from supervisor.bootstrap.prove import prove_here

        return await prove_here(config, oci_runtime, say)

    async def up(self, config: Config, say: Say) -> str:
        """Start the embedded stack and keep it."""
        from supervisor.bootstrap.host import up

        return await up(config, say)

    async def down(self, config: Config, say: Say) -> str:
        """Stop the embedded stack."""
        from supervisor.bootstrap.host import down

        return await down(config, say)
