"""An event log in memory with the real one's rules, one suite over both (`tests/conformance/test_event_log.py`)."""

import asyncio
import secrets
from collections.abc import AsyncIterator

from supervisor.pipeline.events import AnyEvent, decode, encode
from supervisor.store.log.event_log import Head, StaleWriter


class MemoryEventLog:
    """Events as the bytes a broker would keep, numbered over all runs."""

    def __init__(self) -> None:
        self._stored: list[tuple[int, str, bytes]] = []
        self._grown = asyncio.Condition()
        self._origin = secrets.token_hex(8)

    async def append(self, event: AnyEvent, expected_seq: int) -> int:
        """Append if the run's last event is `expected_seq`."""
        last = max((seq for seq, run, _ in self._stored if run == event.run_id), default=0)
        if last != expected_seq:
            raise StaleWriter(f"run {event.run_id} is at event {last}, this writer at {expected_seq}")
        seq = len(self._stored) + 1
        self._stored.append((seq, event.run_id, encode(event)))
        async with self._grown:
            self._grown.notify_all()
        return seq

    async def read(self, run_id: str) -> list[AnyEvent]:
        """Return a run's events in order."""
        return [decode(data, seq) for seq, run, data in self._stored if run == run_id]

    async def runs(self) -> list[str]:
        """Return the ids of all runs, oldest first."""
        return sorted({run for _, run, _ in self._stored})

    async def head(self) -> Head:
        """Return the log's name and its last number."""
        return Head(self._origin, len(self._stored))

    def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield a run's events above `after_seq`, then each new one."""
        return self._follow({run_id}, after_seq)

    def follow_all(self, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield every run's events above `after_seq`, then each new one."""
        return self._follow(None, after_seq)

    async def _follow(self, runs: set[str] | None, after_seq: int) -> AsyncIterator[AnyEvent]:
        seen = after_seq
        while True:
            while seen < len(self._stored):
                seq, run, data = self._stored[seen]
                seen = seq
                if runs is None or run in runs:
                    yield decode(data, seq)
            async with self._grown:
                if seen >= len(self._stored):
                    await self._grown.wait()
