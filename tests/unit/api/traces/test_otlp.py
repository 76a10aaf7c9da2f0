"""A line of a run's trace file is the request it was made of, and a large one can be sent in parts."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.contract.ids import span_id, trace_id
from sandbox.telemetry import Attribute, Context, Spans
from supervisor.api.traces.otlp import line_of, parts_of, request_of, spans_in

RUN = "01jd8m6w2x"
VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)
)


def a_request(*names: str, attributes: dict[str, Attribute] | None = None) -> ExportTraceServiceRequest:
    spans = Spans("andon-exec", "1")
    link = Context(trace_id(RUN), span_id("link"))
    for name in names:
        made = spans.start(name, trace_id=trace_id(RUN), parent=span_id(RUN), attributes=attributes, links=(link,))
        made.event("retry", {"attempt": 1})
        made.end(error_type="timeout")
    (payload,) = spans.drain(trace_id(RUN))
    return ExportTraceServiceRequest.FromString(gzip.decompress(payload))


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), VALUES))
def test_a_line_is_read_as_what_was_written(attributes: dict[str, Attribute]) -> None:
    """Ids, links, events, numbers of 64 bits and whatever a string may hold."""
    request = a_request("process", attributes=attributes)

    line = line_of(request)

    assert "\n" not in line
    assert request_of(line.encode()) == request


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b'{"resourceSpans":3}', b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"xy"}]}]}]}']
)
def test_what_is_no_line_of_ours_is_said_to_be_none(line: bytes) -> None:
    """A bad disk, or a hand in the file."""
    with pytest.raises(ValueError):  # noqa: PT011 - any of them
        request_of(line)


def test_parts_are_below_the_bound_and_together_the_whole() -> None:
    """In order; at the bound it is one part."""
    request = a_request(*(f"step {number}" for number in range(33)), attributes={"about": "x" * 100})

    parts = list(parts_of(request, 2_000))

    assert len(parts) > 3
    assert all(part.ByteSize() <= 2_000 for part in parts)
    assert [span for part in parts for span in spans_in(part)] == list(spans_in(request))
    assert list(parts_of(request, request.ByteSize())) == [request]
    assert len(list(parts_of(request, request.ByteSize() - 1))) == 2


def test_a_single_span_is_a_part_whatever_its_size() -> None:
    """The buffer refuses it, and it is counted."""
    assert len(list(parts_of(a_request("one", attributes={"about": "x" * 4_000}), 100))) == 1
