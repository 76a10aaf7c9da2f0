"""Reads one body of `POST /v1/traces`, OTLP as JSON or protobuf, into plain spans; nothing in them is believed (`otlp_relay`).

Bounded in what it costs: how many values or fields are looked at, how large one span is, how many of its attributes are read.
"""

import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sandbox.gateway.strict_json import parse_strictly

UNPACKED_BYTES_MAX = 4 << 20
"""Of one gzip body."""
VALUES_MAX = 100_000
"""In one JSON body: a batch of 512 spans of an SDK has some 25,000."""
FIELDS_MAX = 20_000
"""Of the messages above the spans of one protobuf body, spans included."""
SPAN_BYTES_MAX = 64 << 10
"""Of one span in protobuf: small fields become large objects, so the whole body is never read at once."""
ATTRIBUTES_READ_MAX = 128

_GZIP = 16 + zlib.MAX_WBITS
_INT_BITS = 63
_STATUS_ERROR = 2
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = 1, 2, 2  # field numbers of opentelemetry/proto

Value = str | bool | int | float


class TracesBody(NamedTuple):
    """One request of the trace route, unpacked."""

    data: bytes
    is_protobuf: bool = False
    is_from_program: bool = True
    """It came from our program in the sandbox, or that cannot be told; otherwise from a tool, a check or a child of one."""


class GivenSpan(NamedTuple):
    """One span as it came."""

    trace_id: str
    """As hex digits, if it is well-formed; likewise the other ids."""
    span_id: str
    parent_id: str
    """Empty: it names none."""
    name: str
    kind: int
    """As in OTLP: 1 internal, 2 server, 3 client, 4 producer, 5 consumer."""
    start_ns: int
    end_ns: int
    is_error: bool
    exception: str
    """Type of the first exception it tells of."""
    attributes: tuple[tuple[str, Value], ...]
    attributes_dropped: int
    """Of another type, or too many."""


def unpacked(data: bytes, bytes_max: int = UNPACKED_BYTES_MAX) -> bytes:
    """Return what a gzip body holds.

    Raises:
        ValueError: Not gzip, cut, followed by something, or larger than `bytes_max` unpacked.
    """
    unpacking = zlib.decompressobj(_GZIP)
    try:
        raw = unpacking.decompress(data, bytes_max + 1)
    except zlib.error:
        raise ValueError("not gzip") from None
    if len(raw) > bytes_max:
        raise ValueError(f"more than {bytes_max} bytes unpacked")
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError("gzip that is cut, or followed by something")
    return raw


def spans_in(body: TracesBody) -> Iterator[GivenSpan | None]:
    """Yield the spans of a body, None for each that makes no sense.

    Raises:
        ValueError: The body, or the rest of it, makes none, or is too much.
    """
    if body.is_protobuf:
        return _of_protobuf(body.data)
    return (_of_json(raw) for raw in _json_spans(parse_strictly(body.data, values_max=VALUES_MAX)))


def _json_spans(document: Any) -> Iterator[Any]:
    for resource in _list(document, "resourceSpans"):
        for scope in _list(resource, "scopeSpans"):
            yield from _list(scope, "spans")


def _list(node: Any, key: str) -> list[Any]:
    found = node.get(key) if isinstance(node, dict) else None
    return found if isinstance(found, list) else []


def _of_json(raw: Any) -> GivenSpan | None:
    if not isinstance(raw, dict):
        return None
    trace, own, parent = (raw.get(key) or "" for key in ("traceId", "spanId", "parentSpanId"))
    start_ns, end_ns = _integer(raw.get("startTimeUnixNano")), _integer(raw.get("endTimeUnixNano"))
    name = raw.get("name")
    if not all(isinstance(each, str) for each in (trace, own, parent, name)) or start_ns is None or end_ns is None:
        return None
    given = _list(raw, "attributes")
    kept = tuple(_json_attributes(given[:ATTRIBUTES_READ_MAX]))
    status = raw.get("status")
    return GivenSpan(
        trace.lower(),
        own.lower(),
        parent.lower(),
        name=str(name),
        kind=_integer(raw.get("kind")) or 0,
        start_ns=start_ns,
        end_ns=end_ns,
        is_error=isinstance(status, dict) and status.get("code") == _STATUS_ERROR,
        exception=_json_exception(_list(raw, "events")),
        attributes=kept,
        attributes_dropped=len(given) - len(kept),
    )


def _json_attributes(given: list[Any]) -> Iterator[tuple[str, Value]]:
    for each in given:
        key, value = (each.get("key"), each.get("value")) if isinstance(each, dict) else (None, None)
        plain = _json_value(value) if isinstance(value, dict) else None
        if isinstance(key, str) and plain is not None:
            yield key, plain


def _json_value(value: dict[str, Any]) -> Value | None:
    text, boolean, number = value.get("stringValue"), value.get("boolValue"), value.get("doubleValue")
    if isinstance(text, str):
        return text
    if isinstance(boolean, bool):
        return boolean
    if isinstance(number, int | float) and not isinstance(number, bool):
        return number
    return _integer(value.get("intValue"))


def _json_exception(events: list[Any]) -> str:
    for event in events[:ATTRIBUTES_READ_MAX]:
        if isinstance(event, dict) and event.get("name") == "exception":
            said = dict(_json_attributes(_list(event, "attributes")[:ATTRIBUTES_READ_MAX])).get("exception.type")
            return said if isinstance(said, str) else ""
    return ""


def _integer(raw: Any) -> int | None:
    """Return a 64-bit integer written as OTLP/JSON does, as a string or a number; None if it is none."""
    if isinstance(raw, str) and re.fullmatch(r"-?[0-9]{1,19}", raw):
        raw = int(raw)
    is_one = isinstance(raw, int) and not isinstance(raw, bool) and raw.bit_length() <= _INT_BITS
    return raw if is_one else None


def _of_protobuf(data: bytes) -> Iterator[GivenSpan | None]:
    count = _Count()
    for resource in _messages(memoryview(data), _RESOURCE_SPANS, count):
        for scope in _messages(resource, _SCOPE_SPANS, count):
            for span in _messages(scope, _SPANS, count):
                yield _of_message(span)


class _Count:
    """How many fields were looked at."""

    def __init__(self) -> None:
        self._left = FIELDS_MAX

    def take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {FIELDS_MAX} fields")


def _messages(data: memoryview, number: int, count: _Count) -> Iterator[memoryview]:
    """Yield the messages in one field of a message."""
    at = 0
    while at < len(data):
        count.take()
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                length, at = _varint(data, at)
                if tag >> 3 == number and at + length <= len(data):
                    yield data[at : at + length]
                at += length
            case _:
                raise ValueError("not protobuf")
    if at > len(data):
        raise ValueError("protobuf that is cut")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("protobuf that is cut")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("not protobuf")


def _of_message(data: memoryview) -> GivenSpan | None:
    if len(data) > SPAN_BYTES_MAX:
        return None
    try:
        span = Span.FromString(bytes(data))
    except DecodeError:
        return None
    kept = tuple(_attributes(span.attributes[:ATTRIBUTES_READ_MAX]))
    return GivenSpan(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        name=span.name,
        kind=span.kind,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        is_error=span.status.code == _STATUS_ERROR,
        exception=_exception(span),
        attributes=kept,
        attributes_dropped=len(span.attributes) - len(kept),
    )


def _attributes(given: Any) -> Iterator[tuple[str, Value]]:
    for each in given:
        kind = each.value.WhichOneof("value")
        if kind in {"string_value", "bool_value", "int_value", "double_value"}:
            yield each.key, getattr(each.value, kind)


def _exception(span: Span) -> str:
    for event in span.events[:ATTRIBUTES_READ_MAX]:
        if event.name == "exception":
            said = dict(_attributes(event.attributes[:ATTRIBUTES_READ_MAX])).get("exception.type")
            return said if isinstance(said, str) else ""
    return ""
