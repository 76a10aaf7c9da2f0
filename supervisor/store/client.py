"""What a CLI may ask of a running supervisor (DECISIONS D19), over the FLEET account; not what it asks (`pipeline/submit`)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

from sandbox.blob import get_blob, put_blob
from sandbox.bus import Connection
from sandbox.bus.connection import CONNECT_S
from sandbox.bus.serving import ask_bytes
from sandbox.bus.supervisor_link import list_executors, watch_progress
from sandbox.contract import subjects
from sandbox.contract.blob import BlobRef, Bucket
from sandbox.contract.credentials import SupervisorCredentials
from sandbox.contract.errors import BrokerError, UsageError
from sandbox.contract.wire import Control, Heartbeat, Progress
from supervisor.pipeline.events import AnyEvent
from supervisor.store.log.jetstream import JetStreamEventLog
from supervisor.store.log.watching import watch_events

RUNS_MAX: Final = 1024
"""Subjects one direct read answers for: nats-server's own bound."""


class FleetClient(Protocol):
    """A CLI's end of the wire. Every call is bounded; a broker that does not answer raises `BrokerError`."""

    async def request(self, subject: str, payload: bytes, *, timeout_s: float = 30.0) -> bytes:
        """Ask the supervisor (`subjects.RPC_INTENT` and its like) and return its answer, JSON both ways.

        Raises:
            BrokerError: No supervisor answers, it took longer than `timeout_s`, or it could not handle the request.
            UsageError: The request is larger than the broker takes.
        """
        ...

    async def runs(self) -> list[str]:
        """Return the ids of all runs of the fleet, oldest first."""
        ...

    async def read(self, run_id: str) -> list[AnyEvent]:
        """Return a run's events so far; empty for an unknown run."""
        ...

    def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield a run's events numbered above `after_seq`, then each new one, without end."""
        ...

    def progress(self) -> AsyncIterator[Progress]:
        """Yield what running attempts of all runs do; lossy."""
        ...

    async def executors(self) -> list[Heartbeat]:
        """Return the executors whose life sign has not expired."""
        ...

    async def drain(self, executor: str, reason: str) -> None:
        """Tell an executor to take no more jobs and to leave when those it has are done; one-way, may be lost, harmless twice."""
        ...

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read an object of either bucket and verify its digest."""
        ...

    async def put_blob(self, name: str, data: bytes, bucket: Bucket = "IN") -> BlobRef:
        """Store an object."""
        ...


class NatsFleetClient:
    """Implements `FleetClient` over NATS."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._log = JetStreamEventLog(connection)

    @classmethod
    @asynccontextmanager
    async def connect(cls, credentials: SupervisorCredentials, *, connect_s: float = CONNECT_S) -> AsyncIterator["NatsFleetClient"]:
        """Connect for as long as the context lasts.

        Raises:
            BrokerError: Nobody is there within `connect_s`, or the key is refused.
        """
        async with Connection.open(
            credentials, name=credentials.client or "cli", inbox=credentials.inbox, connect_s=connect_s
        ) as connection:
            yield cls(connection)

    async def request(self, subject: str, payload: bytes, *, timeout_s: float = 30.0) -> bytes:
        """Ask the supervisor and return its answer."""
        if len(payload) > self._connection.payload_bytes_max:
            raise UsageError(f"the request is {len(payload)} bytes; at most {self._connection.payload_bytes_max} can be sent")
        return await ask_bytes(self._connection, subject, payload, timeout_s=timeout_s)

    async def runs(self) -> list[str]:
        """Return the ids of all runs of the fleet, oldest first: a client may read last events, not the stream's subjects."""
        try:
            last = await self._connection.direct(subjects.STREAM_EVENTS, {"multi_last": [subjects.events("*")]})
        except BrokerError as error:
            if " 413 " not in str(error):
                raise
            raise UsageError(f"this fleet has more than {RUNS_MAX:,} runs: name one by its whole id") from error
        return sorted(message.headers["Nats-Subject"].rsplit(".", 1)[1] for message in last)

    async def read(self, run_id: str) -> list[AnyEvent]:
        """Return a run's events so far; empty for an unknown run."""
        return await self._log.read(run_id)

    def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield a run's events numbered above `after_seq`, then each new one, without end."""
        return watch_events(self._connection, run_id, after_seq)

    def progress(self) -> AsyncIterator[Progress]:
        """Yield what running attempts of all runs do; lossy."""
        return watch_progress(self._connection)

    async def executors(self) -> list[Heartbeat]:
        """Return the executors whose life sign has not expired."""
        return await list_executors(self._connection)

    async def drain(self, executor: str, reason: str) -> None:
        """Tell an executor to take no more jobs and to leave when those it has are done."""
        control = Control(verb="drain", reason=reason)
        await self._connection.publish(subjects.control(executor, "drain"), control.model_dump_json().encode())

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read an object of either bucket and verify its digest."""
        return await get_blob(self._connection, ref)

    async def put_blob(self, name: str, data: bytes, bucket: Bucket = "IN") -> BlobRef:
        """Store an object."""
        return await put_blob(self._connection, bucket, name, data)
