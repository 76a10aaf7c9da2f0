"""Spans of one sandbox, judged and made anew by us; not model calls, which only the gateway itself reports (TRACING.md §0.4).

What comes is untrusted: only spans of this attempt's own trace pass, inside the container's life, with names, attributes and values
of an allow-list, ids of our own making and a resource of ours. The program's are its tool calls, below the span we chose. A user's
(`user_span`) keep their tree: each waits for its parent, and hangs below the program's span if that never comes. The rest is dropped
and counted.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from opentelemetry.trace import SpanKind

from sandbox.contract.ids import sandbox_span_id
from sandbox.gateway.otlp_body import GivenSpan, TracesBody, Value, spans_in
from sandbox.gateway.user_span import UserSpan, judged
from sandbox.telemetry import Attribute, Context, Spans

SPANS_MAX = 5_000
"""Of one attempt's program, and as many of all its tools and checks."""
CLOCK_SLACK_S = 1.0
GIVEN_ID = "andon.sandbox.span_id"
"""The id a user's code knows its span by, e.g. in its own log."""

IMPORT = "agent import"
"""What the program does between its boot and its first step."""

_TOOL = re.compile(rf"execute_tool ([a-z0-9_.-]{{1,80}})|{IMPORT}")
_WORD = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
"""Strings are identifiers, never text: no prompt and no key travels in one by accident."""
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}")
_INT_BITS = 63
_TOOL_ATTRIBUTES = {
    "gen_ai.tool.call.id": str,
    "andon.agent.turn": int,
    "andon.tool.output.bytes": int,
    "process.exit.code": int,
    "error.type": str,
}


class _Accepted(NamedTuple):
    """A user's span that will be made; only its place may still be open."""

    given_id: str
    span: UserSpan
    start: float
    """Unix seconds."""
    end: float


class OtlpRelay:
    """Takes the bodies of one attempt and makes the spans of `andon-agent` and `andon-user`; may be called from several threads."""

    def __init__(
        self,
        spans: Spans,
        parent: Context,
        started_at: float,
        now: Callable[[], float],
        common: dict[str, Attribute],
        user_spans: Spans | None = None,
    ) -> None:
        """Make spans below `parent`, that of the program.

        Args:
            spans: Makes those of the program.
            parent: Where they hang.
            started_at: When the container began.
            now: The clock, in Unix seconds.
            common: Goes on every span (container id).
            user_spans: Makes those of tools and checks; None: they are dropped.
        """
        self._spans = spans
        self._user_spans = user_spans
        self._parent = parent
        self._started_at = started_at
        self._now = now
        self._common = common
        self._lock = threading.Lock()
        self._tools: dict[str, str] = {}
        """Ids of spans made of the program's, by the id each came with."""
        self._users: dict[str, str] = {}
        self._held: dict[str, list[_Accepted]] = {}
        """A user's spans by the parent they wait for."""
        self._seen: set[str] = set()
        """Ids a user's spans came with."""
        self._is_over = False
        self.dropped = 0
        """Spans that were not made, and bodies that were not read."""
        self.attributes_dropped = 0
        """Of the spans that were made."""

    @property
    def accepted(self) -> int:
        """Return how many spans were made, or wait for their parent."""
        return len(self._tools) + len(self._seen)

    @property
    def accepted_of_users(self) -> int:
        """Return how many of them are of tools and checks."""
        return len(self._seen)

    def take(self, body: bytes | TracesBody) -> None:
        """Judge one body of `POST /v1/traces`, JSON of the program if it is plain bytes; never raises for what is in it."""
        told = body if isinstance(body, TracesBody) else TracesBody(body)
        try:
            for given in spans_in(told):
                with self._lock:  # for a moment each: the loop takes the program's own meanwhile
                    self._take(given, is_from_program=told.is_from_program)
        except ValueError:
            with self._lock:
                self.dropped += 1

    def finish(self, checks: Mapping[str, str] | None = None) -> None:
        """Make what still waits: below a check's span if it names it, else below the program's; what comes later is dropped.

        Args:
            checks: Ids of the spans of checks that were made, by the id the runner gave their commands.
        """
        with self._lock:
            self._is_over = True
            for given_id, own_id in (checks or {}).items():
                self._release(given_id, own_id)
            while self._held:
                self._release(self._topmost(), self._parent.span_id)

    def _topmost(self) -> str:
        """Return a parent that is waited for in vain: one that nobody else waits with, or any of a circle."""
        waiting = {each.given_id for group in self._held.values() for each in group}
        return next((parent for parent in self._held if parent not in waiting), next(iter(self._held)))

    def _take(self, given: GivenSpan | None, *, is_from_program: bool) -> None:
        life = self._life_of(given) if given else None
        if given is None or life is None or self._is_over or not _SPAN_ID.fullmatch(given.span_id):
            self.dropped += 1
        elif is_from_program and _TOOL.fullmatch(given.name):
            self._take_tool(given, *life)
        else:
            self._take_users(given, *life)

    def _life_of(self, given: GivenSpan) -> tuple[float, float] | None:
        """Return a span's start and end, None if it is of another trace, or outside the container's life."""
        start, end, now = given.start_ns / 1e9, given.end_ns / 1e9, self._now()
        if given.name == IMPORT:  # a program that stood by had begun before; what counts is its part of this attempt
            start = max(start, self._started_at)
        if given.trace_id != self._parent.trace_id or not self._started_at - CLOCK_SLACK_S <= start <= end <= now + CLOCK_SLACK_S:
            return None
        # The slack is for clocks that are corrected meanwhile; in the trace a child lies inside its parent.
        return min(max(start, self._started_at), now), min(max(end, self._started_at), now)

    def _take_tool(self, given: GivenSpan, start: float, end: float) -> None:
        if given.span_id in self._tools or len(self._tools) >= SPANS_MAX:
            self.dropped += 1
            return
        kept = dict(_tool_attributes(given.attributes))
        self.attributes_dropped += len(given.attributes) - len(kept) + given.attributes_dropped
        error = kept.get("error.type")
        own_id = sandbox_span_id(self._parent.span_id, "program", given.span_id)
        self._tools[given.span_id] = own_id
        self._make(
            self._spans, given.name, own_id, self._parent.span_id, (start, end), _tool(given.name) | kept, str(error) if error else None
        )
        self._release(given.span_id, own_id)

    def _take_users(self, given: GivenSpan, start: float, end: float) -> None:
        span = judged(given)
        if span is None or self._user_spans is None or given.span_id in self._seen or len(self._seen) >= SPANS_MAX:
            self.dropped += 1
            return
        self._seen.add(given.span_id)
        self.attributes_dropped += span.attributes_dropped
        self._held.setdefault(given.parent_id, []).append(_Accepted(given.span_id, span, start, end))
        own_id = self._known(given.parent_id)
        if own_id:
            self._release(given.parent_id, own_id)

    def _known(self, given_id: str) -> str | None:
        """Return the span that is meant by a parent's id, None if it may still come."""
        if given_id in {"", self._parent.span_id}:
            return self._parent.span_id
        return self._tools.get(given_id) or self._users.get(given_id)

    def _release(self, given_id: str, own_id: str) -> None:
        """Make the spans that wait for a parent, and those that wait for them."""
        parents = [(given_id, own_id)]
        while parents:
            waited_for, parent = parents.pop()
            for each in self._held.pop(waited_for, ()):
                mine = sandbox_span_id(self._parent.span_id, "user", each.given_id)
                self._users[each.given_id] = mine
                self._make_users(each, mine, parent)
                parents.append((each.given_id, mine))

    def _make_users(self, accepted: _Accepted, own_id: str, parent: str) -> None:
        if self._user_spans is not None:
            span = accepted.span
            attributes = {**span.attributes, GIVEN_ID: accepted.given_id}
            times = (accepted.start, accepted.end)
            self._make(self._user_spans, span.name, own_id, parent, times, attributes, span.error_type, span.kind)

    def _make(
        self,
        spans: Spans,
        name: str,
        own_id: str,
        parent: str,
        times: tuple[float, float],
        attributes: Mapping[str, Attribute],
        error_type: str | None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        start, end = times
        made = spans.start(
            name,
            trace_id=self._parent.trace_id,
            parent=parent,
            span_id=own_id,
            kind=kind,
            start=start,
            attributes={**attributes, **self._common},
        )
        made.end(end, error_type=error_type)


def _tool(name: str) -> dict[str, Attribute]:
    found = _TOOL.fullmatch(name)
    if not found or not found[1]:
        return {}
    return {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": found[1], "gen_ai.tool.type": "function"}


def _tool_attributes(given: tuple[tuple[str, Value], ...]) -> Iterator[tuple[str, Attribute]]:
    for key, value in given:
        wanted = _TOOL_ATTRIBUTES.get(key)
        is_word = wanted is str and isinstance(value, str) and bool(_WORD.fullmatch(value))
        is_number = wanted is int and isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= _INT_BITS
        if is_word or is_number:
            yield key, value
