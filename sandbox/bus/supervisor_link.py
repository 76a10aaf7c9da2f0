"""The supervisor's end of the wire over NATS (`contract.wire.SupervisorLink`); not the event log, nor what to answer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from sandbox.blob import get_blob, put_blob
from sandbox.bus.assets import CONFIRM_S, SUPERVISOR, ensure_bucket, ensure_lane, ensure_streams, ensure_supervisor_consumers
from sandbox.bus.connection import CONNECT_S, ELECTION_S, Connection
from sandbox.bus.lifetimes import Tasks
from sandbox.bus.messages import ApiError, Interrupted, Message, NoAnswer
from sandbox.bus.serving import Answer, serving
from sandbox.bus.unclaimed import Unclaimed
from sandbox.contract import subjects
from sandbox.contract.blob import BlobRef, Bucket, input_bucket, output_bucket
from sandbox.contract.credentials import FLEET, SupervisorCredentials
from sandbox.contract.errors import BrokerError, BrokerRefused, Rejected
from sandbox.contract.job import JobSpec
from sandbox.contract.result import AttemptResult
from sandbox.contract.wire import (
    LEASE_S,
    BudgetReply,
    BudgetRequest,
    ClaimReply,
    ClaimRequest,
    Control,
    Desk,
    Heartbeat,
    JoinReply,
    JoinRequest,
    Notice,
    Progress,
    RpcHandler,
    StoredResult,
)
from sandbox.log import Log

logger = Log(__name__)

PULL_S: Final = 10.0
RETRY_S: Final = 1.0


class NatsSupervisorLink:
    """The supervisor's connection, which may do anything in the FLEET account. `connection` serves the event log too."""

    def __init__(self, connection: Connection, served: AsyncExitStack, lease_s: float) -> None:
        self.connection = connection
        self._served = served
        self._lease_s = lease_s
        self._lanes: set[str] = set()
        self._buckets: set[str] = set()
        self._unclaimed = Unclaimed(connection)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        credentials: SupervisorCredentials,
        *,
        pools: tuple[str, ...] = ("default",),
        lease_s: float = LEASE_S,
        confirm_s: float = CONFIRM_S,
        connect_s: float = CONNECT_S,
    ) -> AsyncIterator["NatsSupervisorLink"]:
        """Connect for as long as the context lasts, and bring streams, buckets and consumers to this release's form.

        Args:
            credentials: A user of the FLEET account.
            pools: Pools whose consumers exist from the start; others are made when they are first used.
            lease_s: How long a delivered job is an executor's without a sign of life.
            confirm_s: How long a result taken from `results` may stay unconfirmed before it comes again.
            connect_s: How long the first connect may take.

        Raises:
            BrokerRefused: The broker does not know the key, or it is a client's.
            BrokerError: Nobody is there, or the broker cannot give what is needed.
        """
        if credentials.client is not None:
            raise BrokerRefused(f"the key of {credentials.client} is a client's: it may ask a supervisor, not be one")
        async with (
            Connection.open(credentials, name=FLEET, inbox=FLEET, connect_s=connect_s) as connection,
            AsyncExitStack() as served,
        ):
            link = cls(connection, served, lease_s)
            await link._ensure_assets(pools, confirm_s)
            yield link

    async def wait_lost(self) -> str:
        """Wait until the connection is gone for good and return why."""
        return await self.connection.wait_lost()

    async def publish_job(self, job: JobSpec, dedupe: str, executor: str = "") -> None:
        """Store a job for its pool, or for one executor of it; a second one with the same `dedupe` within 600 s is ignored.

        Raises:
            ValueError: The job is larger than a message may be (1 MiB): bulk belongs into the task bundle.
        """
        lane = subjects.lane(job.pool, executor)
        await self._ensure_lane(lane)
        stored = await self.connection.store(subjects.job(lane), job.model_dump_json().encode(), dedupe=dedupe)
        if not stored.duplicate:
            self._unclaimed.published(stored.seq, lane)

    async def credit(self, pool: str, executor: str = "") -> int:
        """Return how many more jobs a lane's waiting pulls could take at once; at least 0."""
        lane = subjects.lane(pool, executor)
        await self._ensure_lane(lane)
        info = await self.connection.api(f"CONSUMER.INFO.{subjects.STREAM_JOBS}.{lane}")
        return max(0, int(info["num_waiting"]) - int(info["num_pending"]))

    async def admit(self, executor: str, pools: tuple[str, ...]) -> None:
        """Make what is the executor's own: the bucket of its objects, and its lanes, so that its pulls are answered."""
        await self._ensure_bucket(output_bucket(executor))
        for pool in pools:
            await self._ensure_lane(subjects.lane(pool, executor))

    async def forget(self, executor: str, pools: tuple[str, ...]) -> None:
        """Remove the executor's own lanes with what is queued on them."""
        for pool in pools:
            lane = subjects.lane(pool, executor)
            self._lanes.discard(lane)
            self._unclaimed.forget(lane)
            with suppress(ApiError):  # it never had one
                await self.connection.api(f"CONSUMER.DELETE.{subjects.STREAM_JOBS}.{lane}")
            await self.connection.api(f"STREAM.PURGE.{subjects.STREAM_JOBS}", {"filter": subjects.job(lane)})

    async def notices(self) -> AsyncIterator[Notice]:
        """Yield what the broker says of executors' connections; lossy."""
        async with self.connection.subscription(subjects.SYS_CONNECT, subjects.SYS_DISCONNECT) as said:
            while True:
                try:
                    message = await said.next(60.0)
                except Interrupted:
                    continue
                notice = _notice(message) if message is not None else None
                if notice is not None:
                    yield notice

    async def cancel(self, executor: str, job_id: str, reason: str) -> None:
        """Tell an executor to stop an attempt; one-way, may be lost, so the claim is the truth."""
        control = Control(verb="cancel", job_id=job_id, reason=reason)
        await self.connection.publish(subjects.control(executor, "cancel"), control.model_dump_json().encode())

    async def redeliver(self, ack_subject: str) -> None:
        """Hand a dead executor's job out again at once; nothing happens if it is off the queue."""
        await self._settle(ack_subject, b"-NAK")
        self._unclaimed.redelivered(ack_subject)

    async def withdraw(self, ack_subject: str) -> None:
        """Remove a delivered job from the queue; nothing happens if it is off already."""
        await self._settle(ack_subject, b"+TERM")
        self._unclaimed.settled(ack_subject)

    async def results(self) -> AsyncIterator[StoredResult]:
        """Yield results in order, each again after `confirm_s` until it is confirmed.

        What is not a result, or speaks for another executor than its own, is logged and removed.
        """
        while True:
            message = await self._pulled(subjects.STREAM_RESULTS)
            if message is None:
                continue
            result = _result(message)
            if result is None:
                with suppress(BrokerError):  # it comes again, and is removed then
                    await self.connection.request(message.reply, b"+TERM")
            else:
                yield _NatsResult(self.connection, message.reply, result)

    async def progress(self) -> AsyncIterator[Progress]:
        """Yield what running attempts do; lossy."""
        async for progress in watch_progress(self.connection):
            yield progress

    async def telemetry(self) -> AsyncIterator[bytes]:
        """Yield gzip OTLP payloads of executors; one is confirmed when the next is asked for."""
        while True:
            message = await self._pulled(subjects.STREAM_TEL)
            if message is not None:
                yield message.data
                await self.connection.publish(message.reply, b"+ACK")

    async def serve(self, desk: Desk, rpcs: dict[str, RpcHandler]) -> None:
        """Answer executors and CLIs from now on, until the link is closed.

        A handler's `AndonError` is told to the caller, who sees a `BrokerError`; any other exception is logged here.
        """

        async def join(request: Message) -> bytes:
            asked = JoinRequest.model_validate_json(request.data)
            if asked.executor != request.subject.rsplit(".", 1)[-1]:
                return JoinReply(accepted=False, reason="the request names another executor").model_dump_json().encode()
            return (await desk.join(asked)).model_dump_json().encode()

        async def claim(request: Message) -> bytes:
            asked = ClaimRequest.model_validate_json(request.data)
            if asked.executor != request.subject.rsplit(".", 1)[-1] or subjects.pool_of_ack(asked.ack_subject) is None:
                return ClaimReply(decision="refused", reason="the request names another executor or no job").model_dump_json().encode()
            self._unclaimed.settled(asked.ack_subject)
            return (await desk.claim(asked)).model_dump_json().encode()

        async def budget(request: Message) -> bytes:
            asked = BudgetRequest.model_validate_json(request.data)
            if asked.executor != request.subject.rsplit(".", 1)[-1]:
                refusal = BudgetReply(granted=False, remaining_nano_usd=0, reason="the request names another executor")
                return refusal.model_dump_json().encode()
            return (await desk.budget(asked)).model_dump_json().encode()

        (await self._served.enter_async_context(Tasks.open())).start(self._unclaimed.watch())
        await self._served.enter_async_context(serving(self.connection, subjects.join("*"), join))
        await self._served.enter_async_context(serving(self.connection, subjects.claim("*"), claim))
        await self._served.enter_async_context(serving(self.connection, subjects.budget("*"), budget))
        for subject, handler in rpcs.items():
            await self._served.enter_async_context(serving(self.connection, subject, _bytes_only(handler)))
        # A round trip on the same connection: the broker knows the subscriptions now, so the first caller is answered.
        await self.connection.api("INFO")

    async def executors(self) -> list[Heartbeat]:
        """Return the executors whose life sign has not expired, by name."""
        try:
            return await list_executors(self.connection)
        except NoAnswer:
            # Life signs are kept in memory, and their stream went with a broker that was killed: from now on they have a place again.
            await ensure_streams(self.connection)
            return await list_executors(self.connection)

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read an object of any bucket and verify its digest."""
        return await get_blob(self.connection, ref)

    async def put_blob(self, name: str, data: bytes, bucket: Bucket = "IN") -> BlobRef:
        """Store an object; a bucket is made when it is first used."""
        await self._ensure_bucket(bucket)
        return await put_blob(self.connection, bucket, name, data)

    async def _ensure_assets(self, pools: tuple[str, ...], confirm_s: float) -> None:
        """Make streams and consumers; in a cluster, wait for its leaders."""
        until = time.monotonic() + (ELECTION_S if self.connection.is_clustered else 0)
        while True:
            try:
                await ensure_streams(self.connection)
                await ensure_supervisor_consumers(self.connection, confirm_s=confirm_s)
                for pool in pools:
                    await self._ensure_lane(subjects.lane(pool))
                    await self._ensure_bucket(input_bucket(pool))
            except BrokerError:
                if time.monotonic() > until or self.connection.is_lost:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _ensure_lane(self, lane: str) -> None:
        if lane not in self._lanes:
            await ensure_lane(self.connection, lane, lease_s=self._lease_s)
            self._lanes.add(lane)

    async def _ensure_bucket(self, bucket: Bucket) -> None:
        if bucket != "IN" and bucket not in self._buckets:
            await ensure_bucket(self.connection, bucket)
            self._buckets.add(bucket)

    async def _settle(self, ack_subject: str, verb: bytes) -> None:
        if subjects.pool_of_ack(ack_subject) is None:  # an executor chose it: anything else would let it steer our publishing
            raise Rejected(f"{ack_subject!r} is not the ack subject of a job")
        await self.connection.request(ack_subject, verb)

    async def _pulled(self, stream: str) -> Message | None:
        try:
            await self.connection.wait_up(PULL_S)
            return await self.connection.pull(stream, SUPERVISOR, wait_s=PULL_S)
        except BrokerError:
            # Down for a while, or opening its streams after a restart: only a connection that is gone for good ends the iteration.
            if self.connection.is_lost:
                raise
            await asyncio.sleep(RETRY_S)
            return None


class _NatsResult:
    def __init__(self, connection: Connection, ack_subject: str, result: AttemptResult) -> None:
        self._connection = connection
        self._ack_subject = ack_subject
        self.result = result

    async def confirm(self) -> None:
        """Do not deliver it again."""
        await self._connection.request(self._ack_subject, b"+ACK")


async def watch_progress(connection: Connection) -> AsyncIterator[Progress]:
    """Yield the progress of all executors; what is not one is skipped."""
    async with connection.subscription(subjects.progress("*")) as said:
        while True:
            try:
                message = await said.next(60.0)
            except Interrupted:
                continue
            if message is None:
                continue
            try:
                progress = Progress.model_validate_json(message.data)
            except ValidationError:
                continue
            if progress.executor == message.subject.rsplit(".", 1)[-1]:
                yield progress


async def list_executors(connection: Connection) -> list[Heartbeat]:
    """Return the life signs that have not expired, by name; what is not one is logged and left out."""
    beats: list[Heartbeat] = []
    for message in await connection.direct(f"KV_{subjects.KV_EXECUTORS}", {"multi_last": [subjects.life_sign("*")]}):
        name = message.headers.get("Nats-Subject", "").rsplit(".", 1)[-1]
        try:
            beat = Heartbeat.model_validate_json(message.data)
        except ValidationError:
            logger.warning("life_sign.unreadable", executor=name)
            continue
        if beat.executor == name:
            beats.append(beat.model_copy(update={"seen_at": _seconds(message.headers.get("Nats-Time-Stamp", ""))}))
    return sorted(beats, key=lambda beat: beat.executor)


def _seconds(stamp: str) -> float:
    """Return the broker's time stamp (RFC 3339, nanoseconds) in Unix seconds; 0 if there is none."""
    try:
        return datetime.fromisoformat(f"{stamp.rstrip('Z')[:26]}+00:00").timestamp()
    except ValueError:
        return 0.0


def _notice(message: Message) -> Notice | None:
    """Return what a `$SYS` event says, None if it is not about an executor."""
    try:
        name = json.loads(message.data)["client"]["name"]
        return Notice(executor=name, is_connected=message.subject == subjects.SYS_CONNECT)
    except (ValueError, KeyError, TypeError):
        return None


def _result(message: Message) -> AttemptResult | None:
    executor = message.subject.split(".")[2]
    try:
        result = AttemptResult.model_validate_json(message.data)
    except ValidationError as error:
        logger.warning("result.unreadable", executor=executor, errors=error.error_count())
        return None
    if result.executor != executor:
        logger.warning("result.of_another", "an executor spoke for another", executor=executor, claimed_executor=result.executor)
        return None
    return result


def _bytes_only(handler: RpcHandler) -> Answer:
    async def answer(request: Message) -> bytes:
        return await handler(request.data)

    return answer
