"""Notices what no message tells: an executor that is gone, an attempt past its wall clock, a job nobody took; not leases."""

import logging
from collections.abc import Callable, Iterable
from functools import partial

from sandbox.contract.errors import BrokerError
from supervisor.orchestrator.actor import RunActor
from supervisor.orchestrator.effects import copy_name, end_as_lost
from supervisor.orchestrator.ports import Ports
from supervisor.pipeline.events import AnyEvent, JobRepublished
from supervisor.pipeline.machine import may_claim
from supervisor.pipeline.run import RunState
from supervisor.pipeline.survey import stage_of

log = logging.getLogger(__name__)

EVERY_S = 5.0
GONE_GRACE_S = 10.0
"""Beyond the 15 s a life sign lasts: an executor that reconnects is still working (NATS.md §2)."""
WALL_GRACE_S = 180.0
"""Beyond the stage's wall clock, which the executor itself keeps: time to seal, store and report."""
UNTAKEN_S = 180.0
"""From a job's publication, which waits for an executor that is free: thrice the lease an executor that dies before its claim holds.
Longer, and the copy is lost: a peer of the pool may have acked it (NATS.md §8)."""


class Watch:
    """Ends attempts that nobody will end, and publishes again what the bus has lost."""

    def __init__(self, ports: Ports, actors: Callable[[], Iterable[RunActor]]) -> None:
        self._ports = ports
        self._actors = actors
        self._missing_since: dict[str, float] = {}
        self._untaken_since: dict[str, float] = {}

    async def run(self) -> None:
        """Look every 5 s until cancelled."""
        while True:
            await self._ports.sleep(EVERY_S)
            try:
                await self.look()
            except BrokerError as error:
                # Without the bus nobody can be told dead from silent; the clocks start anew when it is back.
                self._missing_since.clear()
                log.warning("watch.blind", extra={"reason": str(error)})

    async def look(self) -> None:
        """End what is lost by now.

        Raises:
            BrokerError: The bus or the log does not answer.
        """
        alive = {beat.executor for beat in await self._ports.link.executors()}
        now = self._ports.clock()
        await self._publish_lost(now)
        held = [(actor, job, job.current) for actor in self._actors() for job in actor.state.jobs.values() if job.current is not None]
        missing = {attempt.executor for _, _, attempt in held} - alive
        self._missing_since = {name: self._missing_since.get(name, now) for name in missing}
        for actor, job, attempt in held:
            stage = stage_of(actor.state.pipeline, job.stage)
            wall_s = (stage.limits.wall_s if stage else 0) + WALL_GRACE_S
            if attempt.executor in missing and now - self._missing_since[attempt.executor] >= GONE_GRACE_S:
                await end_as_lost(actor, job.job_id, attempt.attempt, f"executor {attempt.executor} is gone")
            elif now - attempt.started_at >= wall_s:
                reason = f"executor {attempt.executor} reported nothing {WALL_GRACE_S:.0f} s after the stage's wall clock"
                await end_as_lost(actor, job.job_id, attempt.attempt, reason)

    async def _publish_lost(self, now: float) -> None:
        queued = [
            (actor, job, copy_name(job.job_id, job.publications))
            for actor in self._actors()
            for job in actor.state.jobs.values()
            if job.standing == "queued" and may_claim(actor.state, job)
        ]
        out = [(actor, job, name) for actor, job, name in queued if not self._ports.queue.is_waiting(name)]
        self._untaken_since = {name: self._untaken_since.get(name, now) for _, _, name in out}
        for actor, job, name in out:
            if now - self._untaken_since[name] >= UNTAKEN_S:
                await actor.record(partial(self._lost_copy, job.job_id, job.publications))

    def _lost_copy(self, job_id: str, publication: int, run: RunState) -> AnyEvent | None:
        job = run.jobs[job_id]
        if job.standing != "queued" or job.publications != publication or not may_claim(run, job):
            return None
        return JobRepublished(run_id=run.run_id, at=self._ports.clock(), job_id=job_id, reason="nobody took it from the bus")
