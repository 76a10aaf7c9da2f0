"""A CLI's end of the wire in memory (`supervisor.store.client.FleetClient`), over the broker and log of the other fakes."""

import asyncio
from collections.abc import AsyncIterator

from sandbox.bus import NoAnswer
from sandbox.contract.blob import BlobRef, Bucket
from sandbox.contract.errors import AndonError, BrokerError
from sandbox.contract.wire import Control, Heartbeat, Progress
from supervisor.pipeline.events import AnyEvent
from supervisor.store.log.event_log import EventLog
from tests.fakes.memory_bus import MemoryBroker, MemoryLink, MemorySupervisorLink


class MemoryFleetClient(MemoryLink):
    """A CLI's end (`supervisor.store.client.FleetClient`)."""

    def __init__(self, broker: MemoryBroker, log: EventLog) -> None:
        super().__init__(broker)
        self._log = log
        self._supervisor = MemorySupervisorLink(broker)

    async def request(self, subject: str, payload: bytes, *, timeout_s: float = 30.0) -> bytes:
        """Ask the supervisor and return its answer."""
        handler = self._open().rpcs.get(subject)
        if handler is None:
            raise NoAnswer(f"nobody answers on {subject}")
        try:
            return await asyncio.wait_for(handler(payload), timeout_s)
        except (AndonError, TimeoutError) as error:
            raise BrokerError(f"the supervisor could not answer on {subject}: {error}") from error

    async def runs(self) -> list[str]:
        """Return the ids of all runs."""
        return await self._log.runs()

    async def read(self, run_id: str) -> list[AnyEvent]:
        """Return a run's events so far."""
        return await self._log.read(run_id)

    def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield a run's events above `after_seq`, then each new one."""
        return self._log.follow(run_id, after_seq)

    def progress(self) -> AsyncIterator[Progress]:
        """Yield what running attempts do."""
        return self._supervisor.progress()

    async def executors(self) -> list[Heartbeat]:
        """Return the executors whose life sign has not expired."""
        return await self._supervisor.executors()

    async def drain(self, executor: str, reason: str) -> None:
        """Tell an executor to leave when its jobs are done."""
        for queue in self._open().controls.get(executor, set()):
            queue.put_nowait(Control(verb="drain", reason=reason))

    async def put_blob(self, name: str, data: bytes, bucket: Bucket = "IN") -> BlobRef:
        """Store an object."""
        return await self._put(bucket, name, data)
