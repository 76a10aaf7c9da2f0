"""OTLP requests in the three forms we meet: gzip of the bus, lines of a run's `trace.otlp.jsonl`, and parts that fit a message."""

import base64
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

PAYLOAD_BYTES_MAX = 16 << 20
USER_SERVICE = "andon-user"
_ID_KEYS = ("traceId", "spanId", "parentSpanId")


def request_in(payload: bytes) -> ExportTraceServiceRequest:
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


def line_of(request: ExportTraceServiceRequest) -> str:
    """Return a request as OTLP/JSON in one line: ids in hex, enums as numbers."""
    document = MessageToDict(request, use_integers_for_enums=True)
    _recode(document, lambda text: base64.b64decode(text).hex())
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def request_of(line: bytes) -> ExportTraceServiceRequest:
    """Return the request of such a line.

    Raises:
        ValueError: It is not one.
    """
    try:
        document = json.loads(line)
        if not isinstance(document, dict):
            raise ValueError("the line is no object")  # noqa: TRY004 - what a line holds is a value
        _recode(document, lambda text: base64.b64encode(bytes.fromhex(text)).decode())
        return ParseDict(document, ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except (ParseError, RecursionError) as error:
        raise ValueError("the line is not OTLP") from error


def spans_in(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """Yield every span."""
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            yield from scope.spans


def parts_of(request: ExportTraceServiceRequest, bytes_max: int) -> Iterator[ExportTraceServiceRequest]:
    """Yield the request in parts of at most `bytes_max` encoded bytes; a single span may be more."""
    spans = sum(1 for _ in spans_in(request))
    if request.ByteSize() <= bytes_max or spans < 2:
        yield request
        return
    for chosen in (range(spans // 2), range(spans // 2, spans)):
        part = ExportTraceServiceRequest()
        part.CopyFrom(request)
        number = 0
        for resource in part.resource_spans:
            for scope in resource.scope_spans:
                kept = [span for index, span in enumerate(scope.spans, number) if index in chosen]
                number += len(scope.spans)
                del scope.spans[:]
                scope.spans.extend(kept)
        yield from parts_of(part, bytes_max)


def _recode(node: Any, change: Any) -> None:
    """Protobuf's JSON writes bytes as base64; OTLP/JSON wants ids in hex."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _ID_KEYS and isinstance(value, str):
                node[key] = change(value)
            else:
                _recode(value, change)
    elif isinstance(node, list):
        for each in node:
            _recode(each, change)


def is_of_user(spans: ResourceSpans) -> bool:
    """Return whether they are of a user's own code in a sandbox: named by it, made by its gateway."""
    return any((each.key, each.value.string_value) == ("service.name", USER_SERVICE) for each in spans.resource.attributes)
