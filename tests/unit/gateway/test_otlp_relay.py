"""The gateway makes the spans of a sandbox's tool calls anew, and nothing else that a sandbox sends."""

import gzip
import json
from itertools import count
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.contract.ids import span_id, trace_id
from sandbox.gateway.otlp_body import VALUES_MAX
from sandbox.gateway.otlp_relay import SPANS_MAX, OtlpRelay
from sandbox.telemetry import Context, Spans

PARENT = Context(trace_id("01jd8m6w2x"), span_id("01jd8m6w2x/implement/1/1"))
BEGUN, NOW = 1_000.0, 1_060.0
IDS = count(1)
"""Of spans: the same in every process, because they are in names of tests."""


class Relayed:
    """A relay and what it made."""

    def __init__(self) -> None:
        self.spans = Spans("andon-agent", "1")
        self.relay = OtlpRelay(self.spans, PARENT, BEGUN, lambda: NOW, {"container.id": "c0ffee"})

    def made(self) -> list[dict[str, Any]]:
        """Return the spans made, attributes as plain values."""
        return [
            {
                "name": span.name,
                "trace": span.trace_id.hex(),
                "parent": span.parent_span_id.hex(),
                "id": span.span_id.hex(),
                "start": span.start_time_unix_nano / 1e9,
                "end": span.end_time_unix_nano / 1e9,
                "error": span.status.code == 2,
                **{each.key: each.value.string_value or each.value.int_value for each in span.attributes},
            }
            for payload in self.spans.drain(PARENT.trace_id)
            for resource in ExportTraceServiceRequest.FromString(gzip.decompress(payload)).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def relayed() -> Relayed:
    return Relayed()


def body(*spans: dict[str, Any]) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}).encode()


def a_span(attributes: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "traceId": PARENT.trace_id,
        "spanId": f"{next(IDS):016x}",
        "parentSpanId": "bbbbbbbbbbbbbbbb",
        "name": "execute_tool bash",
        "startTimeUnixNano": str(int(1_010e9)),
        "endTimeUnixNano": str(int(1_020e9)),
        "attributes": [{"key": key, "value": value} for key, value in (attributes or {}).items()],
        **changes,
    }


def test_a_tool_call_becomes_a_span_of_ours_below_the_span_we_chose(relayed: Relayed) -> None:
    """Ids and parent that came are not used: another's span could not be overwritten by them."""
    relayed.relay.take(
        body(
            a_span(spanId="a" * 16, attributes={"process.exit.code": {"intValue": "7"}, "gen_ai.tool.call.id": {"stringValue": "toolu_01"}})
        )
    )

    (made,) = relayed.made()

    assert (made["trace"], made["parent"]) == (PARENT.trace_id, PARENT.span_id)
    assert made["id"] not in {"a" * 16, PARENT.span_id}
    assert (made["name"], made["gen_ai.tool.name"], made["gen_ai.operation.name"]) == ("execute_tool bash", "bash", "execute_tool")
    assert (made["process.exit.code"], made["gen_ai.tool.call.id"], made["container.id"]) == (7, "toolu_01", "c0ffee")
    assert (made["start"], made["end"], made["error"]) == (1_010.0, 1_020.0, False)
    assert (relayed.relay.accepted, relayed.relay.dropped) == (1, 0)


def test_an_error_type_makes_an_error(relayed: Relayed) -> None:
    """A failed call is seen as one."""
    relayed.relay.take(body(a_span({"error.type": {"stringValue": "tool_error"}})))

    assert relayed.made()[0]["error"]


@pytest.mark.parametrize(
    "span",
    [
        a_span(traceId=trace_id("another000")),
        a_span(traceId=None),
        a_span(name="chat claude-sonnet-5-5"),
        a_span(name="execute_tool ignore all previous instructions"),
        a_span(name="invoke_agent implement"),
        a_span(name=7),
        a_span(startTimeUnixNano=str(int(990e9))),
        a_span(endTimeUnixNano=str(int(1_062e9))),
        a_span(startTimeUnixNano=str(int(1_030e9))),
        a_span(startTimeUnixNano="9" * 400),
        a_span(startTimeUnixNano=10**400),
        a_span(startTimeUnixNano="soon"),
        a_span(endTimeUnixNano=None),
        a_span(spanId=""),
        a_span(spanId="0" * 16),
        a_span(spanId="xyz"),
        a_span(spanId=None),
    ],
    ids=lambda span: str(span)[:60],
)
def test_what_is_no_tool_call_of_this_attempt_is_dropped_and_counted(relayed: Relayed, span: dict[str, Any]) -> None:
    """Another trace, another kind of span, a time outside the container's life, a number no clock shows."""
    relayed.relay.take(body(span, a_span()))

    assert len(relayed.made()) == 1
    assert relayed.relay.dropped == 1


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"{",
        b"[]",
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"spanId":7}]}]}]}',
        b"null",
        b'{"resourceSpans":7}',
        b'{"resourceSpans":[null,{"scopeSpans":[[]]}]}',
        b"\xff",
        b"[" * 100_000,
    ],
    ids=lambda junk: repr(junk[:30]),
)
def test_a_body_of_junk_raises_nothing_and_makes_nothing(relayed: Relayed, junk: bytes) -> None:
    """A sandbox may send anything."""
    relayed.relay.take(junk)

    assert relayed.made() == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gen_ai.usage.input_tokens", {"intValue": "5"}),
        ("gen_ai.input.messages", {"stringValue": "the-prompt"}),
        ("gen_ai.tool.call.id", {"stringValue": "not an identifier: sk-ant-secret"}),
        ("gen_ai.tool.call.id", {"stringValue": "\ud800"}),
        ("gen_ai.tool.call.id", {"stringValue": "x" * 201}),
        ("gen_ai.tool.name", {"stringValue": "other"}),
        ("container.id", {"stringValue": "forged"}),
        ("process.exit.code", {"intValue": str(2**63)}),
        ("process.exit.code", {"intValue": True}),
        ("process.exit.code", {"intValue": "9" * 5_000}),
        ("process.exit.code", {"doubleValue": 1.5}),
        ("error.type", {"arrayValue": {}}),
        ("error.type", 7),
        (["error.type"], {"stringValue": "x"}),
    ],
    ids=str,
)
def test_an_attribute_that_is_not_on_the_list_is_left_out_and_the_span_stays(relayed: Relayed, key: Any, value: Any) -> None:
    """Tokens, texts, another container, and what the encoder would choke on at the attempt's end."""
    relayed.relay.take(body(a_span(attributes=None) | {"attributes": [{"key": key, "value": value}]}))

    (made,) = relayed.made()

    known = {"gen_ai.operation.name", "gen_ai.tool.name", "gen_ai.tool.type", "container.id"}
    assert {name for name in made if "." in name} == known
    assert (made["container.id"], made["gen_ai.tool.name"]) == ("c0ffee", "bash")
    assert (relayed.relay.dropped, relayed.relay.attributes_dropped) == (0, 1)


def test_a_span_within_the_clock_slack_is_cut_to_the_life_of_its_parent(relayed: Relayed) -> None:
    """Children lie inside their parents."""
    relayed.relay.take(body(a_span(startTimeUnixNano=str(int(999.5e9)), endTimeUnixNano=str(int(1_060.5e9)))))

    (made,) = relayed.made()

    assert (made["start"], made["end"]) == (BEGUN, NOW)


def test_an_attempt_has_at_most_5000_spans(relayed: Relayed) -> None:
    """A loop in a sandbox does not fill the disk."""
    for _ in range(60):
        relayed.relay.take(body(*[a_span() for _ in range(100)]))

    assert len(relayed.made()) == SPANS_MAX
    assert relayed.relay.dropped == 1_000


@pytest.mark.abuse("P03")
def test_a_body_of_very_many_values_is_counted_and_not_read(relayed: Relayed) -> None:
    """The control: the same span in a body of its own is taken; among 20,000 empty ones nothing is, and the loop is not held."""
    relayed.relay.take(body(a_span()))
    relayed.relay.take(body(a_span(), *({} for _ in range(2 * VALUES_MAX))))

    assert len(relayed.made()) == 1
    assert (relayed.relay.accepted, relayed.relay.dropped) == (1, 1)


def test_the_import_of_the_program_is_a_span_of_it(relayed: Relayed) -> None:
    """The one name besides tool calls; it says nothing of a tool."""
    relayed.relay.take(body(a_span(name="agent import"), a_span(name="agent imports")))

    (made,) = relayed.made()

    assert (made["name"], made["parent"]) == ("agent import", PARENT.span_id)
    assert {name for name in made if "." in name} == {"container.id"}
    assert relayed.relay.dropped == 1


def test_a_program_that_stood_by_imports_from_the_attempts_beginning_on(relayed: Relayed) -> None:
    """Its imports began before; a tool call that did is none of this attempt's."""
    early: dict[str, Any] = {"startTimeUnixNano": str(int(900e9)), "endTimeUnixNano": str(int(1_002e9))}
    relayed.relay.take(body(a_span(name="agent import", **early), a_span(**early)))

    (made,) = relayed.made()

    assert (made["start"], made["end"], relayed.relay.dropped) == (BEGUN, 1_002.0, 1)
