"""Where a run's spans go: always its `trace.otlp.jsonl`, and an OTLP/HTTP endpoint when one is configured; never in a run's way.

Each line of the file is one OTLP/JSON request, which Jaeger's upload tab reads (TRACING.md §0.10).
"""

import asyncio
import base64
import gzip
import io
import json
import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sandbox.contract.ids import trace_id
from sandbox.log import Log
from supervisor.api.span_lines import spans_of

log = Log(__name__)

PAYLOAD_BYTES_MAX = 16 << 20
QUEUE_PAYLOADS_MAX = 1_000
RUN_SPANS_MAX = 100_000
RUNS_REMEMBERED_MAX = 64
EXECUTOR_SERVICES = frozenset({"andon-exec", "andon-gw", "andon-agent", "andon-user"})
EXPORT_TIMEOUT_S = 3.0
STOP_S = 2.0

_ID_KEYS = ("traceId", "spanId", "parentSpanId")


def _parsed(payload: bytes) -> ExportTraceServiceRequest:
    """Return the request in a gzip payload.

    Raises:
        ValueError: Not gzip, not OTLP, or larger than 16 MiB unpacked.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(payload)) as unpacking:
            raw = unpacking.read(PAYLOAD_BYTES_MAX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError("telemetry is not gzip") from error
    if len(raw) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"telemetry of more than {PAYLOAD_BYTES_MAX} bytes")
    try:
        return ExportTraceServiceRequest.FromString(raw)
    except DecodeError as error:
        raise ValueError("telemetry is not OTLP") from error


def _as_line(request: ExportTraceServiceRequest) -> str:
    document = MessageToDict(request, use_integers_for_enums=True)
    _hex_ids(document)
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def _hex_ids(node: Any) -> None:
    """Protobuf's JSON writes bytes as base64; OTLP/JSON wants ids in hex."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _ID_KEYS and isinstance(value, str):
                node[key] = base64.b64decode(value).hex()
            else:
                _hex_ids(value)
    elif isinstance(node, list):
        for each in node:
            _hex_ids(each)


class TraceSink:
    """Appends payloads to runs' files, each span once, and hands them to the exporter, if there is one."""

    def __init__(
        self,
        file_of: Callable[[str], Path],
        export: Callable[[bytes], None] | None = None,
        see: Callable[[ExportTraceServiceRequest], None] | None = None,
    ) -> None:
        """Name each run's trace file by `file_of(run_id)`; `export` (bytes) and `see` are told what is new, and return at once."""
        self._file_of = file_of
        self._export = export
        self._see = see
        self._stored: OrderedDict[str, set[str]] = OrderedDict()
        """Span ids in the files of the runs written to last."""
        self.rejected = 0
        """Payloads that could not be read, and spans that were not taken."""

    def store(self, run_id: str, payload: bytes, *, from_executor: bool = False) -> None:
        """Keep one gzip OTLP payload of a run; what cannot be read, or written, is counted and dropped: a trace stops no run.

        Executors speak for themselves only: their spans are never roots, nor the supervisor's, nor another run's. A span that is
        in the file already (sent again, or made again after a crash) is left out.
        """
        try:
            request = _parsed(payload)
        except ValueError as error:
            self.rejected += 1
            log.warning("spans.unreadable", error=error)
            return
        self.rejected += _keep(request, lambda service, span: _is_due(service, span, run_id, from_executor=from_executor))
        try:
            is_new = self._append(run_id, request)
        except OSError as error:
            self.rejected += 1
            log.warning("spans.unwritten", error=error, run_id=run_id)
            return
        if is_new and self._export:
            self._export(request.SerializeToString())
        if is_new and self._see:
            self._see(request)

    def container_below(self, run_id: str, parent_id: str) -> str | None:
        """Return the `container.id` of the stored spans below a span, empty if they name none, None if there are no such spans."""
        found: str | None = None
        for span in _spans_in_file(self._file_of(run_id)):
            if span.get("parentSpanId") == parent_id:
                named = [each["value"].get("stringValue", "") for each in span.get("attributes", ()) if each["key"] == "container.id"]
                found = found or (named[0] if named else "")
        return found

    def _append(self, run_id: str, request: ExportTraceServiceRequest) -> bool:
        """Write what is new of a request to the run's file; return whether there was anything."""
        path = self._file_of(run_id)
        stored = self._spans_of(run_id, path)
        ids: set[str] = set()
        _keep(request, lambda _, span: _is_first(span.span_id.hex(), stored, ids))
        if not ids or len(stored) + len(ids) > RUN_SPANS_MAX:
            self.rejected += len(ids)
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(_as_line(request) + "\n")
        stored.update(ids)
        return True

    def _spans_of(self, run_id: str, path: Path) -> set[str]:
        """Return the ids in a run's file; at the first look a torn last line is cut off, and the rest is read."""
        if run_id not in self._stored:
            self._stored[run_id] = _ids_in_file(path)
        self._stored.move_to_end(run_id)
        while len(self._stored) > RUNS_REMEMBERED_MAX:
            self._stored.popitem(last=False)
        return self._stored[run_id]


def _is_due(service: str, span: Span, run_id: str, *, from_executor: bool) -> bool:
    is_ours = span.trace_id.hex() == trace_id(run_id)
    return is_ours and not (from_executor and (service not in EXECUTOR_SERVICES or not span.parent_span_id))


def _is_first(span_id: str, stored: set[str], ids: set[str]) -> bool:
    """Return whether a span is neither stored nor among `ids`, and add it to them: one request may hold it twice, too."""
    if span_id in stored or span_id in ids:
        return False
    ids.add(span_id)
    return True


def _keep(request: ExportTraceServiceRequest, wanted: Callable[[str, Span], bool]) -> int:
    """Remove the spans that are not wanted, and what is empty then; return how many."""
    removed = 0
    for resource in request.resource_spans:
        service = next((each.value.string_value for each in resource.resource.attributes if each.key == "service.name"), "")
        for scope in resource.scope_spans:
            kept = [span for span in scope.spans if wanted(service, span)]
            removed += len(scope.spans) - len(kept)
            if len(kept) < len(scope.spans):
                del scope.spans[:]
                scope.spans.extend(kept)
    full = [resource for resource in request.resource_spans if any(scope.spans for scope in resource.scope_spans)]
    if len(full) < len(request.resource_spans):
        del request.resource_spans[:]
        request.resource_spans.extend(full)
    return removed


def _spans_in(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            yield from scope.spans


def _ids_in_file(path: Path) -> set[str]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return set()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return {str(span["spanId"]) for span in spans_of(data[:whole])}


def _spans_in_file(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from spans_of(path.read_bytes())
    except FileNotFoundError:
        return


def trace_ids_of(payload: bytes) -> set[str]:
    """Return the trace ids (hex) in a gzip OTLP payload; empty if it cannot be read."""
    try:
        request = _parsed(payload)
    except ValueError:
        return set()
    return {span.trace_id.hex() for span in _spans_in(request)}


@asynccontextmanager
async def exporter(environment: Mapping[str, str]) -> AsyncIterator[Callable[[bytes], None] | None]:
    """Export OTLP/HTTP in the background, as the standard OTEL_* names say; yields None if no endpoint is configured.

    Never blocks a caller: at most 1,000 payloads wait, more are dropped and counted. The end waits at most 2 s.
    """
    url = _endpoint(environment)
    if url is None:
        yield None
        return
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each export would hide the supervisor's own
    queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_PAYLOADS_MAX)

    def offer(request: bytes) -> None:
        try:
            queue.put_nowait(request)
        except asyncio.QueueFull:
            log.warning("spans.dropped", "the collector is too slow")

    async with httpx2.AsyncClient(timeout=EXPORT_TIMEOUT_S, headers=_headers(environment)) as client, asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(_send(client, url, queue))
        try:
            yield offer
        finally:
            try:
                await asyncio.wait_for(queue.join(), STOP_S)
            except TimeoutError:
                log.warning("spans.dropped", "the collector did not take all before the end", payloads=queue.qsize())
            sending.cancel()


async def _send(client: httpx2.AsyncClient, url: str, queue: asyncio.Queue[bytes]) -> None:
    while True:
        request = await queue.get()
        try:
            reply = await client.post(url, content=request, headers={"content-type": "application/x-protobuf"})
            if reply.status_code >= 400:
                log.warning("spans.refused", "the collector refused spans", status=reply.status_code)
        except httpx2.HTTPError as error:
            log.warning("spans.unsent", "the collector does not answer", error=error)
        finally:
            queue.task_done()


def _endpoint(environment: Mapping[str, str]) -> str | None:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    own = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if own:
        return own
    general = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if general:
        return general.rstrip("/") + "/v1/traces"
    return "http://localhost:4318/v1/traces" if environment.get("OTEL_TRACES_EXPORTER") == "otlp" else None


def _headers(environment: Mapping[str, str]) -> dict[str, str]:
    text = environment.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or environment.get("OTEL_EXPORTER_OTLP_HEADERS") or ""
    pairs = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return {key.strip(): value.strip() for key, _, value in pairs}
