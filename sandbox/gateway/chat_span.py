"""One settled model call as a span; the only place where tokens and cost are counted in a trace (TRACING.md §2)."""

from opentelemetry.trace import SpanKind

from sandbox.gateway.tally import CallReport
from sandbox.telemetry import Attribute, Context, Spans


def chat_span(spans: Spans, parent: Context, report: CallReport) -> None:
    """Make the span of a call below `parent`, whatever context its client claimed."""
    usage = report.usage
    attributes: dict[str, Attribute] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "anthropic",
        "gen_ai.request.model": report.model,
        "gen_ai.request.max_tokens": report.output_tokens_max,
        "gen_ai.request.stream": True,
        # The convention's input tokens include the cached ones.
        "gen_ai.usage.input_tokens": usage.all_input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cache_read_input_tokens,
        "gen_ai.usage.cache_write.input_tokens": usage.cache_write_input_tokens,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_input_tokens,
        "gen_ai.usage.cost.amount": report.cost_nano_usd / 1e9,
        "gen_ai.usage.cost.currency": "USD",
        "gen_ai.usage.cost.source": "local",
        "andon.gateway.mode": "replay" if report.is_replay else "live",
        "andon.agent.turn": report.turn,
        "andon.call.tries": report.tries,
        "andon.call.limited": report.limited,
        "andon.call.waited_s": round(report.waited_s, 3),
        "andon.call.unsettled": report.unsettled,
    }
    if report.reply_model:
        attributes["gen_ai.response.model"] = report.reply_model
    if report.reply_id:
        attributes["gen_ai.response.id"] = report.reply_id
    if report.stop_reason:
        attributes["gen_ai.response.finish_reasons"] = (report.stop_reason,)
    if report.first_event_at is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = report.first_event_at - report.started_at
    attributes |= report.content
    span = spans.start(
        f"chat {report.model}",
        trace_id=parent.trace_id,
        parent=parent.span_id,
        kind=SpanKind.CLIENT,
        start=report.started_at,
        attributes=attributes,
    )
    span.end(report.ended_at, error_type=report.error or None)
