"""Money for one call."""

import asyncio
from datetime import date

import pytest

from sandbox.contract.errors import BrokerError, BudgetExhausted
from sandbox.contract.price import shipped_prices
from sandbox.contract.result import Usage
from sandbox.contract.wire import BudgetReply, BudgetRequest
from sandbox.gateway import reservation
from sandbox.gateway.reservation import BudgetLedger, hold, worst_case_nano_usd
from tests.fakes.gateway_ledger import MemoryLedger

TODAY = date(2026, 11, 22)


class SlowLedger(MemoryLedger):
    """A ledger whose answer takes a moment."""

    async def settle(self, call_id: str, nano_usd: int, usage: Usage, *, unsettled: bool, limited_s: float | None = None) -> BudgetReply:
        await asyncio.sleep(0.05)
        return await super().settle(call_id, nano_usd, usage, unsettled=unsettled, limited_s=limited_s)


class SilentFirst:
    """A supervisor that is away for the first requests."""

    def __init__(self, silences: int, *, hangs: bool = False) -> None:
        self.requests: list[BudgetRequest] = []
        self._silences = silences
        self._hangs = hangs

    async def budget(self, request: BudgetRequest) -> BudgetReply:
        self.requests.append(request)
        if len(self.requests) <= self._silences:
            if self._hangs:
                await asyncio.sleep(3600)
            raise BrokerError("no responders")
        return BudgetReply(granted=True, remaining_nano_usd=5)


def a_ledger(link: SilentFirst) -> BudgetLedger:
    return BudgetLedger(link, executor="e1", run_id="0123456789", job_id="0123456789-spec-1", attempt=2, token="t")


def test_the_worst_case_is_the_body_at_the_dearest_rate_and_all_the_output():
    """3,000 bytes are at most 1,000 tokens, and 2,000 more for tools the body only names."""
    nano_usd = worst_case_nano_usd(shipped_prices(), "claude-sonnet-5-5", 3_000, 500, TODAY)

    assert nano_usd == (1_000 + 2_000) * 4_000 + 500 * 10_000


async def test_a_hold_is_settled_at_what_was_charged():
    """Sent and priced: the difference is free again."""
    ledger = MemoryLedger(budget_nano_usd=100)
    async with hold(ledger, "1", 60, "m") as held:
        held.send()
        held.charge(Usage(output_tokens=1), 7)

    assert ledger.settled == [("1", 7, Usage(output_tokens=1), False)]
    assert ledger.left_nano_usd == 93


async def test_a_hold_that_was_never_sent_costs_nothing():
    """The provider does not know of it."""
    ledger = MemoryLedger(budget_nano_usd=100)
    async with hold(ledger, "1", 60, "m"):
        pass

    assert ledger.settled == [("1", 0, Usage(), False)]


async def test_a_hold_that_was_sent_and_never_priced_is_charged_in_full():
    """No call is uncounted."""
    ledger = MemoryLedger(budget_nano_usd=100)

    async def fail() -> None:
        async with hold(ledger, "1", 60, "m") as held:
            held.send()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()

    assert ledger.settled == [("1", 60, Usage(), True)]


async def test_a_cancelled_hold_is_settled():
    """Clean-up survives cancellation, also one that comes while it runs."""
    ledger = SlowLedger(budget_nano_usd=100)
    sent = asyncio.Event()

    async def call() -> None:
        async with hold(ledger, "1", 60, "m") as held:
            held.send()
            sent.set()
            await asyncio.sleep(3600)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(call())
        await sent.wait()
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()

    assert ledger.settled == [("1", 60, Usage(), True)]


async def test_a_hold_that_is_not_granted_now_is_asked_for_again():
    """The ledger says how long the provider's rate is limited; nothing is held meanwhile."""
    ledger = MemoryLedger(waits_s=[3.0, 0.5])
    paused: list[tuple[float, int]] = []

    async def pause(seconds: float) -> None:
        paused.append((seconds, len(ledger.held)))

    async with hold(ledger, "1", 60, "m", pause=pause):
        assert ledger.held == {"1": 60}

    assert paused == [(3.0, 0), (0.5, 0)]


async def test_a_refused_rate_is_told_to_the_ledger():
    """With the pause the provider asked for, 0 if it named none; what is no limit is no news."""
    ledger = MemoryLedger()
    for is_limit, after_s in ((True, 20.0), (True, None), (False, 7.0)):
        async with hold(ledger, "1", 60, "m") as held:
            held.note_limit(is_limit, after_s)

    assert ledger.limits == [20.0, 0.0]


async def test_no_money_is_no_hold():
    """The companion: the ledger's reason is the error's message."""
    with pytest.raises(BudgetExhausted, match="exhausted"):
        async with hold(MemoryLedger(budget_nano_usd=100), "1", 101, "m"):
            pytest.fail("entered")


async def test_a_silent_supervisor_is_asked_again_with_the_same_call():
    """The answer to a repeated request is the same, so asking again cannot reserve twice."""
    link = SilentFirst(1)

    reply = await a_ledger(link).reserve("7.1", 60, "m")

    assert reply.granted
    assert [request.call_id for request in link.requests] == ["7.1", "7.1"]
    assert link.requests[0] == BudgetRequest(
        executor="e1",
        run_id="0123456789",
        job_id="0123456789-spec-1",
        attempt=2,
        token="t",
        op="reserve",
        call_id="7.1",
        nano_usd=60,
        model="m",
    )


async def test_settle_carries_what_was_used():
    """The supervisor's events are made of it."""
    link = SilentFirst(0)

    await a_ledger(link).extend("7.1", 80)
    await a_ledger(link).settle("7.1", 70, Usage(output_tokens=3), unsettled=True)

    assert [(r.op, r.nano_usd, r.usage, r.unsettled) for r in link.requests] == [
        ("extend", 80, None, False),
        ("settle", 70, Usage(output_tokens=3), True),
    ]


async def test_nothing_is_granted_while_nobody_answers():
    """The call waits; after the bound it fails, and no money was given."""
    link = SilentFirst(1_000, hangs=True)
    ledger = BudgetLedger(link, executor="e1", run_id="0123456789", job_id="0123456789-spec-1", attempt=2, token="t", wait_max_s=0.05)

    with pytest.raises(BrokerError, match="did not answer reserve for 0 s"):
        await ledger.reserve("1", 60, "m")


def test_the_waits_are_the_ones_that_were_decided():
    """DECISIONS D4: no answer in 5 s, the call waits."""
    assert reservation.ANSWER_TIMEOUT_S == 5.0
