"""A settled model call is one span, with the tokens the provider counted."""

import gzip
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.contract.ids import span_id, trace_id
from sandbox.contract.result import Usage
from sandbox.gateway.chat_span import chat_span
from sandbox.gateway.tally import CallReport
from sandbox.telemetry import Context, Spans

PARENT = Context(trace_id("01jd8m6w2x"), span_id("01jd8m6w2x/implement/1/1"))


def made_of(report: CallReport) -> tuple[Any, dict[str, Any]]:
    spans = Spans("andon-gw", "1")
    chat_span(spans, PARENT, report)
    (payload,) = spans.drain(PARENT.trace_id)
    span = ExportTraceServiceRequest.FromString(gzip.decompress(payload)).resource_spans[0].scope_spans[0].spans[0]
    values = {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}
    return span, values


def a_report(**changes: Any) -> CallReport:
    given: dict[str, Any] = {
        "turn": 3,
        "model": "claude-sonnet-5-5",
        "output_tokens_max": 8_192,
        "is_replay": False,
        "traceparent": f"00-{trace_id('another000')}-{span_id('x')}-01",
        "started_at": 100.0,
        "first_event_at": 100.25,
        "ended_at": 101.0,
        "tries": 1,
        "reply_model": "claude-sonnet-5-5-20260801",
        "reply_id": "msg_01",
        "stop_reason": "tool_use",
        "usage": Usage(input_tokens=10, output_tokens=20, cache_read_input_tokens=300, cache_write_input_tokens=4_000),
        "cost_nano_usd": 1_500_000,
    }
    return CallReport(**{**given, **changes})


def test_input_tokens_include_the_cached_ones_and_cost_is_in_dollars() -> None:
    """The convention's way of counting; both names of the cache's writes, since viewers know the one or the other."""
    span, values = made_of(a_report())

    assert span.name == "chat claude-sonnet-5-5"
    assert span.kind == 3  # CLIENT
    assert values["gen_ai.usage.input_tokens"] == 4_310
    assert values["gen_ai.usage.output_tokens"] == 20
    assert values["gen_ai.usage.cache_read.input_tokens"] == 300
    assert values["gen_ai.usage.cache_write.input_tokens"] == values["gen_ai.usage.cache_creation.input_tokens"] == 4_000
    assert values["gen_ai.usage.cost.amount"] == 0.0015
    assert values["gen_ai.response.time_to_first_chunk"] == 0.25
    assert values["andon.gateway.mode"] == "live"


def test_the_span_hangs_below_the_attempt_whatever_context_the_client_claimed() -> None:
    """The sandbox's own traceparent names another trace here."""
    span, _ = made_of(a_report())

    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT.trace_id, PARENT.span_id)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (100 * 10**9, 101 * 10**9)


def test_a_failed_call_is_an_error_without_a_reply() -> None:
    """What did not come is not claimed."""
    span, values = made_of(
        a_report(error="overloaded_error", reply_model="", reply_id="", stop_reason="", first_event_at=None, usage=Usage())
    )

    assert span.status.code == 2
    assert values["error.type"] == "overloaded_error"
    assert not {"gen_ai.response.model", "gen_ai.response.id", "gen_ai.response.finish_reasons"} & set(values)


def test_a_replayed_call_says_so() -> None:
    """Nobody should take a replay's cost for money."""
    assert made_of(a_report(is_replay=True))[1]["andon.gateway.mode"] == "replay"


def test_a_reply_that_no_encoder_takes_breaks_nothing() -> None:
    """A lone surrogate in a provider's JSON must not cost the attempt its result."""
    assert made_of(a_report(reply_id="msg_\ud800"))[1]["gen_ai.response.id"] == "msg_?"
