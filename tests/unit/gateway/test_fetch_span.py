"""A request for a package is one span."""

import gzip
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.contract.ids import span_id, trace_id
from sandbox.gateway.fetch_span import fetch_span
from sandbox.gateway.registries.proxy import FetchReport
from sandbox.telemetry import Context, Spans

PARENT = Context(trace_id("01jd8m6w2x"), span_id("01jd8m6w2x/implement/1/1"))


def made_of(report: FetchReport) -> tuple[Any, dict[str, Any]]:
    spans = Spans("andon-gw", "1")
    fetch_span(spans, PARENT, report)
    (payload,) = spans.drain(PARENT.trace_id)
    span = ExportTraceServiceRequest.FromString(gzip.decompress(payload)).resource_spans[0].scope_spans[0].spans[0]
    return span, {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


def test_what_was_fetched_from_where_is_said():
    """With its size and whether it was here already."""
    span, values = made_of(FetchReport("GET", "pip six", "i.example", 200, "", 7, True, 100.0, 101.0))

    assert span.name == "gateway fetch pip six"
    assert span.parent_span_id.hex() == PARENT.span_id
    assert values == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.response.body.size": 7,
        "server.address": "i.example",
        "andon.gateway.verdict": "allow",
        "andon.fetch.cached": True,
    }


def test_a_refusal_names_its_rule_and_no_server():
    """No index was asked."""
    _, values = made_of(FetchReport("PUT", "", "", 403, "methods", 0, False, 100.0, 101.0))

    assert (values["andon.gateway.verdict"], values["andon.gateway.rule"]) == ("deny", "methods")
    assert "server.address" not in values
