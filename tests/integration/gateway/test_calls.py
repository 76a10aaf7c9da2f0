"""Model calls through the gateway, with the real SDK over a real socket against a real HTTP server."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import anthropic
import pytest

from sandbox.contract.result import Usage
from sandbox.gateway.policy import Policy
from sandbox.gateway.tally import Failure
from sandbox.gateway.terms import Tuning
from tests.fakes.gateway import CALL, HASTY, MODEL, open_gateway
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.upstream import (
    REPLY_TEXT,
    Behaviour,
    Request,
    a_reply,
    a_start,
    a_tool_call,
    an_end,
    event,
    fake_upstream,
    replying,
    send_error,
    send_events,
    send_head,
    some_text,
)

WORST_NANO_USD = 19_000_000  # of CALL, roughly: 1,000 tokens of output and 2,000 and a bit of input at 4,000


async def wait_until(predicate: Callable[[], bool], what: str, wait_s: float = 5.0) -> None:
    deadline = time.monotonic() + wait_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {wait_s} s: {what}"
        await asyncio.sleep(0.005)


def then(*behaviours: Behaviour) -> Behaviour:
    """Do one after the other, the last one for ever."""

    async def behaviour(request: Request, writer: asyncio.StreamWriter) -> None:
        await behaviours[min(request.number, len(behaviours)) - 1](request, writer)

    return behaviour


def refusing(status: int, kind: str = "api_error", *, code: str = "", **headers: str) -> Behaviour:
    async def behaviour(request: Request, writer: asyncio.StreamWriter) -> None:
        await send_error(writer, status, kind, "UPSTREAM TEXT", code=code, **headers)

    return behaviour


async def hang_up(request: Request, writer: asyncio.StreamWriter) -> None:
    """Close the connection without an answer."""


async def test_a_call_is_answered_metered_and_settled(tmp_path: Path):
    """The whole way: 100 tokens in, 50 out, $0.0007."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        message = await gateway.ask()

        assert [block.text for block in message.content if block.type == "text"] == [REPLY_TEXT]
        assert gateway.ledger.settled == [("1.1", 700_000, Usage(input_tokens=100, output_tokens=50), False)]
        assert gateway.session.usage == Usage(input_tokens=100, output_tokens=50)
        assert gateway.session.view == (1, "", 150, 700_000)
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


@pytest.mark.parametrize("first", [refusing(529), refusing(500), refusing(429, retry_after="0"), hang_up])
async def test_a_passing_trouble_is_not_heard_of(tmp_path: Path, first: Behaviour):
    """Before the first byte a call is made again, and the client sees one reply."""
    async with fake_upstream(then(first, replying(a_reply()))) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        message = await gateway.ask()

        assert message.stop_reason == "end_turn"
        assert len(upstream.requests) == 2
        assert gateway.calls[0].tries == 2
        assert gateway.session.failure is None


async def test_an_error_event_before_the_reply_is_a_passing_trouble_too(tmp_path: Path):
    """Status 200 and then `overloaded_error` at once: nothing was served, nothing is charged."""
    overloaded = replying([event("error", error={"type": "overloaded_error", "message": "UPSTREAM TEXT"})])
    async with fake_upstream(then(overloaded, replying(a_reply()))) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        assert (await gateway.ask()).stop_reason == "end_turn"
        assert [cost for _, cost, _, _ in gateway.ledger.settled] == [0, 700_000]


async def test_a_call_nobody_answered_is_charged_in_full(tmp_path: Path):
    """The request was sent and the connection broke: it may be billed, so it is counted, and the next try reserves anew."""
    async with fake_upstream(then(hang_up, replying(a_reply()))) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        await gateway.ask()

        (_, lost, _, lost_unsettled), (_, cost, _, unsettled) = gateway.ledger.settled
        assert (lost > WORST_NANO_USD * 0.9, lost_unsettled, cost, unsettled) == (True, True, 700_000, False)
        assert gateway.session.unsettled_calls == 1


async def test_a_provider_that_cannot_be_reached_costs_nothing(tmp_path: Path):
    """Four tries, then 529 and a failure that parks the run."""
    async with fake_upstream(hang_up) as upstream:
        address = upstream.base_url
    async with open_gateway(tmp_path, address) as gateway:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await gateway.ask()

        assert caught.value.status_code == 529
        assert gateway.session.failure == Failure(kind="provider", message="the provider cannot be reached")
        assert gateway.ledger.spent_nano_usd == 0
        assert gateway.calls[0].tries == 4


async def test_the_provider_is_down_after_four_tries(tmp_path: Path):
    """And the client is told not to go on trying."""
    async with fake_upstream(refusing(503)) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        with pytest.raises(anthropic.InternalServerError) as caught:
            await gateway.ask()

        assert caught.value.response.headers["x-should-retry"] == "false"
        assert len(upstream.requests) == 4
        assert gateway.session.failure == Failure(kind="provider", message="the provider is down: status 503 (api_error)")


async def test_a_provider_that_comes_back_is_no_failure(tmp_path: Path):
    """The agent tried once more, later, and it worked."""
    down_for_four = then(*[refusing(529)] * 4, replying(a_reply()))
    async with fake_upstream(down_for_four) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        with pytest.raises(anthropic.APIStatusError):
            await gateway.ask()
        await gateway.ask()

        assert gateway.session.failure is None


@pytest.mark.parametrize(
    ("behaviour", "status", "kind"),
    [
        (refusing(401, "authentication_error"), 401, "auth"),
        (refusing(403, "permission_error"), 403, "auth"),
        (refusing(402, "billing_error"), 429, "provider"),
        (refusing(429, "rate_limit_error", code="enforced_spend_limit_reached"), 429, "provider"),
        (refusing(404, "not_found_error"), 404, "provider"),
        (refusing(307, location="http://169.254.169.254/"), 502, "provider"),
        (refusing(400, "invalid_request_error", code="thread_unsupported_request"), 400, None),
    ],
)
async def test_a_final_refusal_is_made_anew_and_not_tried_again(tmp_path: Path, behaviour: Behaviour, status: int, kind: str | None):
    """One request upstream; the reply holds none of its text; nothing is charged."""
    async with fake_upstream(behaviour) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await gateway.ask()

        assert caught.value.status_code == status
        assert "UPSTREAM TEXT" not in caught.value.response.text
        assert len(upstream.requests) == 1
        assert (gateway.session.failure.kind if gateway.session.failure else None) == kind
        assert gateway.ledger.spent_nano_usd == 0


@pytest.mark.parametrize(
    "cut", [[a_start(), *some_text()[:2]], [a_start(), *some_text(), event("error", error={"type": "overloaded_error"})]]
)
async def test_a_stream_that_breaks_off_is_an_error_and_charged_in_full(tmp_path: Path, cut: list[bytes]):
    """A clean cut would pass for a whole reply with the SDK; its usage is lost, so the reservation is."""
    async with fake_upstream(replying(cut)) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await gateway.ask()

        assert caught.value.status_code == 200
        assert caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
        [(_, cost, usage, unsettled)] = gateway.ledger.settled
        assert (unsettled, usage.input_tokens) == (True, 100)
        assert cost > 0.9 * WORST_NANO_USD
        assert gateway.calls[0].unsettled


async def test_a_page_instead_of_a_stream_is_charged_in_full(tmp_path: Path):
    """Something in between answered 200 with a page: nobody knows whether the provider worked."""

    async def page(request: Request, writer: asyncio.StreamWriter) -> None:
        await send_head(writer, 200, "text/html")
        writer.write(b"<html>UPSTREAM TEXT")

    async with fake_upstream(page) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        with pytest.raises(anthropic.InternalServerError) as caught:
            await gateway.ask()

        assert "UPSTREAM" not in caught.value.response.text
        assert gateway.ledger.settled[0][3]


async def test_usage_we_do_not_know_is_charged_in_full_and_flagged(tmp_path: Path):
    """A new kind of billing must not pass for free."""
    events = [a_start(server_tool_use={"web_search_requests": 2}), *some_text(), an_end()]
    async with fake_upstream(replying(events)) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        await gateway.ask()

        assert gateway.ledger.settled[0][1] > 0.9 * WORST_NANO_USD
        assert gateway.session.anomalies == ("usage.server_tool_use: not known here and not zero",)


async def test_a_model_without_a_price_that_answers_is_charged_in_full(tmp_path: Path):
    """Refused before, charged in full after (DECISIONS D13)."""
    async with (
        fake_upstream(replying([a_start(model="mystery-1"), an_end()])) as upstream,
        open_gateway(tmp_path, upstream.base_url) as gateway,
    ):
        await gateway.ask()

        assert gateway.ledger.settled[0][3]
        assert "mystery-1" in gateway.session.anomalies[0]


async def test_a_client_that_leaves_still_pays_what_it_ordered(tmp_path: Path):
    """The stream is drained and settled with the provider's figure (DECISIONS D7)."""
    events = [a_start(), *some_text("w " * 40), an_end(output_tokens=4_000)]
    async with fake_upstream(replying(events, pause_s=0.005)) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        async with gateway.sdk() as sdk, sdk.messages.stream(**CALL) as stream:
            async for item in stream:
                if item.type == "text":
                    break
        await wait_until(lambda: bool(gateway.ledger.settled), "the abandoned call is settled")

        assert gateway.ledger.settled == [("1.1", 40_200_000, Usage(input_tokens=100, output_tokens=4_000), False)]
        assert upstream.aborted == 0


async def test_a_drain_that_takes_too_long_is_charged_in_full(tmp_path: Path):
    """The provider goes on and on: after the bound the whole reservation is gone."""
    events = [a_start(), *some_text("w " * 1_000)]
    tuning = Tuning(drain_s=0.2, client=HASTY.client)
    async with (
        fake_upstream(replying(events, pause_s=0.02)) as upstream,
        open_gateway(tmp_path, upstream.base_url, tuning=tuning) as gateway,
    ):
        async with gateway.sdk() as sdk, sdk.messages.stream(**CALL) as stream:
            async for item in stream:
                if item.type == "text":
                    break
        await wait_until(lambda: bool(gateway.ledger.settled), "the abandoned call is settled")

        [(_, cost, usage, unsettled)] = gateway.ledger.settled
        assert (cost > 0.9 * WORST_NANO_USD, usage.input_tokens, unsettled) == (True, 100, True)


async def test_the_end_of_an_attempt_waits_for_its_calls(tmp_path: Path):
    """The container is dead, the session ends, the call on its way is settled first."""
    ledger = MemoryLedger()
    async with fake_upstream(replying(a_reply(), pause_s=0.03)) as upstream:
        async with open_gateway(tmp_path, upstream.base_url, ledger=ledger) as gateway, gateway.sdk() as sdk:  # noqa: SIM117
            async with sdk.messages.stream(**CALL) as stream:
                async for item in stream:
                    if item.type == "text":
                        break
        assert [cost for _, cost, _, _ in ledger.settled] == [700_000]
    assert list(tmp_path.iterdir()) == []


async def test_an_attempt_that_is_cancelled_settles_its_calls(tmp_path: Path):
    """Even a call that waits for its first byte, when there is no time left."""
    ledger = MemoryLedger()

    async def silent(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def attempt(address: str) -> None:
        tuning = Tuning(drain_s=-4.9, client=HASTY.client)  # no drain: 0.1 s in all
        async with open_gateway(tmp_path, address, ledger=ledger, tuning=tuning) as gateway:
            await gateway.ask()

    async with fake_upstream(silent) as upstream:
        task = asyncio.ensure_future(attempt(upstream.base_url))
        await wait_until(lambda: len(upstream.requests) == 1, "the call is on its way")
        task.cancel()
        await asyncio.wait({task})

    assert [(cost > 0.9 * WORST_NANO_USD, unsettled) for _, cost, _, unsettled in ledger.settled] == [(True, True)]


async def test_without_money_no_call_goes_out(tmp_path: Path):
    """429 with `billing_error`, which every client obeys at once, and the failure that ends the run with exit 4."""
    ledger = MemoryLedger(budget_nano_usd=1_000_000)
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url, ledger=ledger) as gateway:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await gateway.ask()

        assert caught.value.response.headers["x-should-retry"] == "false"
        assert caught.value.body["error"]["type"] == "billing_error"  # type: ignore[index]
        assert gateway.session.failure == Failure(kind="budget", message="the run's budget is exhausted")
        assert upstream.requests == []


async def test_fifty_calls_at_once_never_pass_the_budget(tmp_path: Path):
    """Spent and held together stay within $1 at every moment; each call would cost 0.3 to reserve and 0.25 to make."""
    ledger = MemoryLedger(budget_nano_usd=1_000_000_000)
    policy = Policy(model=MODEL, output_tokens_max=29_000)
    events = [a_start(), *some_text(), an_end(output_tokens=25_000)]
    async with (
        fake_upstream(replying(events, pause_s=0.01)) as upstream,
        open_gateway(tmp_path, upstream.base_url, ledger=ledger, policy=policy) as gateway,
        gateway.sdk(max_retries=5) as sdk,
    ):

        async def call() -> str:
            try:
                async with sdk.messages.stream(**{**CALL, "max_tokens": 29_000}) as stream:
                    return str((await stream.get_final_message()).stop_reason)
            except anthropic.RateLimitError as error:
                return str(error.body["error"]["type"])  # type: ignore[index]

        ends = await asyncio.gather(*(call() for _ in range(50)))

    assert ends.count("end_turn") == len(upstream.requests) == 3
    assert ends.count("billing_error") == 47
    assert ledger.most_nano_usd <= ledger.budget_nano_usd
    assert ledger.held == {}


async def test_a_prompt_larger_than_its_bytes_promised_raises_its_reservation(tmp_path: Path):
    """The provider counts 100,000 tokens in a small body: more is held before the reply goes on."""
    ledger = MemoryLedger()
    events = [a_start(input_tokens=100_000), *some_text(), an_end()]
    async with fake_upstream(replying(events)) as upstream, open_gateway(tmp_path, upstream.base_url, ledger=ledger) as gateway:
        await gateway.ask()

    assert ledger.extended == 1
    assert ledger.most_nano_usd >= 100_000 * 2_000 + 1_000 * 10_000
    assert ledger.spent_nano_usd == 100_000 * 2_000 + 50 * 10_000


async def test_a_prompt_the_budget_does_not_cover_is_cut_off(tmp_path: Path):
    """Its first figure passes the budget: the reply stops before any output is paid for, and what is known is charged."""
    ledger = MemoryLedger(budget_nano_usd=100_000_000)
    events = [a_start(input_tokens=100_000), *some_text("w " * 500)]
    async with (
        fake_upstream(replying(events, pause_s=0.01)) as upstream,
        open_gateway(tmp_path, upstream.base_url, ledger=ledger) as gateway,
    ):
        with pytest.raises(anthropic.RateLimitError):
            await gateway.ask()

        assert gateway.session.failure is not None
        assert gateway.session.failure.kind == "budget"
        assert ledger.spent_nano_usd == 100_000 * 2_000 + 10_000


async def test_an_attempt_makes_a_bounded_number_of_calls(tmp_path: Path):
    """A loop gone wild ends, refused requests included."""
    policy = Policy(model=MODEL, output_tokens_max=1_000, calls_max=2)
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url, policy=policy) as gateway:
        await gateway.ask()
        with pytest.raises(anthropic.BadRequestError):
            await gateway.ask(metadata={"user_id": "x"})
        with pytest.raises(anthropic.RateLimitError, match="has made its 2 model calls"):
            await gateway.ask()

        assert len(upstream.requests) == 1


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
