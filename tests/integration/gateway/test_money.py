"""The budget of calls: abandoned, parallel, larger than thought, too many."""

import asyncio
from pathlib import Path

import anthropic
import pytest

from sandbox.contract.result import Usage
from sandbox.gateway.policy import Policy
from sandbox.gateway.tally import Failure
from sandbox.gateway.terms import Tuning
from tests.fakes.gateway import CALL, HASTY, MODEL, open_gateway, wait_until
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.upstream import (
    Request,
    a_reply,
    a_start,
    an_end,
    fake_upstream,
    replying,
    some_text,
)

WORST_NANO_USD = 19_000_000  # of CALL, roughly: 1,000 tokens of output and 2,000 and a bit of input at 4,000


@pytest.mark.abuse("W06")
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


@pytest.mark.abuse("W06")
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


@pytest.mark.abuse("W05")
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


@pytest.mark.abuse("W10")
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
