"""One request for a package as a span (TRACING.md §2); not what was answered (`registries/proxy`)."""

from opentelemetry.trace import SpanKind

from sandbox.gateway.registries.proxy import FetchReport
from sandbox.telemetry import Attribute, Context, Spans


def fetch_span(spans: Spans, parent: Context, report: FetchReport) -> None:
    """Make the span of a request below `parent`."""
    attributes: dict[str, Attribute] = {
        "http.request.method": report.method,
        "http.response.status_code": report.status,
        "http.response.body.size": report.size_bytes,
        "andon.gateway.verdict": "deny" if report.rule else "allow",
        "andon.fetch.cached": report.is_cached,
    }
    if report.server:
        attributes["server.address"] = report.server
    if report.rule:
        attributes["andon.gateway.rule"] = report.rule
    span = spans.start(
        f"gateway fetch {report.what}"[:200].rstrip(),
        trace_id=parent.trace_id,
        parent=parent.span_id,
        kind=SpanKind.CLIENT,
        start=report.started_at,
        attributes=attributes,
    )
    span.end(report.ended_at, error_type=str(report.status) if report.status >= 500 else None)
