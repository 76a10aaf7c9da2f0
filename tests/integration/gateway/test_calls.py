"""Model calls through the gateway, with the real SDK over a real socket against a real HTTP server."""

import asyncio
import json
import time
from pathlib import Path

import anthropic
import pytest

from sandbox.contract.result import Usage
from tests.fakes.gateway import CALL, MODEL, open_gateway, wait_until
from tests.fakes.upstream import (
    REPLY_TEXT,
    Request,
    a_reply,
    a_start,
    a_tool_call,
    an_end,
    fake_upstream,
    replying,
    send_events,
    send_head,
    some_text,
)


async def test_a_call_is_answered_metered_and_settled(tmp_path: Path):
    """The whole way: 100 tokens in, 50 out, $0.0007."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        message = await gateway.ask()

        assert [block.text for block in message.content if block.type == "text"] == [REPLY_TEXT]
        assert gateway.ledger.settled == [("1.1", 700_000, Usage(input_tokens=100, output_tokens=50), False)]
        assert gateway.session.usage == Usage(input_tokens=100, output_tokens=50)
        assert gateway.session.view == (1, "", 150, 700_000, False)
        assert gateway.session.failure is None
        assert [(call.tries, call.stop_reason, call.cost_nano_usd, call.error) for call in gateway.calls] == [(1, "end_turn", 700_000, "")]


async def test_events_arrive_one_by_one(tmp_path: Path):
    """Nothing is buffered: while the provider waits, the client has what was said so far."""
    go_on = asyncio.Event()

    async def halting(request: Request, writer: asyncio.StreamWriter) -> None:
        await send_head(writer)
        await send_events(writer, [a_start(), *some_text()[:2]])
        await go_on.wait()
        await send_events(writer, [*some_text()[2:], an_end()])

    async with (
        fake_upstream(halting) as upstream,
        open_gateway(tmp_path, upstream.base_url) as gateway,
        gateway.sdk() as sdk,
        sdk.messages.stream(**CALL) as stream,
    ):
        async for item in stream:
            if item.type == "text":
                go_on.set()
        assert (await stream.get_final_message()).stop_reason == "end_turn"


@pytest.mark.abuse("W02")
async def test_the_provider_sees_the_judged_bytes_and_our_headers_only(tmp_path: Path):
    """Key, labels and API version are ours; credentials, cookies, trace context and odd headers of the client stop here."""
    hostile = {
        "x-api-key": "sk-attacker",
        "authorization": "Bearer sk-attacker",
        "cookie": "a=b",
        "host": "evil",
        "anthropic-workspace-id": "w",
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "x-andon-run": "forged",
    }
    async with (
        fake_upstream(replying(a_reply())) as upstream,
        open_gateway(tmp_path, upstream.base_url, headers={"x-andon-run": "r1", "x-andon-stage": "spec", "other": "no"}) as gateway,
    ):
        body = b'{"model":"claude-sonnet-5-5" ,  "max_tokens":5,"stream":true,"messages":[]}'
        raw = "".join(f"{name}: {value}\r\n" for name, value in hostile.items())
        reply = await gateway.raw(
            f"POST /v1/messages HTTP/1.1\r\n{raw}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )

        request = upstream.requests[0]
        assert b" 200 " in reply
        assert request.line == "POST /v1/messages HTTP/1.1"
        assert request.body == body
        assert request.headers == {
            "host": upstream.base_url.removeprefix("http://"),
            "authorization": "Bearer sk-ant-canary-7f3a",
            "content-type": "application/json",
            "content-length": str(len(body)),
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            "user-agent": "andon-gateway",
            "anthropic-version": "2026-10-21",
            "x-andon-run": "r1",
            "x-andon-stage": "spec",
        }
        assert gateway.calls[0].traceparent.startswith("00-aaaa")


async def test_the_client_sees_no_header_of_the_provider(tmp_path: Path):
    """Rate limits, organisation and cookies stay here."""

    async def talkative(request: Request, writer: asyncio.StreamWriter) -> None:
        await send_head(writer, anthropic_organization_id="org", set_cookie="a=b", anthropic_ratelimit_tokens_remaining="7")
        await send_events(writer, a_reply())

    async with fake_upstream(talkative) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        body = json.dumps({**CALL, "stream": True}).encode()
        head = (await gateway.post("/v1/messages", body)).split(b"\r\n\r\n")[0].decode()

    names = {line.partition(":")[0] for line in head.split("\r\n")[1:]}
    assert names == {"content-type", "cache-control", "Transfer-Encoding", "Connection"}


async def test_the_tool_that_is_called_is_seen_live(tmp_path: Path):
    """The view says what the agent is about to do, until the next turn."""
    events = [a_start(), *a_tool_call("bash"), an_end(stop_reason="tool_use")]
    async with fake_upstream(replying(events)) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        await gateway.ask()

        assert gateway.session.view.tool == "bash"


async def test_a_suspended_gateway_grants_nothing_until_it_is_resumed(tmp_path: Path):
    """The call waits, and goes out when the lease is certain again (DECISIONS D2)."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        gateway.session.suspend()
        call = asyncio.ensure_future(gateway.ask())
        await asyncio.sleep(0.1)
        before = len(upstream.requests), dict(gateway.ledger.held)
        gateway.session.resume()

        assert (await call).stop_reason == "end_turn"
        assert before == (0, {})


async def test_a_suspended_attempt_ends_at_once(tmp_path: Path):
    """A call that waits finds its client gone, and costs nothing."""
    async with fake_upstream(replying(a_reply())) as upstream:
        async with open_gateway(tmp_path, upstream.base_url) as gateway:
            gateway.session.suspend()
            call = asyncio.ensure_future(gateway.ask())
            await wait_until(lambda: gateway.session.first_byte_at is not None, "the call arrived")
            started = time.monotonic()

        with pytest.raises(anthropic.APIConnectionError):
            await call
        assert time.monotonic() - started < 1.0
        assert upstream.requests == []


async def test_tokens_are_counted_for_nothing(tmp_path: Path):
    """The other model route: same rules, no money."""

    async def counting(request: Request, writer: asyncio.StreamWriter) -> None:
        await send_head(writer, kind="application/json")
        writer.write(b'{"input_tokens": 17, "secret": "UPSTREAM"}')

    async with fake_upstream(counting) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway, gateway.sdk() as sdk:
        count = await sdk.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(anthropic.BadRequestError):
            await sdk.messages.count_tokens(model="claude-opus-5-5", messages=[])

        assert count.input_tokens == 17
        assert count.model_extra == {}
        assert [request.line for request in upstream.requests] == ["POST /v1/messages/count_tokens HTTP/1.1"]
        assert gateway.ledger.settled == []


async def test_a_large_request_does_not_hold_the_loop(tmp_path: Path):
    """11 MB of conversation are judged while the loop that keeps leases goes on (DECISIONS G18)."""
    messages = [{"role": "user" if n % 2 == 0 else "assistant", "content": "word word word, " * 700} for n in range(1_000)]
    slowest = 0.0

    async def tick() -> None:
        nonlocal slowest
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.005)
            slowest = max(slowest, time.perf_counter() - started)

    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        body = json.dumps({**CALL, "messages": messages, "stream": True}).encode()
        ticking = asyncio.ensure_future(tick())
        reply = await gateway.post("/v1/messages", body)
        ticking.cancel()

        assert b" 200 " in reply
        assert len(upstream.requests[0].body) == len(body) > 10_000_000
    assert slowest < 0.5
