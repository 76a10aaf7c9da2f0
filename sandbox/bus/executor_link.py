"""The executor's end of the wire over NATS (`contract.wire.ExecutorLink`); not what an executor does with a job."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from pydantic import ValidationError

from sandbox.blob import get_blob, put_blob
from sandbox.bus.connection import CONNECT_S, Connection
from sandbox.bus.messages import Interrupted, Message, NoAnswer
from sandbox.bus.serving import ask
from sandbox.contract import subjects
from sandbox.contract.blob import BlobRef, input_bucket, output_bucket
from sandbox.contract.credentials import ExecutorCredentials
from sandbox.contract.errors import BrokerError
from sandbox.contract.job import JobSpec
from sandbox.contract.result import AttemptResult
from sandbox.contract.wire import (
    BudgetReply,
    BudgetRequest,
    ClaimReply,
    ClaimRequest,
    Control,
    Delivery,
    Heartbeat,
    JoinReply,
    JoinRequest,
    Progress,
)
from sandbox.log import Log

logger = Log(__name__)

LIFE_SIGN_S: Final = 15
CONTROL_POLL_S: Final = 30.0
NO_CONSUMER_S: Final = 1.0
"""How long to wait when the pool has no consumer yet: the supervisor makes it at its start."""


class NatsExecutorLink:
    """One executor's connection. Its rights are those of its key: its own subjects, its pools, the objects of IN."""

    def __init__(self, connection: Connection, credentials: ExecutorCredentials) -> None:
        self._connection = connection
        self._executor = credentials.executor
        self._pools = credentials.pools
        self._readable = frozenset(map(input_bucket, credentials.pools))

    @classmethod
    @asynccontextmanager
    async def connect(cls, credentials: ExecutorCredentials, *, connect_s: float = CONNECT_S) -> AsyncIterator["NatsExecutorLink"]:
        """Connect for as long as the context lasts.

        Raises:
            BrokerError: Nobody is there within `connect_s`, or the key is refused.
        """
        name = credentials.executor
        async with Connection.open(credentials, name=name, inbox=name, connect_s=connect_s) as connection:
            yield cls(connection, credentials)

    async def wait_lost(self) -> str:
        """Wait until the connection is gone for good and return why; the daemon then has to end and be started again."""
        return await self._connection.wait_lost()

    async def join(self, request: JoinRequest) -> JoinReply:
        """Introduce this executor; waits at most 5 s."""
        return await ask(self._connection, subjects.join(self._executor), request, JoinReply)

    async def next_job(self, wait_s: float) -> Delivery | None:
        """Pull one job from any of this executor's lanes, waiting at most `wait_s` (keep it below 20 s: NATS.md §2)."""
        await self._connection.wait_up(wait_s)
        lanes = [subjects.lane(pool, whose) for pool in self._pools for whose in ("", self._executor)]
        try:
            message = await self._connection.pull(subjects.STREAM_JOBS, *lanes, wait_s=wait_s)
        except NoAnswer:
            await asyncio.sleep(min(NO_CONSUMER_S, wait_s))
            return None
        return _delivery(message) if message is not None else None

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Ask the supervisor for the attempt; waits at most 5 s."""
        return await ask(self._connection, subjects.claim(self._executor), request, ClaimReply)

    async def budget(self, request: BudgetRequest) -> BudgetReply:
        """Reserve, extend or settle; waits at most 5 s and is never granted locally."""
        return await ask(self._connection, subjects.budget(self._executor), request, BudgetReply)

    async def in_progress(self, ack_subject: str) -> None:
        """Renew the lease; returns only when the broker confirmed it."""
        await self._connection.request(_checked(ack_subject), b"+WPI")

    async def ack(self, ack_subject: str) -> None:
        """Remove the job, confirmed; call it only after its result is stored."""
        await self._connection.request(_checked(ack_subject), b"+ACK")

    async def publish_result(self, result: AttemptResult) -> None:
        """Store a result durably; publishing the same attempt twice (within 600 s) stores it once.

        Raises:
            ValueError: It names another executor, or is larger than a message may be (1 MiB).
        """
        if result.executor != self._executor:
            raise ValueError(f"executor {self._executor} cannot speak as {result.executor}")
        # The message id holds a secret of the attempt: another executor cannot use it up beforehand (ABUSE N05).
        secret = hashlib.sha256(result.token.encode()).hexdigest()[:32]
        dedupe = f"{result.job_id}:{result.attempt}:{secret}"
        await self._connection.store(subjects.result(self._executor), result.model_dump_json().encode(), dedupe=dedupe)

    async def publish_progress(self, progress: Progress) -> None:
        """Say what an attempt does; dropped when nobody listens or there is no connection."""
        await self._connection.publish(subjects.progress(self._executor), progress.model_dump_json().encode())

    async def publish_telemetry(self, payload: bytes) -> None:
        """Store gzip OTLP spans for the supervisor; durable.

        Raises:
            ValueError: Larger than a message may be (1 MiB).
        """
        dedupe = hashlib.sha256(payload).hexdigest()
        await self._connection.store(subjects.telemetry(self._executor), payload, dedupe=f"{self._executor}:{dedupe}")

    async def heartbeat(self, beat: Heartbeat) -> None:
        """Write this executor's life sign, which lasts 15 s."""
        if beat.executor != self._executor:
            raise ValueError(f"executor {self._executor} cannot speak as {beat.executor}")
        headers = {"Nats-TTL": f"{LIFE_SIGN_S}s"}
        await self._connection.store(subjects.life_sign(self._executor), beat.model_dump_json().encode(), headers=headers)

    async def controls(self) -> AsyncIterator[Control]:
        """Yield what the supervisor says to this executor; what is said while the connection is down is lost."""
        async with self._connection.subscription(subjects.control(self._executor, "*"), subjects.CTL_ALL) as said:
            while True:
                try:
                    message = await said.next(CONTROL_POLL_S)
                except Interrupted:
                    continue
                if message is None:
                    continue
                try:
                    yield Control.model_validate_json(message.data)
                except ValidationError:
                    logger.warning("control.unreadable", "a control message cannot be read by this release", subject=message.subject)

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read an object of one of its pools' buckets and verify its digest."""
        if ref.bucket not in self._readable:
            raise BrokerError(f"executor {self._executor} has no right to read bucket {ref.bucket}")
        return await get_blob(self._connection, ref)

    async def put_blob(self, name: str, data: bytes) -> BlobRef:
        """Store an object in this executor's own bucket."""
        return await put_blob(self._connection, output_bucket(self._executor), name, data)


def _delivery(message: Message) -> Delivery | None:
    """Parse a pulled job; one we cannot read stays on the queue for a newer executor, and is said."""
    _, _, _, _, deliveries, _, _, published_ns, _ = message.reply.split(".")
    try:
        job = JobSpec.model_validate_json(message.data)
    except ValidationError as error:
        logger.warning("job.unreadable", "a job cannot be read by this release", ack_subject=message.reply, errors=error.error_count())
        return None
    return Delivery(job=job, ack_subject=message.reply, deliveries=int(deliveries), published_at=int(published_ns) / 1e9)


def _checked(ack_subject: str) -> str:
    if subjects.pool_of_ack(ack_subject) is None:
        raise ValueError(f"{ack_subject!r} is not the ack subject of a job")
    return ack_subject
