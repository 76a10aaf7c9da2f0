"""Objects in and out of the broker's object store, verified; not which objects there are (`contract/blob.py` names them).

The layout is NATS's own (ADR-20: chunks under `$O.<bucket>.C.<id>`, one record under `$O.<bucket>.M.<name>`), so that the
`nats` command reads our objects, but the client library's store is not used: its `get` is quadratic and can hang for ever
(NATS.md §7). Writing needs only the right to publish chunks and records, reading only `DIRECT.GET` of the bucket: what an
executor may do. A record never replaces another by rollup, because that right would let one executor empty the bucket.
"""

import asyncio
import base64
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from sandbox.contract.blob import BlobRef, Bucket
from sandbox.contract.errors import BrokerError, Rejected

CHUNKS_IN_FLIGHT = 8
BATCH_BYTES_MAX = 16 << 20
"""How much one read asks for at once."""
TRIES = 3
RETRY_S = 0.5
LAG_S = (0.0, 0.05, 0.2, 0.5)
"""Another server of a cluster may answer than the one that confirmed the object, and learn of it a moment later."""
HASH_INLINE_BYTES_MAX = 256 << 10
"""Larger objects are hashed in a thread (DECISIONS G18)."""

_CHUNK_ID = re.compile(r"[A-Za-z0-9]{1,64}")


class _Read(Protocol):
    @property
    def data(self) -> bytes: ...

    @property
    def headers(self) -> Mapping[str, str]: ...


class _Stored(Protocol):
    @property
    def seq(self) -> int: ...


class Streams(Protocol):
    """What is needed of a connection (`sandbox.bus.Connection` is one)."""

    @property
    def payload_bytes_max(self) -> int:
        """The largest message."""
        ...

    async def store(self, subject: str, payload: bytes, *, dedupe: str | None = None) -> _Stored:
        """Publish, confirmed, into the stream that listens on `subject`; again after a lost answer, once for each `dedupe`."""
        ...

    async def direct(self, stream: str, query: Mapping[str, Any]) -> Sequence[_Read]:
        """Read stored messages."""
        ...


async def put_blob(streams: Streams, bucket: Bucket, name: str, data: bytes) -> BlobRef:
    """Store an object under a name of its own and return what names it; an object of that name is left behind, unread.

    Raises:
        BrokerError: Not stored after three tries, or the bucket is full. What was written of it expires with the bucket.
    """
    ref = BlobRef(bucket=bucket, name=name, sha256=await _sha256(data), size_bytes=len(data))
    for left in reversed(range(TRIES)):
        try:
            await _put(streams, ref, data)
            break
        except BrokerError:
            if not left:
                raise
    return ref


async def get_blob(streams: Streams, ref: BlobRef) -> bytes:
    """Return an object's bytes, which are exactly those the reference announced.

    Raises:
        BrokerError: It is not there (never stored, or expired), or the broker stopped answering.
        Rejected: What is stored under the name is not what the reference announced.
    """
    record = await _record(streams, ref)
    chunk_id = str(record.get("nuid", ""))
    if record.get("size") != ref.size_bytes or not _CHUNK_ID.fullmatch(chunk_id):
        raise Rejected(f"object {ref.name} in {ref.bucket} is not the one that was announced")
    chunks: list[bytes] = []
    missing, after = ref.size_bytes, 0
    lags = list(LAG_S)
    while missing > 0:
        batch = await _chunks(streams, ref, chunk_id, after)
        if not batch and lags:
            await asyncio.sleep(lags.pop(0))
            continue
        if not batch:
            raise BrokerError(f"object {ref.name} in {ref.bucket} lacks {missing} bytes")
        for message in batch:
            if not message.data:  # never written by us; a million of them would only cost time
                raise Rejected(f"object {ref.name} in {ref.bucket} has an empty chunk")
            chunks.append(message.data)
            missing -= len(message.data)
        after = int(batch[-1].headers["Nats-Sequence"])
    data = b"".join(chunks)
    if missing < 0 or await _sha256(data) != ref.sha256:
        raise Rejected(f"object {ref.name} in {ref.bucket} is not the one that was announced")
    return data


async def _put(streams: Streams, ref: BlobRef, data: bytes) -> None:
    chunk_id = secrets.token_hex(11)
    chunk_bytes = streams.payload_bytes_max
    free = asyncio.Semaphore(CHUNKS_IN_FLIGHT)

    async def send(number: int, chunk: bytes) -> int:
        try:
            return (await streams.store(f"$O.{ref.bucket}.C.{chunk_id}", chunk, dedupe=f"{chunk_id}:{number}")).seq
        finally:
            free.release()

    sent: list[asyncio.Task[int]] = []
    try:
        async with asyncio.TaskGroup() as group:
            for number, chunk in enumerate(_slices(data, chunk_bytes)):
                await free.acquire()
                sent.append(group.create_task(send(number, chunk)))
    except ExceptionGroup as failed:
        raise _first(failed) from failed
    stored = [task.result() for task in sent]
    if stored != sorted(stored):
        raise BrokerError(f"the chunks of object {ref.name} were stored out of order")
    record = {
        "name": ref.name,
        "bucket": ref.bucket,
        "nuid": chunk_id,
        "size": ref.size_bytes,
        "mtime": datetime.now(UTC).isoformat(),
        "chunks": len(stored),
        "digest": f"SHA-256={base64.urlsafe_b64encode(bytes.fromhex(ref.sha256)).decode()}",
        "options": {"max_chunk_size": chunk_bytes},
    }
    await streams.store(_record_subject(ref), json.dumps(record).encode(), dedupe=f"{chunk_id}:record")


async def _record(streams: Streams, ref: BlobRef) -> dict[str, Any]:
    found: Sequence[_Read] = []
    for pause_s in LAG_S:
        await asyncio.sleep(pause_s)
        if found := await _read(streams, ref, {"last_by_subj": _record_subject(ref)}):
            break
    if not found:
        raise BrokerError(f"object {ref.name} is not in {ref.bucket}")
    try:
        record = json.loads(found[0].data)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise Rejected(f"the record of object {ref.name} in {ref.bucket} cannot be read")
    return record


async def _chunks(streams: Streams, ref: BlobRef, chunk_id: str, after: int) -> Sequence[_Read]:
    query = {"seq": after + 1, "next_by_subj": f"$O.{ref.bucket}.C.{chunk_id}", "batch": 256, "max_bytes": BATCH_BYTES_MAX}
    return await _read(streams, ref, query)


async def _read(streams: Streams, ref: BlobRef, query: Mapping[str, Any]) -> Sequence[_Read]:
    for left in reversed(range(TRIES)):
        try:
            return await streams.direct(f"OBJ_{ref.bucket}", query)
        except BrokerError:
            if not left:
                raise
            await asyncio.sleep(RETRY_S)
    raise AssertionError("the last try returns or raises")


async def _sha256(data: bytes) -> str:
    if len(data) <= HASH_INLINE_BYTES_MAX:
        return hashlib.sha256(data).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())


def _slices(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _record_subject(ref: BlobRef) -> str:
    return f"$O.{ref.bucket}.M.{base64.urlsafe_b64encode(ref.name.encode()).decode()}"


def _first(failed: ExceptionGroup[Exception]) -> Exception:
    """Return one of the errors of a group, the broker's own words before the cancellations that followed."""
    return next((error for error in failed.exceptions if isinstance(error, BrokerError)), failed.exceptions[0])
