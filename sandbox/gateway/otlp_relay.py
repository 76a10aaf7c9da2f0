"""Spans of the program inside, judged and made anew by us; not model calls, which only the gateway itself reports (TRACING.md §0.4).

What comes is untrusted: only tool calls of this attempt's own trace pass, with allow-listed attributes, below the span we chose,
inside the container's life. The rest is dropped and counted. What passes can be encoded: a trace must not break a result.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import Field

from sandbox.contract.model import Frozen
from sandbox.gateway.strict_json import parse_strictly
from sandbox.telemetry import Attribute, Context, Spans

SPANS_MAX = 5_000
"""Of one attempt."""
VALUES_MAX = 10_000
"""In one body, some two hundred spans: anybody in a sandbox may send them, and to read one must not hold the loop that keeps the leases."""
CLOCK_SLACK_S = 1.0

_NAME = re.compile(r"execute_tool ([a-z0-9_.-]{1,80})")
_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
"""Strings are identifiers, never text: no prompt and no key travels in one by accident."""
_INT_BITS = 63
_ATTRIBUTES = {
    "gen_ai.tool.call.id": str,
    "andon.agent.turn": int,
    "andon.tool.output.bytes": int,
    "process.exit.code": int,
    "error.type": str,
}


class ToolSpan(Frozen):
    """One accepted span."""

    name: str
    start: float
    """Unix seconds."""
    end: float
    attributes: dict[str, str | int] = Field(default_factory=dict)


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
        """Spans that were not made, and bodies that were not read."""
        self.attributes_dropped = 0
        """Of the spans that were made."""

    def take(self, body: bytes) -> None:
        """Judge one body of `POST /v1/traces`; never raises for what is in it."""
        try:
            document = parse_strictly(body, values_max=VALUES_MAX)
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
            attributes={
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": span.name.removeprefix("execute_tool "),
                "gen_ai.tool.type": "function",
                **span.attributes,
                **self._common,
            },
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
        start, end = _seconds(raw.get("startTimeUnixNano")), _seconds(raw.get("endTimeUnixNano"))
        now = self._now()
        if start is None or end is None or not self._started_at - CLOCK_SLACK_S <= start <= end <= now + CLOCK_SLACK_S:
            return None
        # The slack is for clocks that are corrected meanwhile; in the trace a child lies inside its parent.
        start, end = min(max(start, self._started_at), now), min(max(end, self._started_at), now)
        given = raw.get("attributes")
        kept = dict(_attributes(given))
        self.attributes_dropped += len(given) - len(kept) if isinstance(given, list) else 0
        return ToolSpan(name=name, start=start, end=end, attributes=kept)


def _spans_of(document: Any) -> Iterator[Any]:
    for resource in _list(document, "resourceSpans"):
        for scope in _list(resource, "scopeSpans"):
            yield from _list(scope, "spans")


def _list(node: Any, key: str) -> list[Any]:
    found = node.get(key) if isinstance(node, dict) else None
    return found if isinstance(found, list) else []


def _attributes(raw: Any) -> Iterator[tuple[str, str | int]]:
    for each in raw if isinstance(raw, list) else []:
        key, value = (each.get("key"), each.get("value")) if isinstance(each, dict) else (None, None)
        wanted = _ATTRIBUTES.get(key) if isinstance(key, str) else None
        if wanted is None or not isinstance(key, str) or not isinstance(value, dict):
            continue
        word, number = value.get("stringValue"), _integer(value.get("intValue"))
        if wanted is str and isinstance(word, str) and _WORD.fullmatch(word):
            yield key, word
        elif wanted is int and number is not None:
            yield key, number


def _seconds(nanoseconds: Any) -> float | None:
    number = _integer(nanoseconds)
    return None if number is None else number / 1e9


def _integer(raw: Any) -> int | None:
    """Return a 64-bit integer written as OTLP/JSON does, as a string or a number; None if it is none."""
    if isinstance(raw, str) and re.fullmatch(r"-?[0-9]{1,19}", raw):
        raw = int(raw)
    is_one = isinstance(raw, int) and not isinstance(raw, bool) and raw.bit_length() <= _INT_BITS
    return raw if is_one else None
