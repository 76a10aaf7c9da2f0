"""The event log as the supervisor sees it: the truth every state is folded from; not where it is kept (`store/jetstream.py`).

Two implementations, over JetStream and in `tests/fakes`, under one conformance suite.
"""

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from sandbox.contract.errors import ConflictError
from supervisor.pipeline.events import AnyEvent


class StaleWriter(ConflictError):
    """Another writer appended since this one last read: fold the run again, or stand down."""


class Head(NamedTuple):
    """Where a log is. Whoever keeps a copy knows by it whether the copy is of this log, and how far behind."""

    origin: str
    """Names this log: a new or emptied one has another name."""
    last_seq: int
    """0: there is no event."""


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

    def follow_all(self, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield every run's events numbered above `after_seq`, in the order they were appended, then each new one, without end."""
        ...

    async def head(self) -> Head:
        """Return which log this is and the number of its last event."""
        ...
