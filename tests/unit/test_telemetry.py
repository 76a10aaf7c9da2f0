"""Spans are kept per trace, with derived ids where they must survive a crash."""

import gzip
import json
import secrets

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.contract import ids
from sandbox.contract.figures import FIGURE_ATTRIBUTES, FIGURES_MAX, Figures
from sandbox.telemetry import PAYLOAD_BYTES_MAX, Attribute, Context, Spans

RUN = "0123456789"
TRACE = ids.trace_id(RUN)


def spans_in(payload: bytes) -> list[dict[str, str]]:
    request = ExportTraceServiceRequest.FromString(gzip.decompress(payload))
    return [
        {"name": s.name, "id": s.span_id.hex(), "parent": s.parent_span_id.hex(), "trace": s.trace_id.hex()}
        for r in request.resource_spans
        for scope in r.scope_spans
        for s in scope.spans
    ]


def test_a_forced_id_is_the_one_exported_and_children_hang_below_it():
    """A resumed supervisor ends the same span that a dead one began."""
    spans = Spans("andon-sup", "1")
    root = spans.start("RUN feature", trace_id=TRACE, parent=None, span_id=ids.span_id(RUN), start=1.0)
    with spans.span("stage spec", parent=root.context):
        pass
    root.end(2.0)

    child, parent = spans_in(*spans.drain(TRACE))

    assert parent == {"name": "RUN feature", "id": ids.span_id(RUN), "parent": "", "trace": TRACE}
    assert child["parent"] == ids.span_id(RUN)
    assert child["id"] not in {"", ids.span_id(RUN)}


def test_draining_takes_one_trace_and_leaves_the_others():
    """Two runs at once keep their spans apart."""
    spans = Spans("andon-sup", "1")
    for run in (RUN, "abcdefghjk"):
        spans.start("x", trace_id=ids.trace_id(run), parent=None).end()

    assert len(spans_in(*spans.drain(TRACE))) == 1
    assert spans.drain(TRACE) == []
    assert len(spans_in(*spans.drain(ids.trace_id("abcdefghjk")))) == 1


def test_a_traceparent_is_parsed_whatever_its_flags_and_refused_when_it_is_not_one():
    """Flags are bits (TRACING.md §6); an all-zero id is no context."""
    context = Context(TRACE, ids.span_id("x"))

    assert Context.parse(context.traceparent.removesuffix("01") + "03") == context
    for bad in ("", "00-zz-yy-01", f"00-{'0' * 32}-{ids.span_id('x')}-01", "garbage"):
        assert Context.parse(bad) is None


def test_whether_a_trace_is_kept_is_the_last_bit_of_its_flags():
    """Whoever takes part reads it there; the other bits are others' matter."""
    context = Context(TRACE, ids.span_id("x"), sampled=False)

    assert context.traceparent.endswith("-00")
    for flags, kept in (("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)):
        parsed = Context.parse(context.traceparent.removesuffix("00") + flags)
        assert parsed is not None
        assert parsed.sampled is kept
    for bad in ("zz", "0", ""):
        assert Context.parse(context.traceparent.removesuffix("00") + bad) is None


def test_ended_spans_can_be_measured_instead_of_told():
    """Name, seconds and what metrics read: no id, no time, no other attribute, whatever its length."""
    spans = Spans("andon-gw", "1")
    told: dict[str, Attribute] = {
        "gen_ai.request.model": "m" * 200,
        "gen_ai.response.time_to_first_chunk": 0.5,
        "gen_ai.response.id": "msg_1",
    }
    spans.start("chat m", trace_id=TRACE, parent=ids.span_id(RUN), start=1.0, attributes=told).end(3.5, error_type="timeout")

    (payload,) = spans.measure(TRACE)

    assert json.loads(payload) == {
        "figures": [
            {
                "name": "chat m",
                "seconds": 2.5,
                "attributes": {"error.type": "timeout", "gen_ai.request.model": "m" * 80, "gen_ai.response.time_to_first_chunk": 0.5},
            }
        ]
    }
    assert spans.drain(TRACE) == spans.measure(TRACE) == []


@pytest.mark.parametrize(("ended", "sizes"), [(FIGURES_MAX, [FIGURES_MAX]), (FIGURES_MAX + 1, [FIGURES_MAX, 1])])
def test_figures_fit_into_messages(ended: int, sizes: list[int]):
    """Each stays below what a message may be, however long the names are."""
    spans = Spans("andon-agent", "1")
    told: dict[str, Attribute] = dict.fromkeys(FIGURE_ATTRIBUTES, "y" * 200)
    for _ in range(ended):
        spans.start("x" * 200, trace_id=TRACE, parent=ids.span_id(RUN), attributes=told).end()

    payloads = spans.measure(TRACE)

    assert [len(Figures.model_validate_json(payload).figures) for payload in payloads] == sizes
    assert max(map(len, payloads)) < PAYLOAD_BYTES_MAX


def test_no_sampler_of_this_process_loses_a_span(monkeypatch: pytest.MonkeyPatch):
    """OTEL_TRACES_SAMPLER is for the supervisor, once for each run: a host must not have its own opinion of one."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    spans = Spans("andon-exec", "1")
    spans.start("x", trace_id=TRACE, parent=None).end()

    assert len(spans_in(*spans.drain(TRACE))) == 1


def test_a_large_trace_is_drained_in_messages_the_bus_takes():
    """One message has at most 1 MiB, however badly the spans compress."""
    spans = Spans("andon-gw", "1")
    for _ in range(60):
        text = {f"a{number}": secrets.token_hex(2_000) for number in range(20)}
        spans.start("chat", trace_id=TRACE, parent=ids.span_id(RUN), attributes=text).end()

    payloads = spans.drain(TRACE)

    assert sum(len(spans_in(payload)) for payload in payloads) == 60
    assert max(len(payload) for payload in payloads) < 1 << 20


def test_text_that_cannot_be_encoded_is_mended():
    """A lone surrogate comes out of anybody's JSON; a trace must not break a result."""
    spans = Spans("andon-gw", "1")
    span = spans.start("chat", trace_id=TRACE, parent=None, attributes={"a": "\ud800"})
    span.put({"b": "\udfff"})
    span.event("finding", {"message": "\ud800"})
    span.end()

    assert len(spans_in(*spans.drain(TRACE))) == 1


@pytest.mark.parametrize(("start", "end", "lasts_ns"), [(1.0, 1.0, 1_000), (1.0, 0.5, 1_000), (1.0, 1.5, 500_000_000)])
def test_no_span_ends_where_it_begins(start: float, end: float, lasts_ns: int):
    """Jaeger takes such a one for broken and says so beside it, on every run."""
    spans = Spans("andon-sup", "1")
    spans.start("send", trace_id=TRACE, parent=None, start=start).end(end)

    request = ExportTraceServiceRequest.FromString(gzip.decompress(spans.drain(TRACE)[0]))

    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert span.end_time_unix_nano - span.start_time_unix_nano == lasts_ns
