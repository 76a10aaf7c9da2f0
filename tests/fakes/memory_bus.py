"""A broker in memory and the two ends of its wire, with the real ones' rules; one suite over both (`tests/conformance`).

It is for tests of what is built on the wire. Its clock can be injected; after moving it, call `MemoryBroker.poke`.
"""

import asyncio
import hashlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sandbox.contract.blob import BlobRef, Bucket, input_bucket, output_bucket
from sandbox.contract.errors import BrokerError, Rejected
from sandbox.contract.job import JobSpec
from sandbox.contract.result import AttemptResult
from sandbox.contract.subjects import lane, pool_of_ack
from sandbox.contract.wire import (
    LEASE_S,
    BudgetReply,
    BudgetRequest,
    ClaimReply,
    ClaimRequest,
    Control,
    Delivery,
    Desk,
    Heartbeat,
    JoinReply,
    JoinRequest,
    Notice,
    Progress,
    RpcHandler,
)

LIFE_SIGN_S = 15.0
POLL_S = 0.01
"""How soon a waiter notices that a lease expired on the real clock."""


@dataclass
class _Queued:
    seq: int
    lane: str
    data: bytes
    published_at: float
    deliveries: int = 0
    leased_until: float | None = None


@dataclass
class _Stored:
    data: bytes
    leased_until: float | None = None
    confirmed: bool = False


@dataclass
class MemoryBroker:
    """What a broker keeps: queues, results, life signs, objects. Its links share it."""

    clock: Callable[[], float] = time.monotonic
    lease_s: float = LEASE_S
    confirm_s: float = 30.0
    dedupe_s: float = 600.0
    jobs: list[_Queued] = field(default_factory=list)
    results: list[_Stored] = field(default_factory=list)
    telemetry: deque[bytes] = field(default_factory=deque)
    life_signs: dict[str, tuple[float, Heartbeat]] = field(default_factory=dict)
    blobs: dict[tuple[Bucket, str], bytes] = field(default_factory=dict)
    waiting: Counter[str] = field(default_factory=Counter)
    desk: Desk | None = None
    rpcs: dict[str, RpcHandler] = field(default_factory=dict)
    controls: dict[str, set["asyncio.Queue[Control]"]] = field(default_factory=dict)
    watchers: set["asyncio.Queue[Progress]"] = field(default_factory=set)
    observers: set["asyncio.Queue[Notice]"] = field(default_factory=set)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _seq: int = 0
    _seen: dict[str, float] = field(default_factory=dict)

    async def poke(self) -> None:
        """Let every waiter look again, e.g. after the clock was moved."""
        async with self.changed:
            self.changed.notify_all()

    def is_repeated(self, dedupe: str) -> bool:
        """Remember `dedupe`; return whether it was seen within the window."""
        now = self.clock()
        repeated = now - self._seen.get(dedupe, float("-inf")) < self.dedupe_s
        if not repeated:
            self._seen[dedupe] = now
        return repeated

    def enqueue(self, job: JobSpec, lane: str) -> None:
        """Store a job for a lane."""
        self._seq += 1
        self.jobs.append(_Queued(self._seq, lane, job.model_dump_json().encode(), time.time()))

    def notify(self, notice: Notice) -> None:
        """Tell whoever observes that an executor's connection opened or closed."""
        for observer in self.observers:
            if not observer.full():
                observer.put_nowait(notice)

    def take(self, lanes: Collection[str]) -> Delivery | None:
        """Lease the oldest job of the lanes that nobody holds."""
        for queued in self.jobs:
            if queued.lane in lanes and (queued.leased_until is None or queued.leased_until <= self.clock()):
                queued.deliveries += 1
                queued.leased_until = self.clock() + self.lease_s
                ack_subject = f"$JS.ACK.JOBS.{queued.lane}.{queued.deliveries}.{queued.seq}.{queued.seq}.{time.time_ns()}.0"
                job = JobSpec.model_validate_json(queued.data)
                return Delivery(job=job, ack_subject=ack_subject, deliveries=queued.deliveries, published_at=queued.published_at)
        return None

    def queued(self, ack_subject: str) -> _Queued | None:
        """Return the job an ack subject names; like the broker, by sequence only: an old subject still names it."""
        if pool_of_ack(ack_subject) is None:
            raise Rejected(f"{ack_subject!r} is not the ack subject of a job")
        seq = int(ack_subject.split(".")[5])
        return next((job for job in self.jobs if job.seq == seq), None)

    def remove(self, ack_subject: str) -> None:
        """Take a job off its queue."""
        queued = self.queued(ack_subject)
        if queued is not None:
            self.jobs.remove(queued)


class MemoryLink:
    """What both ends share: a life that ends, and objects."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._closed = False

    def _open(self) -> MemoryBroker:
        if self._closed:
            raise BrokerError("this link is closed")
        return self._broker

    async def _close(self) -> None:
        self._closed = True
        await self._broker.poke()

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read an object and verify its digest."""
        data = self._open().blobs.get((ref.bucket, ref.name))
        if data is None:
            raise BrokerError(f"object {ref.name} is not in {ref.bucket}")
        if len(data) != ref.size_bytes or hashlib.sha256(data).hexdigest() != ref.sha256:
            raise Rejected(f"object {ref.name} is not the one that was announced")
        return data

    async def _put(self, bucket: Bucket, name: str, data: bytes) -> BlobRef:
        ref = BlobRef(bucket=bucket, name=name, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        self._open().blobs[bucket, name] = bytes(data)
        return ref


class MemoryExecutorLink(MemoryLink):
    """The executor's end (`contract.wire.ExecutorLink`)."""

    def __init__(self, broker: MemoryBroker, executor: str, pools: tuple[str, ...]) -> None:
        super().__init__(broker)
        self._executor = executor
        self._pools = pools
        self._controls: asyncio.Queue[Control] = asyncio.Queue(maxsize=1024)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, broker: MemoryBroker, executor: str, pools: tuple[str, ...] = ("default",)
    ) -> AsyncIterator["MemoryExecutorLink"]:
        """Open the link for as long as the context lasts."""
        link = cls(broker, executor, pools)
        listeners = broker.controls.setdefault(executor, set())
        listeners.add(link._controls)
        broker.notify(Notice(executor=executor, is_connected=True))
        try:
            yield link
        finally:
            broker.notify(Notice(executor=executor, is_connected=False))
            listeners.discard(link._controls)
            await link._close()

    async def wait_lost(self) -> str:
        """Wait until the link is closed, which is the only way memory is lost."""
        while not self._closed:
            await _wait(self._broker.changed, POLL_S)
        return "this link is closed"

    async def join(self, request: JoinRequest) -> JoinReply:
        """Introduce this executor."""
        broker = self._open()
        if broker.desk is None:
            raise BrokerError("no supervisor answers")
        if request.executor != self._executor:
            return JoinReply(accepted=False, reason="the request names another executor")
        return await broker.desk.join(request)

    async def next_job(self, wait_s: float) -> Delivery | None:
        """Pull one job from any of this executor's lanes, waiting at most `wait_s`."""
        broker = self._open()
        lanes = [lane(pool, whose) for pool in self._pools for whose in ("", self._executor)]
        until = time.monotonic() + wait_s
        broker.waiting.update(lanes)
        try:
            while (left := until - time.monotonic()) > 0 and not self._closed:
                if delivery := broker.take(lanes):
                    return delivery
                await _wait(broker.changed, min(left, POLL_S))
        finally:
            broker.waiting.subtract(lanes)
        return None

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Ask the supervisor for the attempt."""
        broker = self._open()
        if broker.desk is None:
            raise BrokerError("no supervisor answers")
        if request.executor != self._executor or pool_of_ack(request.ack_subject) is None:
            return ClaimReply(decision="refused", reason="the request names another executor or no job")
        return await broker.desk.claim(request)

    async def budget(self, request: BudgetRequest) -> BudgetReply:
        """Reserve, extend or settle."""
        broker = self._open()
        if broker.desk is None:
            raise BrokerError("no supervisor answers")
        if request.executor != self._executor:
            return BudgetReply(granted=False, remaining_nano_usd=0, reason="the request names another executor")
        return await broker.desk.budget(request)

    async def in_progress(self, ack_subject: str) -> None:
        """Renew the lease."""
        broker = self._open()
        queued = broker.queued(ack_subject)
        if queued is not None:
            queued.leased_until = broker.clock() + broker.lease_s

    async def ack(self, ack_subject: str) -> None:
        """Remove the job."""
        self._open().remove(ack_subject)

    async def publish_result(self, result: AttemptResult) -> None:
        """Store a result, once for each attempt."""
        broker = self._open()
        if result.executor != self._executor:
            raise ValueError(f"executor {self._executor} cannot speak as {result.executor}")
        if not broker.is_repeated(f"{result.job_id}:{result.attempt}:{result.token}"):
            broker.results.append(_Stored(result.model_dump_json().encode()))
            await broker.poke()

    async def publish_progress(self, progress: Progress) -> None:
        """Say what an attempt does; dropped if nobody watches."""
        for watcher in self._open().watchers:
            if not watcher.full():
                watcher.put_nowait(progress)

    async def publish_telemetry(self, payload: bytes) -> None:
        """Store spans for the supervisor."""
        self._open().telemetry.append(payload)
        await self._broker.poke()

    async def heartbeat(self, beat: Heartbeat) -> None:
        """Write this executor's life sign."""
        if beat.executor != self._executor:
            raise ValueError(f"executor {self._executor} cannot speak as {beat.executor}")
        broker = self._open()
        broker.life_signs[beat.executor] = (broker.clock() + LIFE_SIGN_S, beat.model_copy(update={"seen_at": time.time()}))

    async def controls(self) -> AsyncIterator[Control]:
        """Yield what the supervisor says to this executor."""
        while not self._closed:
            try:
                async with asyncio.timeout(POLL_S):
                    said = await self._controls.get()
            except TimeoutError:
                continue
            yield said

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read an object of one of its pools' buckets and verify its digest."""
        if ref.bucket not in map(input_bucket, self._pools):
            raise BrokerError(f"executor {self._executor} has no right to read bucket {ref.bucket}")
        return await super().get_blob(ref)

    async def put_blob(self, name: str, data: bytes) -> BlobRef:
        """Store an object in this executor's own bucket."""
        return await self._put(output_bucket(self._executor), name, data)


class _MemoryResult:
    def __init__(self, stored: _Stored) -> None:
        self._stored = stored
        self.result = AttemptResult.model_validate_json(stored.data)

    async def confirm(self) -> None:
        self._stored.confirmed = True


class MemorySupervisorLink(MemoryLink):
    """The supervisor's end (`contract.wire.SupervisorLink`)."""

    @classmethod
    @asynccontextmanager
    async def connect(cls, broker: MemoryBroker) -> AsyncIterator["MemorySupervisorLink"]:
        """Open the link for as long as the context lasts."""
        link = cls(broker)
        try:
            yield link
        finally:
            broker.desk, broker.rpcs = None, {}
            await link._close()

    async def publish_job(self, job: JobSpec, dedupe: str, executor: str = "") -> None:
        """Store a job; the same `dedupe` again within the window is ignored."""
        broker = self._open()
        if not broker.is_repeated(f"job:{dedupe}"):
            broker.enqueue(job, lane(job.pool, executor))
            await broker.poke()

    async def credit(self, pool: str, executor: str = "") -> int:
        """Return how many more jobs a lane's waiting pulls could take."""
        broker, name = self._open(), lane(pool, executor)
        undelivered = sum(1 for job in broker.jobs if job.lane == name and job.deliveries == 0)
        return max(0, broker.waiting[name] - undelivered)

    async def admit(self, executor: str, pools: tuple[str, ...]) -> None:
        """Make the executor's own lanes, which memory needs not."""
        self._open()

    async def forget(self, executor: str, pools: tuple[str, ...]) -> None:
        """Remove what is queued for this executor alone."""
        broker = self._open()
        gone = {lane(pool, executor) for pool in pools}
        broker.jobs = [job for job in broker.jobs if job.lane not in gone]

    async def notices(self) -> AsyncIterator[Notice]:
        """Yield what the broker says of executors' connections."""
        observer: asyncio.Queue[Notice] = asyncio.Queue(maxsize=1024)
        self._open().observers.add(observer)
        try:
            while not self._closed:
                try:
                    async with asyncio.timeout(POLL_S):  # `wait_for` may swallow a cancellation that comes with a value (3.11)
                        said = await observer.get()
                except TimeoutError:
                    continue
                yield said
        finally:
            self._broker.observers.discard(observer)

    async def cancel(self, executor: str, job_id: str, reason: str) -> None:
        """Tell an executor to stop an attempt."""
        for listener in self._open().controls.get(executor, set()):
            if not listener.full():
                listener.put_nowait(Control(verb="cancel", job_id=job_id, reason=reason))

    async def redeliver(self, ack_subject: str) -> None:
        """Hand a dead executor's job out again."""
        queued = self._open().queued(ack_subject)
        if queued is not None:
            queued.leased_until = self._broker.clock()
            await self._broker.poke()

    async def withdraw(self, ack_subject: str) -> None:
        """Remove a delivered job from the queue."""
        self._open().remove(ack_subject)

    async def results(self) -> AsyncIterator[_MemoryResult]:
        """Yield results in order, each again until it is confirmed."""
        broker = self._open()
        while not self._closed:
            for stored in list(broker.results):
                if not stored.confirmed and (stored.leased_until is None or stored.leased_until <= broker.clock()):
                    stored.leased_until = broker.clock() + broker.confirm_s
                    yield _MemoryResult(stored)
                    break
            else:
                await _wait(broker.changed, POLL_S)

    async def progress(self) -> AsyncIterator[Progress]:
        """Yield what running attempts do."""
        watcher: asyncio.Queue[Progress] = asyncio.Queue(maxsize=1024)
        self._open().watchers.add(watcher)
        try:
            while not self._closed:
                try:
                    async with asyncio.timeout(POLL_S):  # `wait_for` may swallow a cancellation that comes with a value (3.11)
                        said = await watcher.get()
                except TimeoutError:
                    continue
                yield said
        finally:
            self._broker.watchers.discard(watcher)

    async def telemetry(self) -> AsyncIterator[bytes]:
        """Yield the payloads of executors, each once."""
        broker = self._open()
        while not self._closed:
            if broker.telemetry:
                yield broker.telemetry.popleft()
            else:
                await _wait(broker.changed, POLL_S)

    async def serve(self, desk: Desk, rpcs: dict[str, RpcHandler]) -> None:
        """Answer executors and CLIs until the link is closed."""
        broker = self._open()
        broker.desk, broker.rpcs = desk, rpcs

    async def executors(self) -> list[Heartbeat]:
        """Return the executors whose life sign has not expired."""
        broker = self._open()
        return [beat for _, (until, beat) in sorted(broker.life_signs.items()) if until > broker.clock()]

    async def put_blob(self, name: str, data: bytes, bucket: Bucket = "IN") -> BlobRef:
        """Store an object."""
        return await self._put(bucket, name, data)


async def _wait(changed: asyncio.Condition, seconds: float) -> None:
    """Wait until something changed, at most `seconds`."""
    try:
        async with asyncio.timeout(seconds), changed:
            await changed.wait()
    except TimeoutError:
        return
