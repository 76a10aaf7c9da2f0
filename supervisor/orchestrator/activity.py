"""What running attempts last said of themselves, for `why`; lossy, in memory, decides nothing."""

import asyncio
from dataclasses import dataclass

from sandbox.contract.errors import BrokerError
from sandbox.contract.wire import Progress
from sandbox.log import Log
from supervisor.orchestrator.ports import Ports

log = Log(__name__)

JOBS_MAX = 4096
AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Doing:
    """The last progress of a job, and since when its phase, turn and tool are the same (Unix seconds)."""

    progress: Progress
    since: float


class Activity:
    """The newest progress of each job."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._jobs: dict[str, Doing] = {}

    async def watch(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                async for progress in self._ports.link.progress():
                    self.note(progress)
            except BrokerError as error:
                log.warning("progress.unheard", "what attempts do is not heard now", error=error)
            await asyncio.sleep(AGAIN_S)

    def note(self, progress: Progress) -> None:
        """Take one progress; of the jobs the one that was silent longest is forgotten beyond 4,096."""
        before = self._jobs.pop(progress.job_id, None)
        since = before.since if before is not None and _step(before.progress) == _step(progress) else self._ports.clock()
        self._jobs[progress.job_id] = Doing(progress, since)
        while len(self._jobs) > JOBS_MAX:
            del self._jobs[next(iter(self._jobs))]

    def of(self, job_id: str, attempt: int) -> Doing | None:
        """Return what an attempt last said, None if it said nothing yet."""
        doing = self._jobs.get(job_id)
        return doing if doing is not None and doing.progress.attempt == attempt else None


def _step(progress: Progress) -> tuple[object, ...]:
    return (progress.executor, progress.attempt, progress.phase, progress.turn, progress.tool)
