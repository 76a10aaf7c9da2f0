"""Spans are kept per trace, with derived ids where they must survive a crash."""

import gzip
import secrets

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.contract import ids
from sandbox.telemetry import Context, Spans

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
