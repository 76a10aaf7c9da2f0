"""Two hosts at once, one budget and one rate limit: real broker, real ledger, real gateways, a provider that counts."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from sandbox.gateway.policy import Policy
from supervisor.pipeline.events import BudgetReserved, BudgetSettled
from supervisor.pipeline.fold import fold
from tests.fakes.gateway import MODEL
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.paying_fleet import a_paying_fleet
from tests.fakes.upstream import Request, a_reply, a_start, an_end, fake_upstream, replying, send_error, send_events, send_head, some_text

DOLLAR = 1_000_000_000
DEAR = Policy(model=MODEL, output_tokens_max=29_000)
"""A call reserves a little under $0.30 and costs $0.25."""
DEAR_REPLY = [a_start(), *some_text(), an_end(output_tokens=25_000)]
AT_ONCE = 12


@pytest.mark.abuse("W05")
async def test_two_hosts_at_once_never_pass_one_budget(tmp_path: Path):
    """Twenty-four calls over two executors on $1: three go out, and at no moment of the log is more spent and held than there is."""
    async with (
        fake_upstream(replying(DEAR_REPLY, pause_s=0.02)) as upstream,
        a_paying_fleet(tmp_path, upstream.base_url) as fleet,
    ):
        run = await fleet.submit(DOLLAR)
        hosts = [await fleet.host(name, policy=DEAR) for name in ("ex1", "ex2")]

        ends = await asyncio.gather(*(host.call(max_tokens=29_000) for _ in range(AT_ONCE) for host in hosts))
        events = await fleet.events(run)

    assert ends.count("end_turn") == len(upstream.requests) == 3
    assert ends.count("billing_error") == 2 * AT_ONCE - 3
    states = [fold(events[:number]).budget for number, event in enumerate(events, 1) if isinstance(event, BudgetReserved | BudgetSettled)]
    assert len(states) == 6
    assert all(0 <= state.remaining_nano_usd <= DOLLAR for state in states)
    assert states[-1].settled_nano_usd == 3 * (25_000 * 10_000 + 100 * 2_000)


@pytest.mark.abuse("W05")
async def test_control_a_budget_that_each_host_counts_for_itself_is_passed(tmp_path: Path):
    """The same race where every host trusts its own count: twice the money is gone."""
    async with (
        fake_upstream(replying(DEAR_REPLY, pause_s=0.02)) as upstream,
        a_paying_fleet(tmp_path, upstream.base_url) as fleet,
    ):
        await fleet.submit(DOLLAR)
        hosts = [await fleet.host(name, policy=DEAR, ledger=MemoryLedger(budget_nano_usd=DOLLAR)) for name in ("ex1", "ex2")]

        await asyncio.gather(*(host.call(max_tokens=29_000) for _ in range(AT_ONCE) for host in hosts))

    assert len(upstream.requests) == 6


@dataclass
class NarrowProvider:
    """A provider that serves two calls at once and refuses the others with 429, as one organisation's limit does."""

    retry_after_s: float
    at_once_max: int = 2
    pause_s: float = 0.02
    """Between two events of a reply."""
    busy: int = 0
    refused_at: list[float] = field(default_factory=list)
    came_at: list[float] = field(default_factory=list)

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        self.came_at.append(time.monotonic())
        if self.busy >= self.at_once_max:
            self.refused_at.append(time.monotonic())
            await send_error(writer, 429, "rate_limit_error", "slow down", retry_after=f"{self.retry_after_s}")
            return
        self.busy += 1
        try:
            await send_head(writer)
            await send_events(writer, a_reply(), pause_s=self.pause_s)
        finally:
            self.busy -= 1


@pytest.mark.slow
async def test_a_refused_rate_slows_every_host_and_every_call_is_served(tmp_path: Path):
    """Twenty calls at once, of which the provider takes two: after some bursts of refusals both hosts keep to what it takes.

    Each for itself, they would come back together again and again, and be refused nearly twice as often.
    """
    provider = NarrowProvider(retry_after_s=1.0, pause_s=0.06)
    async with fake_upstream(provider) as upstream, a_paying_fleet(tmp_path, upstream.base_url) as fleet:
        await fleet.submit(100 * DOLLAR)
        hosts = [await fleet.host(name) for name in ("ex1", "ex2")]

        ends = await asyncio.gather(*(host.call() for _ in range(10) for host in hosts))

    assert ends == ["end_turn"] * 20
    gaps = [later - earlier for earlier, later in pairwise(provider.came_at)]
    assert max(gaps) >= 0.9  # what was on its way still came, and then nothing from either host until the pause was over
    assert len(provider.refused_at) <= 2 * len(ends)
    assert all(host.session.limited_s >= 1.0 for host in hosts)


async def test_a_host_that_was_never_refused_waits_too(tmp_path: Path):
    """The first host was refused; the second one's call goes out only when the provider's pause is over."""
    provider = NarrowProvider(retry_after_s=1.5, at_once_max=0)
    async with fake_upstream(provider) as upstream, a_paying_fleet(tmp_path, upstream.base_url) as fleet:
        await fleet.submit(100 * DOLLAR)
        first, second = [await fleet.host(name) for name in ("ex1", "ex2")]
        refused = asyncio.ensure_future(first.call())
        await until(lambda: first.session.is_limited)  # the refusal was settled, so the ledger knows
        provider.at_once_max = 10

        ends = [await second.call(), await refused]

    assert ends == ["end_turn", "end_turn"]
    assert provider.came_at[1] >= provider.refused_at[0] + 1.4
    assert second.session.limited_s > 1


async def test_a_run_that_asks_for_much_leaves_another_run_its_turn(tmp_path: Path):
    """Sixteen calls of one feature were in the queue before the single call of another: its turn is among the first, not the last."""
    provider = NarrowProvider(retry_after_s=2.0, at_once_max=0)
    async with fake_upstream(provider) as upstream, a_paying_fleet(tmp_path, upstream.base_url) as fleet:
        await fleet.submit(100 * DOLLAR, "greedy")
        greedy = [await fleet.host(name) for name in ("ex1", "ex2")]
        await fleet.submit(100 * DOLLAR, "modest")
        modest = await fleet.host("ex3")
        many = [asyncio.ensure_future(greedy[0].call())]
        await until(lambda: greedy[0].session.is_limited)  # refused alone: one call at once from now on, and one more a round
        provider.at_once_max = 100
        many += [asyncio.ensure_future(host.call()) for _ in range(8) for host in greedy][1:]
        await until(lambda: greedy[1].session.is_limited)

        end = await modest.call()
        served_before = sum(call.done() for call in many)
        ends = await asyncio.gather(*many)

    assert modest.run != greedy[0].run
    assert (end, set(ends)) == ("end_turn", {"end_turn"})
    assert served_before <= 4


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something another task does, at most ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
