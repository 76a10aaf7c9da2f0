"""Where a run's spans go: always its `trace.otlp.jsonl`, and an OTLP/HTTP endpoint when one is configured; never in a run's way.

Each line of the file is one OTLP/JSON request, which Jaeger's upload tab reads (TRACING.md §0.10).
"""

import asyncio
import base64
import gzip
import io
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

log = logging.getLogger(__name__)

PAYLOAD_BYTES_MAX = 16 << 20
QUEUE_PAYLOADS_MAX = 1_000
EXPORT_TIMEOUT_S = 3.0
STOP_S = 2.0

_ID_KEYS = ("traceId", "spanId", "parentSpanId")


def as_json_line(payload: bytes) -> tuple[str, ExportTraceServiceRequest]:
    """Return a gzip OTLP request as one line of OTLP/JSON, and the request.

    Raises:
        ValueError: Not gzip, not OTLP, or larger than 16 MiB unpacked.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(payload)) as unpacking:
            raw = unpacking.read(PAYLOAD_BYTES_MAX + 1)
        if len(raw) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"telemetry of more than {PAYLOAD_BYTES_MAX} bytes")
        request = ExportTraceServiceRequest.FromString(raw)
    except (OSError, EOFError) as error:
        raise ValueError("telemetry is not gzip") from error
    document = MessageToDict(request)
    _hex_ids(document)
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False), request


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
    """Appends payloads to runs' files and hands them to the exporter, if there is one."""

    def __init__(self, file_of: Callable[[str], Path], export: Callable[[bytes], None] | None = None) -> None:
        """`file_of(run_id)` names the run's trace file; `export` takes an uncompressed OTLP request and returns at once."""
        self._file_of = file_of
        self._export = export
        self.rejected = 0

    def store(self, run_id: str, payload: bytes) -> None:
        """Keep one gzip OTLP payload of a run; what cannot be read is counted and dropped."""
        try:
            line, request = as_json_line(payload)
        except ValueError as error:
            self.rejected += 1
            log.warning("telemetry.rejected", extra={"reason": str(error)})
            return
        path = self._file_of(run_id)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        if self._export:
            self._export(request.SerializeToString())


def trace_ids_of(payload: bytes) -> set[str]:
    """Return the trace ids (hex) in a gzip OTLP payload; empty if it cannot be read."""
    try:
        _, request = as_json_line(payload)
    except ValueError:
        return set()
    return {span.trace_id.hex() for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans}


@asynccontextmanager
async def exporter(environment: Mapping[str, str]) -> AsyncIterator[Callable[[bytes], None] | None]:
    """Export OTLP/HTTP in the background, as the standard OTEL_* names say; yields None if no endpoint is configured.

    Never blocks a caller: at most 1,000 payloads wait, more are dropped and counted. The end waits at most 2 s.
    """
    url = _endpoint(environment)
    if url is None:
        yield None
        return
    queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_PAYLOADS_MAX)

    def offer(request: bytes) -> None:
        try:
            queue.put_nowait(request)
        except asyncio.QueueFull:
            log.warning("telemetry.dropped")

    async with httpx2.AsyncClient(timeout=EXPORT_TIMEOUT_S, headers=_headers(environment)) as client, asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(_send(client, url, queue))
        try:
            yield offer
        finally:
            try:
                await asyncio.wait_for(queue.join(), STOP_S)
            except TimeoutError:
                log.warning("telemetry.dropped", extra={"payloads": queue.qsize()})
            sending.cancel()


async def _send(client: httpx2.AsyncClient, url: str, queue: asyncio.Queue[bytes]) -> None:
    while True:
        request = await queue.get()
        try:
            reply = await client.post(url, content=request, headers={"content-type": "application/x-protobuf"})
            if reply.status_code >= 400:
                log.warning("telemetry.refused", extra={"status": reply.status_code})
        except httpx2.HTTPError as error:
            log.warning("telemetry.unsent", extra={"error": type(error).__name__})
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
