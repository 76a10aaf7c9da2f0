"""The wire a conformance suite runs on: in memory, or over a real broker with real accounts; the same words for both."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from sandbox.bus import NatsExecutorLink, NatsSupervisorLink
from sandbox.contract.wire import ExecutorLink, SupervisorLink
from supervisor.store.broker.admission import admit_client, admit_executor
from supervisor.store.broker.embedded import EmbeddedBroker
from supervisor.store.client import FleetClient, NatsFleetClient
from supervisor.store.log.event_log import EventLog
from supervisor.store.log.jetstream import JetStreamEventLog
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink, MemorySupervisorLink
from tests.fakes.memory_fleet import MemoryFleetClient
from tests.fakes.memory_log import MemoryEventLog

LEASE_S = 0.6


class Wire(Protocol):
    """Opens the ends of one broker, whose leases last `LEASE_S`."""

    def supervisor(self) -> AbstractAsyncContextManager[SupervisorLink]:
        """Connect as the supervisor."""
        ...

    def executor(self, name: str, pools: tuple[str, ...] = ("default",)) -> AbstractAsyncContextManager[ExecutorLink]:
        """Connect as an executor, admitted at its first connection."""
        ...

    def log(self) -> AbstractAsyncContextManager[EventLog]:
        """Open the event log."""
        ...

    def fleet(self) -> AbstractAsyncContextManager[FleetClient]:
        """Connect as a CLI with a client's rights; one at a time."""
        ...


class MemoryWire:
    """The fakes."""

    def __init__(self) -> None:
        self._broker = MemoryBroker(lease_s=LEASE_S, confirm_s=LEASE_S)
        self._log = MemoryEventLog()

    def supervisor(self) -> AbstractAsyncContextManager[SupervisorLink]:
        return MemorySupervisorLink.connect(self._broker)

    def executor(self, name: str, pools: tuple[str, ...] = ("default",)) -> AbstractAsyncContextManager[ExecutorLink]:
        return MemoryExecutorLink.connect(self._broker, name, pools)

    @asynccontextmanager
    async def log(self) -> AsyncIterator[EventLog]:
        yield self._log

    @asynccontextmanager
    async def fleet(self) -> AsyncIterator[FleetClient]:
        yield MemoryFleetClient(self._broker, self._log)


class NatsWire:
    """A real broker."""

    def __init__(self, broker: EmbeddedBroker, directory: Path) -> None:
        self._broker = broker
        self._directory = directory

    @classmethod
    @asynccontextmanager
    async def run(cls, directory: Path) -> AsyncIterator["NatsWire"]:
        """Run a broker for as long as the context lasts, its streams made."""
        async with EmbeddedBroker.run(directory) as broker:
            wire = cls(broker, directory)
            async with wire.supervisor():
                pass
            yield wire

    def supervisor(self) -> AbstractAsyncContextManager[NatsSupervisorLink]:
        return NatsSupervisorLink.connect(self._broker.supervisor, lease_s=LEASE_S, confirm_s=LEASE_S)

    @asynccontextmanager
    async def executor(self, name: str, pools: tuple[str, ...] = ("default",)) -> AsyncIterator[NatsExecutorLink]:
        credentials = await admit_executor(self._directory, name, pools, replace=True)
        async with NatsExecutorLink.connect(credentials) as link:
            yield link

    @asynccontextmanager
    async def log(self) -> AsyncIterator[EventLog]:
        async with self.supervisor() as link:
            yield JetStreamEventLog(link.connection)

    @asynccontextmanager
    async def fleet(self) -> AsyncIterator[NatsFleetClient]:
        credentials = await admit_client(self._directory, "cli", replace=True)
        async with NatsFleetClient.connect(credentials) as client:
            yield client
