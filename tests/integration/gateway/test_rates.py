"""What the gateway does when the provider limits its rate: tells the ledger, waits as it is told, charges nobody, gives up in the end."""

import asyncio
from dataclasses import replace
from pathlib import Path

import anthropic
import pytest

from sandbox.gateway.patience import LIMITED_TRIES_MAX
from sandbox.gateway.tally import Failure
from sandbox.gateway.terms import Tuning
from sandbox.inside.agent.model import READ_TIMEOUT_S
from tests.fakes.gateway import CALL, HASTY, open_gateway, wait_until
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.upstream import Behaviour, a_reply, a_start, event, fake_upstream, refusing, replying, some_text, then


@pytest.mark.parametrize(
    ("first", "limits"),
    [
        (refusing(429, "rate_limit_error", retry_after="0.02"), [0.02]),
        (refusing(529, "overloaded_error"), [0.0]),
        (replying([event("error", error={"type": "overloaded_error", "message": "x"})]), [0.0]),
        (refusing(503), []),
        (refusing(429, "rate_limit_error", code="enforced_spend_limit_reached"), []),
    ],
    ids=["429", "529", "overloaded event", "an outage", "a spend cap"],
)
async def test_the_ledger_hears_of_a_limit_and_of_nothing_else(tmp_path: Path, first: Behaviour, limits: list[float]):
    """It is the one place where all hosts ask first; the refused try costs nothing."""
    async with fake_upstream(then(first, replying(a_reply()))) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        try:
            await gateway.ask()
        except anthropic.RateLimitError:  # the spend cap is final
            assert len(upstream.requests) == 1

        assert gateway.ledger.limits == limits
        assert gateway.ledger.settled[0][1] == 0


async def test_an_overload_in_mid_reply_is_told_too(tmp_path: Path):
    """The call failed and is charged; the next ones go slower."""
    cut = [a_start(), *some_text(), event("error", error={"type": "overloaded_error"})]
    async with fake_upstream(replying(cut)) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        with pytest.raises(anthropic.APIStatusError):
            await gateway.ask()

        assert gateway.ledger.limits == [0.0]


async def test_a_call_waits_as_the_ledger_says_and_no_clock_runs(tmp_path: Path):
    """Twice told to wait: the call goes out once, after both; the time is no idleness, and the view says why nothing happens."""
    ledger = MemoryLedger(waits_s=[0.3, 0.2])
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url, ledger=ledger) as gateway:
        call = asyncio.ensure_future(gateway.ask())
        await wait_until(lambda: gateway.session.is_limited, "it waits")
        assert (upstream.requests, gateway.session.view.is_limited) == ([], True)
        message = await call

        assert (message.stop_reason, len(upstream.requests)) == ("end_turn", 1)
        assert 0.5 <= gateway.session.limited_s < 3
        assert (gateway.session.is_limited, gateway.calls[0].waited_s, gateway.calls[0].tries) == (False, 0.5, 1)


async def test_a_rate_that_is_always_limited_ends_the_call(tmp_path: Path):
    """Eight tries; then the run is parked and can be resumed, and the client is told not to go on."""
    limiting = refusing(429, "rate_limit_error", retry_after="0.01")
    async with fake_upstream(limiting) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await gateway.ask()

        assert len(upstream.requests) == LIMITED_TRIES_MAX
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert gateway.session.failure == Failure(kind="provider", message="the provider limits our rate: status 429 (rate_limit_error)")
        assert gateway.calls[0].limited == LIMITED_TRIES_MAX
        assert gateway.ledger.spent_nano_usd == 0


async def test_a_call_does_not_wait_longer_than_its_client(tmp_path: Path):
    """A ledger that never lets it go: refused before the client gives up, and no request left."""
    ledger = MemoryLedger(waits_s=[0.05] * 9)
    tuning = replace(HASTY, rate_wait_s=0.12)
    async with (
        fake_upstream(replying(a_reply())) as upstream,
        open_gateway(tmp_path, upstream.base_url, ledger=ledger, tuning=tuning) as gateway,
    ):
        with pytest.raises(anthropic.APIStatusError, match="rate limit has let no call through"):
            await gateway.ask()

        assert (upstream.requests, len(ledger.waits_s)) == ([], 6)
        assert Tuning().rate_wait_s < READ_TIMEOUT_S
        assert gateway.session.failure is not None
        assert gateway.session.failure.kind == "provider"


async def test_an_attempt_that_ends_while_it_waits_leaves_nothing(tmp_path: Path):
    """A cancelled attempt's calls do not stay in the queue: no money is held, no request goes out."""
    ledger = MemoryLedger(waits_s=[30.0])
    async with fake_upstream(replying(a_reply())) as upstream:
        async with open_gateway(tmp_path, upstream.base_url, ledger=ledger) as gateway:
            call = asyncio.ensure_future(gateway.ask(**CALL))
            await wait_until(lambda: gateway.session.is_limited, "it waits")
        with pytest.raises(anthropic.APIConnectionError):
            await call

        assert (upstream.requests, ledger.held, ledger.settled) == ([], {}, [])
