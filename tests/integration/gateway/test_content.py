"""What was said in a model call reaches its span if, and only if, a person opted in; through a real gateway, with the real SDK."""

import asyncio
import gzip
import json
from pathlib import Path

import anthropic
import pytest

from sandbox.contract.ids import span_id, trace_id
from sandbox.gateway.chat_span import chat_span
from sandbox.gateway.content import ATTRIBUTE_BYTES_MAX, Capture
from sandbox.gateway.tally import CallReport
from sandbox.scrub import Scrub
from sandbox.telemetry import ATTRIBUTE_CHARS_MAX, Context, Spans
from tests.fakes.gateway import KEY, open_gateway
from tests.fakes.traces import SeenTrace
from tests.fakes.upstream import Request, a_reply, fake_upstream, send_events, send_head

PARENT = Context(trace_id("01jd8m6w2x"), span_id("01jd8m6w2x/spec/1/1"))
PROMPT = "Beware of the giraffe."
ANSWER = "What giraffe, please?"


async def called(directory: Path, capture: Capture | None, prompt: str = PROMPT) -> list[CallReport]:
    async def reply(_: Request, writer: asyncio.StreamWriter) -> None:
        await send_head(writer)
        await send_events(writer, a_reply(ANSWER))

    async with fake_upstream(reply) as provider, open_gateway(directory, provider.base_url, capture=capture) as gateway:
        await gateway.ask(system="Answer as a giraffe.", messages=[{"role": "user", "content": prompt}])
        return gateway.calls


def payloads_of(report: CallReport, chars_max: int = ATTRIBUTE_CHARS_MAX) -> list[bytes]:
    spans = Spans("andon-gw", "1", attribute_chars_max=chars_max)
    chat_span(spans, PARENT, report)
    return spans.drain(PARENT.trace_id)


@pytest.mark.abuse("W01")
async def test_nothing_of_a_conversation_is_told_by_default(tmp_path: Path):
    """Not a word of it is in the report or in the span; the companion is the next test."""
    (report,) = await called(tmp_path, None)
    (payload,) = payloads_of(report)

    assert b"giraffe" not in gzip.decompress(payload)
    assert "giraffe" not in repr(report)
    assert report.content == {}


async def test_a_conversation_is_in_its_span_after_opting_in(tmp_path: Path):
    """Instructions, prompt and answer; the host's key, which stood in the prompt, is not."""
    (report,) = await called(tmp_path, Capture(Scrub({KEY})), f"{PROMPT} My key is {KEY}. {'x' * 6_000}")
    payloads = payloads_of(report, ATTRIBUTE_BYTES_MAX)
    (span,) = SeenTrace.of_payloads(payloads).spans

    said = {key: json.loads(span.attributes[key]) for key in report.content}
    assert said["gen_ai.system_instructions"] == [{"type": "text", "content": "Answer as a giraffe."}]
    (asked,) = said["gen_ai.input.messages"]
    assert asked["parts"][0]["content"].startswith(f"{PROMPT} My key is [secret]. xxx")
    assert len(asked["parts"][0]["content"]) > ATTRIBUTE_CHARS_MAX
    assert said["gen_ai.output.messages"][0]["parts"] == [{"type": "text", "content": ANSWER}]
    assert KEY.encode() not in gzip.decompress(payloads[0])
    assert "giraffe" not in repr(report)


async def test_of_a_call_that_failed_the_question_is_told(tmp_path: Path):
    """That is what explains why; there is no answer."""

    async def refuse(_: Request, writer: asyncio.StreamWriter) -> None:
        await send_head(writer)
        await send_events(writer, a_reply(ANSWER)[:2])

    async with fake_upstream(refuse) as provider, open_gateway(tmp_path, provider.base_url, capture=Capture(Scrub())) as gateway:
        with pytest.raises(anthropic.APIStatusError):
            await gateway.ask(messages=[{"role": "user", "content": PROMPT}])

    assert all(PROMPT in report.content["gen_ai.input.messages"] for report in gateway.calls)
    assert all("gen_ai.output.messages" not in report.content for report in gateway.calls)
    assert gateway.calls


async def test_a_large_conversation_is_captured_as_well(tmp_path: Path):
    """Beyond what is done on the loop."""
    (report,) = await called(tmp_path, Capture(Scrub()), "x" * 300_000)

    assert "characters cut" in report.content["gen_ai.input.messages"]
