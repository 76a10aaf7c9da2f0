"""A supervisor that plays a written log: the CLI's client and composition root, without a broker, an engine or a container."""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sandbox.contract.blob import BlobRef
from sandbox.contract.ids import trace_id
from sandbox.contract.wire import Heartbeat, Progress
from supervisor.api.views import Probe
from supervisor.api.walls import WallProof
from supervisor.cli.client import Say
from supervisor.config import Config
from supervisor.pipeline import events as ev
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
from tests.fakes.run_events import RUN


class Hang:
    """In a script: nothing more comes until somebody asks for the run to be stopped."""


class CtrlC:
    """In a script: the person presses Ctrl-C."""


Scripted = ev.AnyEvent | Progress | Hang | CtrlC


@dataclass
class ScriptedClient:
    """Plays one script to everybody who follows; `after_stop` and `after_resume` come when those are asked for."""

    script: Sequence[Scripted] = ()
    after_stop: Sequence[Scripted] = ()
    after_resume: Sequence[Scripted] = ()
    reply: SubmitReply = field(default_factory=lambda: SubmitReply(run_id=RUN, feature="add-rate-limiting", trace_id=trace_id(RUN)))
    answer: Answer = field(default_factory=lambda: Answer(ok=True))
    submitted: list[SubmitRequest] = field(default_factory=list)
    stops: list[StopRequest] = field(default_factory=list)
    resumes: list[ResumeRequest] = field(default_factory=list)
    why_reply: WhyReply | Exception = field(default_factory=lambda: WhyReply(run_id=RUN, state="running"))
    deliveries: list[DeliveredRequest] = field(default_factory=list)
    fleet_log: dict[str, Sequence[ev.AnyEvent]] = field(default_factory=dict)
    """Runs of the fleet that this host may not have heard of."""
    signs: list[Sequence[Heartbeat]] = field(default_factory=lambda: [()])
    drained: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    following: int = 0
    """Followers whose generator is not closed."""

    async def submit(self, request: SubmitRequest) -> SubmitReply:
        """Take a request."""
        self.submitted.append(request)
        return self.reply

    async def follow(self, run_id: str) -> AsyncIterator[ev.AnyEvent | Progress]:
        """Play the script, then what a stop or resume causes; keeps a task of its own, as the real one does."""
        self.following += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                beside = tasks.create_task(asyncio.sleep(3600))
                async for item in self._play([*self.script, *(self.after_resume if self.resumes else ())]):
                    yield item
                if self.stops:
                    async for item in self._play(self.after_stop):
                        yield item
                beside.cancel()
        finally:
            self.following -= 1

    async def _play(self, items: Sequence[Scripted]) -> AsyncIterator[ev.AnyEvent | Progress]:
        for item in items:
            if isinstance(item, Hang):
                await self.stopped.wait()
            elif isinstance(item, CtrlC):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(0)
            else:
                yield item
            await asyncio.sleep(0)

    async def stop(self, request: StopRequest) -> Answer:
        """Take a stop."""
        self.stops.append(request)
        if self.answer.ok and self.after_stop:
            self.stopped.set()
        return self.answer

    async def resume(self, request: ResumeRequest) -> Answer:
        """Take a resume."""
        self.resumes.append(request)
        return self.answer

    async def why(self, request: WhyRequest) -> WhyReply:
        """Answer what was scripted, or not at all."""
        if isinstance(self.why_reply, Exception):
            raise self.why_reply
        return self.why_reply

    async def delivered(self, request: DeliveredRequest) -> Answer:
        """Take how a delivery went."""
        self.deliveries.append(request)
        return self.answer

    async def runs(self) -> list[str]:
        """Return the runs of the fleet's log."""
        return sorted(self.fleet_log)

    async def read(self, run_id: str) -> list[ev.AnyEvent]:
        """Return a run's events."""
        return list(self.fleet_log.get(run_id, ()))

    async def executors(self) -> list[Heartbeat]:
        """Return the life signs, the next ones at each call and the last ones for ever."""
        return list(self.signs.pop(0) if len(self.signs) > 1 else self.signs[0])

    async def drain(self, executor: str, reason: str) -> None:
        """Note who was told to leave."""
        self.drained.append(executor)

    async def put_blob(self, name: str, data: bytes) -> BlobRef:
        """Keep an object in memory."""
        self.blobs[name] = data
        return BlobRef(bucket="IN", name=name, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Return an object that was put."""
        return self.blobs[ref.name]


@dataclass
class ScriptedBootstrap:
    """The composition root around one scripted client."""

    client: ScriptedClient = field(default_factory=ScriptedClient)
    probes: Sequence[Probe] = ()
    proofs: Sequence[WallProof] = ()
    proved_runtimes: list[str | None] = field(default_factory=list)
    host_error: Exception | None = None
    leave_error: Exception | None = None
    """Raised when the connection is given back."""
    connections: int = 0
    is_up: bool = True
    """Whether something runs that a verb may look at without starting it."""
    look_error: Exception | None = None
    looks: int = 0

    @asynccontextmanager
    async def connect(self, config: Config, say: Say) -> AsyncIterator[ScriptedClient]:
        """Give the client."""
        self.connections += 1
        yield self.client
        if self.leave_error is not None:
            raise self.leave_error

    @asynccontextmanager
    async def look(self, config: Config) -> AsyncIterator[ScriptedClient | None]:
        """Give the client if something runs."""
        if self.look_error is not None:
            raise self.look_error
        self.looks += 1
        yield self.client if self.is_up else None

    async def ensure_host(self, config: Config, say: Say) -> None:
        """Find everything in place, or fail as told."""
        if self.host_error is not None:
            raise self.host_error

    async def doctor_probes(self, config: Config) -> Sequence[Probe]:
        """Return what was given."""
        return self.probes

    async def prove(self, config: Config, oci_runtime: str | None, say: Say) -> Sequence[WallProof]:
        """Return what was given."""
        self.proved_runtimes.append(oci_runtime)
        return self.proofs

    async def up(self, config: Config, say: Say) -> str:
        """Say that it is up."""
        return "the stack is up"

    async def down(self, config: Config, say: Say) -> str:
        """Say that it is down."""
        return "the stack is down"
