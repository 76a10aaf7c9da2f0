"""Spans of one service, kept per trace until they are drained as OTLP; not where they go (`wire`, the run's trace file, an exporter).

Identifiers that must survive a crash are derived from the run (`contract.ids`) and forced; every other is random. Parents are
always given, never ambient (TRACING.md §2): work crosses tasks and threads here.
"""

import gzip
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from sandbox.contract.figures import FIGURE_ATTRIBUTES, FIGURE_CHARS_MAX, FIGURES_MAX, Figure, Figures

Attribute = str | bool | int | float | Sequence[str]

SPANS_PER_TRACE_MAX = 20_000
TRACES_MAX = 2_000
ATTRIBUTE_CHARS_MAX = 4_096
PAYLOAD_BYTES_MAX = 900_000
"""Of one request before it is compressed: then it fits into a message (1 MiB) whatever is in it."""
SHORTEST_NS = 1_000
"""What a span lasts at least: Jaeger puts a warning at one that ends where it begins."""
APART_S = 2e-6
"""Between two spans of which one follows the other: Jaeger counts in microseconds, and leaves out of its critical path what ends just
where the next begins."""


@dataclass(frozen=True)
class Context:
    """A place in a trace: 32 and 16 hex digits, and whether the trace is kept."""

    trace_id: str
    span_id: str
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """Return the W3C header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"

    @classmethod
    def parse(cls, traceparent: str) -> "Context | None":
        """Parse a W3C header; None if it is not one. Flags are bits, and the last one says whether the trace is kept."""
        parts = traceparent.split("-")
        if len(parts) < 4 or len(parts[1]) != 32 or len(parts[2]) != 16 or len(parts[3]) != 2:
            return None
        if not all(c in "0123456789abcdef" for c in "".join(parts[1:4])) or not int(parts[1], 16) or not int(parts[2], 16):
            return None
        return cls(parts[1], parts[2], bool(int(parts[3], 16) & 1))

    def _otel(self) -> SpanContext:
        return SpanContext(int(self.trace_id, 16), int(self.span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class _ForcedIds(IdGenerator):
    """Random span ids unless the calling context forces one."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self.forced: ContextVar[tuple[int, int] | None] = ContextVar("forced_ids", default=None)

    def generate_span_id(self) -> int:
        forced = self.forced.get()
        return forced[1] if forced else self._random.generate_span_id()

    def generate_trace_id(self) -> int:
        forced = self.forced.get()
        return forced[0] if forced else self._random.generate_trace_id()

    def is_trace_id_random(self) -> bool:
        return False


class _PerTrace(SpanProcessor):
    """Keeps ended spans by trace; overflow is counted, never silent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: dict[int, list[ReadableSpan]] = {}
        self.dropped = 0

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        with self._lock:
            if context.trace_id not in self._ended and len(self._ended) >= TRACES_MAX:
                self.dropped += 1
                return
            spans = self._ended.setdefault(context.trace_id, [])
            if len(spans) >= SPANS_PER_TRACE_MAX:
                self.dropped += 1
                return
            spans.append(span)

    def take(self, trace_id: int) -> list[ReadableSpan]:
        with self._lock:
            return self._ended.pop(trace_id, [])


class Spans:
    """The spans one service of ours makes; safe to use from several threads."""

    def __init__(
        self, service: str, release: str, resource: Mapping[str, Attribute] | None = None, *, attribute_chars_max: int = ATTRIBUTE_CHARS_MAX
    ) -> None:
        """Name the service (`andon-sup`, `andon-exec`, `andon-gw`, `andon-agent`, `andon-user`) and its resource; longer values are cut."""
        self._ids = _ForcedIds()
        self._kept = _PerTrace()
        # `Resource.create` reads OTEL_RESOURCE_ATTRIBUTES; merged last, so that the operator wins (TRACING.md §5).
        ours = Resource({"service.name": service, "service.namespace": "andon", "service.version": release, **(resource or {})})
        operator = Resource.create()
        named = {key: value for key, value in operator.attributes.items() if key != "service.name"}
        provider = TracerProvider(
            id_generator=self._ids,
            resource=ours.merge(Resource(named)),
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_span_attribute_length=attribute_chars_max),
            sampler=ALWAYS_ON,  # which runs are kept is decided once for each (ADR 28), not here by OTEL_TRACES_SAMPLER
        )
        provider.add_span_processor(self._kept)
        self._tracer = provider.get_tracer("andon", release)

    @property
    def dropped(self) -> int:
        """Return how many spans were not kept because a bound was reached."""
        return self._kept.dropped

    def start(
        self,
        name: str,
        *,
        trace_id: str,
        parent: str | None,
        span_id: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        start: float | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        links: Sequence[Context] = (),
    ) -> "OpenSpan":
        """Start a span; `parent` None makes a root, `span_id` forces a derived id, `start` is in Unix seconds."""
        context = trace.set_span_in_context(trace.NonRecordingSpan(Context(trace_id, parent)._otel())) if parent else otel_context.Context()
        random_id = self._ids.generate_span_id()
        token = self._ids.forced.set((int(trace_id, 16), int(span_id, 16) if span_id else random_id))
        try:
            span = self._tracer.start_span(
                name,
                context=context,
                kind=kind,
                attributes=_encodable(attributes or {}),
                links=[Link(link._otel()) for link in links],
                start_time=int(start * 1e9) if start is not None else time.time_ns(),
            )
        finally:
            self._ids.forced.reset(token)
        return OpenSpan(span)

    @contextmanager
    def span(
        self, name: str, *, parent: Context, span_id: str | None = None, attributes: Mapping[str, Attribute] | None = None
    ) -> Iterator["OpenSpan"]:
        """Run a block inside a span; an exception marks it with its class name and goes on."""
        open_span = self.start(name, trace_id=parent.trace_id, parent=parent.span_id, span_id=span_id, attributes=attributes)
        try:
            yield open_span
        except BaseException as error:
            open_span.end(error_type=type(error).__name__)
            raise
        open_span.end()

    def drain(self, trace_id: str) -> list[bytes]:
        """Return and forget the ended spans of one trace as gzip OTLP requests, each small enough for one message of the bus."""
        spans = self._kept.take(int(trace_id, 16))
        return list(_payloads(spans)) if spans else []

    def measure(self, trace_id: str) -> list[bytes]:
        """Return and forget the ended spans of one trace as what metrics need of them: `Figures` as JSON, each of one message's size."""
        taken = [_figure(span) for span in self._kept.take(int(trace_id, 16))]
        parts = (taken[start : start + FIGURES_MAX] for start in range(0, len(taken), FIGURES_MAX))
        return [Figures(figures=tuple(part)).model_dump_json().encode() for part in parts]


def _payloads(spans: Sequence[ReadableSpan]) -> Iterator[bytes]:
    raw = encode_spans(spans).SerializeToString()
    if len(raw) <= PAYLOAD_BYTES_MAX or len(spans) == 1:
        yield gzip.compress(raw, mtime=0)
        return
    middle = len(spans) // 2
    yield from _payloads(spans[:middle])
    yield from _payloads(spans[middle:])


def _figure(span: ReadableSpan) -> Figure:
    given = span.attributes or {}
    told = {key: value for key in FIGURE_ATTRIBUTES if isinstance(value := given.get(key), str | bool | int | float)}
    short = {key: value[:FIGURE_CHARS_MAX] if isinstance(value, str) else value for key, value in told.items()}
    nanoseconds = (span.end_time or 0) - (span.start_time or 0)
    return Figure(name=span.name[:FIGURE_CHARS_MAX], seconds=max(0, nanoseconds) / 1e9, attributes=short)


def _encodable(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Replace lone surrogates, which JSON from outside may hold and the encoder refuses: a trace must not break a result."""
    return {key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for key, value in attributes.items()}


class OpenSpan:
    """A span that is not ended; ending it twice is harmless."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def context(self) -> Context:
        """Return where children hang."""
        own = self._span.get_span_context()
        return Context(f"{own.trace_id:032x}", f"{own.span_id:016x}")

    def set(self, **attributes: Attribute) -> None:
        """Set attributes; `__` in a keyword stands for `.`."""
        self.put({key.replace("__", "."): value for key, value in attributes.items()})

    def put(self, attributes: Mapping[str, Attribute]) -> None:
        """Set attributes by their real names."""
        for key, value in _encodable(attributes).items():
            self._span.set_attribute(key, value)

    def event(self, name: str, attributes: Mapping[str, Attribute] | None = None, at: float | None = None) -> None:
        """Add a point in time; `at` in Unix seconds."""
        self._span.add_event(name, _encodable(attributes or {}), timestamp=int(at * 1e9) if at is not None else None)

    def end(self, at: float | None = None, *, error_type: str | None = None) -> None:
        """End it, at `at` Unix seconds or now; `error_type` is a low-cardinality cause."""
        if not self._span.is_recording():
            return
        if error_type:
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(Status(StatusCode.ERROR))
        begun = getattr(self._span, "start_time", None) or 0
        self._span.end(end_time=max(time.time_ns() if at is None else int(at * 1e9), begun + SHORTEST_NS))
