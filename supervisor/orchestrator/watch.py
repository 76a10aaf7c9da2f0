"""Notices what no message tells: an executor that is gone, an attempt past its wall clock, a job nobody took; not leases.

Every age here is counted by `Ports.monotonic` from when this process first saw the thing: no clock that jumps, and no time this host
slept through, declares anybody dead.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from sandbox.contract.errors import BrokerError
from sandbox.contract.wire import Heartbeat, JoinRequest, Notice
from sandbox.log import Log
from supervisor.orchestrator.actor import RunActor
from supervisor.orchestrator.effects import copy_name, end_as_lost
from supervisor.orchestrator.ports import Ports
from supervisor.pipeline.events import AnyEvent, JobRepublished
from supervisor.pipeline.machine import may_claim
from supervisor.pipeline.run import JobState, RunState
from supervisor.pipeline.survey import stage_of

log = Log(__name__)

EVERY_S = 1.0
CUT_GRACE_S = 8.0
"""From the broker's word that an executor's connection closed: one that connects or joins again within it is still working."""
GONE_GRACE_S = 10.0
"""Beyond the 15 s a life sign lasts, for what the broker did not notice, e.g. a power cut (NATS.md §5)."""
WALL_GRACE_S = 180.0
"""Beyond the stage's wall clock, which the executor itself keeps: time to seal, store and report."""
DIRECTED_S = 3.0
"""A copy on the lane of one executor, which took something else into its free slot meanwhile, is taken back after this."""
UNTAKEN_S = 180.0
"""From a job's publication, which waits for an executor that is free: thrice the lease an executor that dies before its claim holds.
Longer, and the copy is lost: a peer of the pool may have acked it (NATS.md §8)."""


@dataclass
class _Cut:
    """An executor's connection closed."""

    since_s: float
    last_sign: float | None = None
    """Its newest life sign when we first looked after that; a newer one came by another connection, so it lives."""


class Watch:
    """Ends attempts that nobody will end, and publishes again what the bus has lost."""

    def __init__(
        self, ports: Ports, actors: Callable[[], Iterable[RunActor]], waited_s: Callable[[str, int], float] = lambda _job, _attempt: 0.0
    ) -> None:
        """Watch runs; `waited_s` says how long an attempt waited for the provider's rate, which its wall clock is not charged."""
        self._ports = ports
        self._actors = actors
        self._waited_s = waited_s
        self._cut: dict[str, _Cut] = {}
        self._missing_since: dict[str, float] = {}
        self._untaken_since: dict[str, float] = {}
        self._lanes: dict[str, tuple[str, ...]] = {}

    async def run(self) -> None:
        """Listen to the broker's notices and look every second, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            while True:
                await self._ports.sleep(EVERY_S)
                try:
                    await self.look()
                except BrokerError as error:
                    # Without the bus nobody can be told dead from silent; the clocks start anew when it is back.
                    self._missing_since.clear()
                    self._cut.clear()
                    log.warning("watch.blind", "who is there is not seen now", error=error)

    async def _listen(self) -> None:
        async for notice in self._ports.link.notices():
            self.note(notice)

    def note(self, notice: Notice) -> None:
        """Take the broker's word that an executor's connection opened or closed."""
        if notice.is_connected:
            self._cut.pop(notice.executor, None)
        else:
            self._cut[notice.executor] = _Cut(self._ports.monotonic())

    def joined(self, request: JoinRequest) -> None:
        """Note an executor that has come (back) and has its lanes."""
        self._cut.pop(request.executor, None)
        self._lanes[request.executor] = request.pools

    async def look(self) -> None:
        """End what is lost by now.

        Raises:
            BrokerError: The bus or the log does not answer.
        """
        beats = {beat.executor: beat for beat in await self._ports.link.executors()}
        now = self._ports.monotonic()
        held = [(actor, job, job.current) for actor in self._actors() for job in actor.state.jobs.values() if job.current is not None]
        gone = self._gone(beats, {attempt.executor for _, _, attempt in held} | self._lanes.keys(), now)
        for actor, job, attempt in held:
            stage = stage_of(actor.state.pipeline, job.stage)
            wall_s = (stage.limits.wall_s if stage else 0) + WALL_GRACE_S + self._waited_s(job.job_id, attempt.attempt)
            if attempt.executor in gone:
                await end_as_lost(actor, job.job_id, attempt.attempt, f"executor {attempt.executor} is gone")
            elif actor.held_s(job) >= wall_s:
                reason = f"executor {attempt.executor} reported nothing {WALL_GRACE_S:.0f} s after the stage's wall clock"
                await end_as_lost(actor, job.job_id, attempt.attempt, reason)
        await self._publish_lost(gone, now)
        await self._forget(gone - beats.keys())

    def _gone(self, beats: dict[str, Heartbeat], known: Iterable[str], now: float) -> set[str]:
        """Return the executors whose grace is over: cut off without a life sign since, or silent for longer than one lasts."""
        for name, cut in list(self._cut.items()):
            sign = beats[name].seen_at if name in beats else 0.0
            if cut.last_sign is None:
                cut.last_sign = sign
            elif name in beats and sign != cut.last_sign:
                del self._cut[name]
        self._missing_since = {name: self._missing_since.get(name, now) for name in known if name not in beats}
        cut_off = {name for name, cut in self._cut.items() if now - cut.since_s >= CUT_GRACE_S}
        return cut_off | {name for name, since in self._missing_since.items() if now - since >= GONE_GRACE_S}

    async def _publish_lost(self, gone: set[str], now: float) -> None:
        out: list[tuple[RunActor, JobState, str]] = []
        for actor in self._actors():
            for job in actor.state.jobs.values():
                name = copy_name(job.job_id, job.publications)
                if job.standing == "queued" and not self._ports.queue.is_waiting(name) and may_claim(actor.state, job):
                    out.append((actor, job, name))
        self._untaken_since = {name: self._untaken_since.get(name, now) for _, _, name in out}
        for actor, job, name in out:
            executor = self._ports.queue.directed_to(name)
            waited_s = now - self._untaken_since[name]
            if executor in gone:
                reason = f"executor {executor} is gone"
            elif executor and waited_s >= DIRECTED_S:
                reason = f"executor {executor} has no free slot after all"
            elif waited_s >= UNTAKEN_S:
                reason = "nobody took it from the bus"
            else:
                continue
            await actor.record(partial(self._lost_copy, job.job_id, job.publications, reason))

    def _lost_copy(self, job_id: str, publication: int, reason: str, run: RunState) -> AnyEvent | None:
        job = run.jobs[job_id]
        if job.standing != "queued" or job.publications != publication or not may_claim(run, job):
            return None
        return JobRepublished(run_id=run.run_id, at=self._ports.clock(), job_id=job_id, reason=reason)

    async def _forget(self, gone: set[str]) -> None:
        """Remove the lanes of executors that are gone for good; one that comes back joins, and gets them again."""
        for name in gone & self._lanes.keys():
            log.info("executor.gone", executor=name)
            with suppress(BrokerError):  # then they stay, empty, until it joins or is dismissed
                await self._ports.link.forget(name, self._lanes[name])
            del self._lanes[name]
            self._cut.pop(name, None)
