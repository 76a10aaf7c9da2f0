"""What a provider can do wrong in a call, what the client hears of it, and what is charged."""

import asyncio
from pathlib import Path

import anthropic
import pytest

from sandbox.gateway.tally import Failure
from tests.fakes.gateway import open_gateway
from tests.fakes.upstream import (
    Behaviour,
    Request,
    a_reply,
    a_start,
    an_end,
    event,
    fake_upstream,
    hang_up,
    refusing,
    replying,
    send_head,
    some_text,
    then,
)

WORST_NANO_USD = 19_000_000  # of CALL, roughly: 1,000 tokens of output and 2,000 and a bit of input at 4,000


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
    down_for_four = then(*[refusing(503)] * 4, replying(a_reply()))
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
