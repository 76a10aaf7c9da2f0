"""Notices what no message tells: an executor that is gone, an attempt past its wall clock; leases are not its matter."""

import logging
from collections.abc import Callable, Iterable

from sandbox.contract.errors import BrokerError
from supervisor.orchestrator.actor import RunActor
from supervisor.orchestrator.effects import end_as_lost
from supervisor.orchestrator.ports import Ports
from supervisor.pipeline.survey import stage_of

log = logging.getLogger(__name__)

EVERY_S = 5.0
GONE_GRACE_S = 10.0
"""Beyond the 15 s a life sign lasts: an executor that reconnects is still working (NATS.md §2)."""
WALL_GRACE_S = 180.0
"""Beyond the stage's wall clock, which the executor itself keeps: time to seal, store and report."""


class Watch:
    """Ends attempts that nobody will end."""

    def __init__(self, ports: Ports, actors: Callable[[], Iterable[RunActor]]) -> None:
        self._ports = ports
        self._actors = actors
        self._missing_since: dict[str, float] = {}

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
