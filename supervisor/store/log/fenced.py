"""An event log that only the leader writes: what a supervisor would write after its lease ended is refused here, before it is sent.

The log's own compare-and-swap refuses a paused old leader as soon as the new one has written to the run; this refuses it before that.
"""

from collections.abc import AsyncIterator, Callable

from supervisor.pipeline.events import AnyEvent
from supervisor.store.log.event_log import EventLog, Head, StaleWriter


class FencedLog:
    """Implements `EventLog` over another one; `is_leader` is asked before every append."""

    def __init__(self, log: EventLog, is_leader: Callable[[], bool]) -> None:
        self._log = log
        self._is_leader = is_leader

    async def append(self, event: AnyEvent, expected_seq: int) -> int:
        """Append as the leader.

        Raises:
            StaleWriter: This supervisor's lease is over, or another writer appended.
        """
        if not self._is_leader():
            raise StaleWriter(f"run {event.run_id}: this supervisor does not lead any more")
        return await self._log.append(event, expected_seq)

    async def read(self, run_id: str) -> list[AnyEvent]:
        """Return a run's events in order."""
        return await self._log.read(run_id)

    async def runs(self) -> list[str]:
        """Return the ids of all runs, oldest first."""
        return await self._log.runs()

    def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield a run's events, then each new one."""
        return self._log.follow(run_id, after_seq)

    def follow_all(self, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield every run's events, then each new one."""
        return self._log.follow_all(after_seq)

    async def head(self) -> Head:
        """Return which log this is and the number of its last event."""
        return await self._log.head()
