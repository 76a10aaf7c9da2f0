"""The event log as the supervisor sees it: the truth every state is folded from; not where it is kept (`store/jetstream.py`).

Two implementations, over JetStream and in `tests/fakes`, under one conformance suite.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from sandbox.contract.errors import ConflictError
from supervisor.pipeline.events import AnyEvent


class StaleWriter(ConflictError):
    """Another writer appended since this one last read: fold the run again, or stand down."""


class EventLog(Protocol):
    """Events of runs, each run's in one order. Every call is bounded; a broker that does not answer raises `BrokerError`.

    After a `BrokerError` of `append` the event may be stored or not: read the run again before going on.
    """

    async def append(self, event: AnyEvent, expected_seq: int) -> int:
        """Append to the event's run and return the event's number.

        Args:
            event: Its `seq` is ignored.
            expected_seq: Number of the run's last event as the writer knows it; 0: the run has none.

        Raises:
            StaleWriter: The run's last event is another one; nothing was written.
        """
        ...

    async def read(self, run_id: str) -> list[AnyEvent]:
        """Return a run's events in order with their numbers; empty for an unknown run."""
        ...

    async def runs(self) -> list[str]:
        """Return the ids of all runs, oldest first (ids are time-ordered)."""
        ...

    def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield a run's events numbered above `after_seq`, then each new one as it is appended, without end."""
        ...
