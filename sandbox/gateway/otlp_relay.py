"""Spans of the program inside, judged and made anew by us; not model calls, which only the gateway itself reports (TRACING.md §0.4).

What comes is untrusted: only tool calls of this attempt's own trace pass, with allow-listed attributes, below the span we chose,
inside the container's life. The rest is dropped and counted.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import Field, ValidationError

from sandbox.contract.model import Frozen
from sandbox.gateway.strict_json import parse_strictly
from sandbox.telemetry import Attribute, Context, Spans

SPANS_MAX = 5_000
"""Of one attempt."""
STRING_CHARS_MAX = 4_096
CLOCK_SLACK_S = 1.0

_NAME = re.compile(r"execute_tool [a-z0-9_.-]{1,80}")
_ATTRIBUTES = frozenset(
    {
        "gen_ai.operation.name",
        "gen_ai.tool.name",
        "gen_ai.tool.call.id",
        "gen_ai.tool.type",
        "andon.agent.turn",
        "andon.tool.output.bytes",
        "process.exit.code",
        "error.type",
    }
)


class ToolSpan(Frozen):
    """One accepted span."""

    name: str
    start: float
    """Unix seconds."""
    end: float
    attributes: dict[str, str | bool | int | float] = Field(default_factory=dict)


class OtlpRelay:
    """Takes OTLP/JSON bodies of one attempt and makes the spans of `andon-agent`."""

    def __init__(self, spans: Spans, parent: Context, started_at: float, now: Callable[[], float], common: dict[str, Attribute]) -> None:
        """Make spans below `parent`; `started_at` is when the container began, `common` goes on every span (container id)."""
        self._spans = spans
        self._parent = parent
        self._started_at = started_at
        self._now = now
        self._common = common
        self.accepted = 0
        self.dropped = 0

    def take(self, body: bytes) -> None:
        """Judge one body of `POST /v1/traces`; never raises for what is in it."""
        try:
            document = parse_strictly(body)
        except ValueError:
            self.dropped += 1
            return
        for raw in _spans_of(document):
            span = self._judged(raw)
            if span is None or self.accepted >= SPANS_MAX:
                self.dropped += 1
                continue
            self.accepted += 1
            self._make(span)

    def _make(self, span: ToolSpan) -> None:
        made = self._spans.start(
            span.name,
            trace_id=self._parent.trace_id,
            parent=self._parent.span_id,
            start=span.start,
            attributes={**span.attributes, **self._common},
        )
        error = span.attributes.get("error.type")
        made.end(span.end, error_type=str(error) if error else None)

    def _judged(self, raw: Any) -> ToolSpan | None:
        """Return the span to make, None if it may not be one of this attempt's tool calls."""
        if not isinstance(raw, dict) or raw.get("traceId") != self._parent.trace_id:
            return None
        name = raw.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return None
        try:
            start, end = int(raw["startTimeUnixNano"]) / 1e9, int(raw["endTimeUnixNano"]) / 1e9
            span = ToolSpan(name=name, start=start, end=end, attributes=dict(_attributes(raw.get("attributes"))))
        except (KeyError, TypeError, ValueError, ValidationError):
            return None
        inside = self._started_at - CLOCK_SLACK_S <= start <= end <= self._now() + CLOCK_SLACK_S
        return span if inside else None


def _spans_of(document: Any) -> Iterator[Any]:
    for resource in _list(document, "resourceSpans"):
        for scope in _list(resource, "scopeSpans"):
            yield from _list(scope, "spans")


def _list(node: Any, key: str) -> list[Any]:
    found = node.get(key) if isinstance(node, dict) else None
    return found if isinstance(found, list) else []


def _attributes(raw: Any) -> Iterator[tuple[str, str | bool | int | float]]:
    for each in raw if isinstance(raw, list) else []:
        key, value = (each.get("key"), each.get("value")) if isinstance(each, dict) else (None, None)
        if key not in _ATTRIBUTES or not isinstance(value, dict) or len(value) != 1:
            continue
        ((kind, content),) = value.items()
        if kind == "stringValue" and isinstance(content, str):
            yield key, content[:STRING_CHARS_MAX]
        elif kind == "intValue" and isinstance(content, (str, int)):
            yield key, int(content)
        elif kind == "boolValue" and isinstance(content, bool):
            yield key, content
