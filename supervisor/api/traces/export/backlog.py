"""Puts what runs' trace files hold into the buffer, each line once; it comes from the files alone, so that a kill loses no span.

Beside a run's file, `trace.exported` holds how many of its bytes are in the buffer. It is written after the buffer has them: a kill
between the two puts a line twice, which the buffer knows by its spans' ids.
"""

import asyncio
import gzip
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.contract.errors import BrokerError
from sandbox.log import Log
from supervisor.api.traces.otlp import parts_of, request_of, spans_in

log = Log(__name__)

READ_BYTES: Final = 256 << 10
"""Of one file at a time, in whole lines; then other runs have their turn."""
PART_BYTES_MAX: Final = 900_000
"""Of one message before it is compressed: then it fits (1 MiB) whatever is in it."""
AGAIN_S: Final = 1.0
"""Before a put that failed is tried again."""


class Buffer(Protocol):
    """Where payloads are put (`sandbox.bus.export_buffer`)."""

    async def put(self, payload: bytes, dedupe: str) -> None:
        """Store a payload durably, once for each `dedupe`."""
        ...


class _Payload(NamedTuple):
    data: bytes
    dedupe: str
    spans: int
    end: int | None
    """Where in the file its line ends; None: another part of the line follows."""


class Backlog:
    """The runs whose files hold more than the buffer."""

    def __init__(self, file_of: Callable[[str], Path], buffer: Buffer, drop: Callable[[str, int], None], again_s: float = AGAIN_S) -> None:
        """Make an empty one.

        Args:
            file_of: Names a run's trace file.
            buffer: Takes payloads.
            drop: Is told why how many spans will never be exported.
            again_s: Before a put that failed is tried again.
        """
        self._file_of = file_of
        self._buffer = buffer
        self._drop = drop
        self._again_s = again_s
        self._due: dict[str, None] = {}
        self._changed = asyncio.Event()
        self.is_empty = True
        """Whether everything is in the buffer."""

    def expect(self, run_id: str) -> None:
        """Note that a run's file is about to grow; that it is to be exported is on disk before its first span is."""
        position = _position_path(self._file_of(run_id))
        try:
            if not position.exists():
                position.parent.mkdir(parents=True, exist_ok=True)
                position.write_text("0")
        except OSError as error:
            log.warning("spans.unwritten", "a kill now may cost the export spans", error=error, run_id=run_id)
        self._add(run_id)

    async def recall(self, run_ids: Iterable[str]) -> None:
        """Note what an earlier supervisor left, of these runs."""
        left = await asyncio.to_thread(lambda: [run_id for run_id in run_ids if _is_behind(self._file_of(run_id))])
        for each in left:
            self._add(each)

    async def run(self) -> None:
        """Put what is due, until cancelled; with the buffer away or full it waits, and nothing is lost."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._due:
                run_id = next(iter(self._due))
                del self._due[run_id]
                try:
                    if await self._put_some(run_id):
                        self._add(run_id)  # at the end of the line
                except BrokerError as error:
                    self._add(run_id)
                    log.debug("spans.unbuffered", error=error, run_id=run_id)
                    await asyncio.sleep(self._again_s)
                except OSError as error:
                    log.warning("spans.unexported", "the run's trace cannot be read", error=error, run_id=run_id)
            self.is_empty = True

    def _add(self, run_id: str) -> None:
        self._due[run_id] = None
        self.is_empty = False
        self._changed.set()

    async def _put_some(self, run_id: str) -> bool:
        """Put the next lines of a run; return whether there were any."""
        path = self._file_of(run_id)
        payloads = await asyncio.to_thread(lambda: list(_next_payloads(path, _position(path))))
        for payload in payloads:
            try:
                if payload.spans:
                    await self._buffer.put(payload.data, payload.dedupe)
            except ValueError:
                self._drop("too_large", payload.spans)
            if payload.end is not None:
                _position_path(path).write_text(str(payload.end))
        return bool(payloads)


def _position_path(path: Path) -> Path:
    return path.with_name("trace.exported")


def _position(path: Path) -> int:
    """Return how many bytes of a run's file are in the buffer; a torn number is that of a whole disk, and everything is put again."""
    try:
        return int(_position_path(path).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _is_behind(path: Path) -> bool:
    try:
        return _position_path(path).exists() and path.stat().st_size > _position(path)
    except OSError:
        return False


def _next_payloads(path: Path, position: int) -> Iterator[_Payload]:
    """Yield what follows in a file, whole lines only; a line that a bad disk made unreadable is passed over."""
    try:
        with path.open("rb") as stream:
            stream.seek(position)
            lines = stream.readlines(READ_BYTES)
    except FileNotFoundError:
        return
    for line in lines:
        if not line.endswith(b"\n"):
            return
        position += len(line)
        try:
            request = request_of(line)
        except ValueError:
            yield _Payload(b"", "", 0, position)
            continue
        *parts, last = parts_of(request, PART_BYTES_MAX)
        for part in parts:
            yield _payload(part, None)
        yield _payload(last, position)


def _payload(request: ExportTraceServiceRequest, end: int | None) -> _Payload:
    ids = sorted(span.span_id + span.trace_id for span in spans_in(request))
    return _Payload(gzip.compress(request.SerializeToString(), mtime=0), hashlib.sha256(b"".join(ids)).hexdigest(), len(ids), end)
