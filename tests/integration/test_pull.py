"""Pulling from several lanes at once on a real broker: what arrives beside a job, or too late, goes on to somebody at once."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.bus import NatsExecutorLink, NatsSupervisorLink
from sandbox.bus.unclaimed import UNCLAIMED_S, Unclaimed
from sandbox.contract.credentials import write_credentials
from sandbox.contract.wire import Delivery
from supervisor.store.broker.embedded import EmbeddedBroker
from tests.fakes.paper_desk import PaperDesk
from tests.fakes.wire_data import a_claim, a_job, grant, pay

LEASE_S = 60.0
SOON_S = 2 * UNCLAIMED_S
"""Nobody waits longer than this, a tenth of the lease."""

_DIES_WITH_A_JOB = """
import asyncio, os, signal, sys
from pathlib import Path
from sandbox.bus import NatsExecutorLink
from sandbox.contract.credentials import ExecutorCredentials, read_credentials
async def main():
    async with NatsExecutorLink.connect(read_credentials(Path(sys.argv[1]), ExecutorCredentials)) as link:
        print("pulls", flush=True)
        await link.next_job(30)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@dataclass
class Site:
    broker: EmbeddedBroker
    supervisor: NatsSupervisorLink
    executor: NatsExecutorLink


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with (
        EmbeddedBroker.run(tmp_path / "nats") as broker,
        NatsSupervisorLink.connect(broker.supervisor, lease_s=LEASE_S) as supervisor,
        NatsExecutorLink.connect(await broker.add_executor("ex1")) as executor,
    ):
        await supervisor.admit("ex1", ("default",))
        await supervisor.serve(PaperDesk(grant, pay), {})
        yield Site(broker, supervisor, executor)


@pytest.mark.parametrize("cancelled", [False, True], ids=["the first is taken", "the caller is cancelled"])
async def test_no_job_waits_for_its_lease(site: Site, cancelled: bool) -> None:
    """Two lanes answer one pull in the same millisecond, or a moment after it was given up, many times: both jobs come soon."""
    rng = random.Random(4)
    waits_s: list[float] = []
    for number in range(150):
        pulling = asyncio.create_task(site.executor.next_job(10))
        await asyncio.sleep(rng.uniform(0, 0.004))
        await asyncio.gather(
            site.supervisor.publish_job(a_job("one"), f"a{number}"), site.supervisor.publish_job(a_job("two"), f"b{number}", executor="ex1")
        )
        if cancelled:
            await asyncio.sleep(rng.uniform(0, 0.002))
            pulling.cancel()
        began = time.monotonic()
        await _both(site.executor, pulling)
        waits_s.append(time.monotonic() - began)

    assert max(waits_s) < SOON_S
    assert sum(wait_s > 1 for wait_s in waits_s) < 15  # those the broker itself dropped between two accounts: 1 of 100 here


async def test_a_message_on_the_way_at_the_end_is_given_back_at_once(site: Site) -> None:
    """A slow reader's second message is in the socket while the first is taken: it goes back, not to the lease."""
    for number in range(50):
        pulling = asyncio.create_task(site.executor.next_job(10))
        await asyncio.sleep(0.005)
        await site.supervisor.publish_job(a_job("one"), f"a{number}")
        await site.supervisor.publish_job(a_job("two"), f"b{number}", executor="ex1")
        began = time.monotonic()
        await _both(site.executor, pulling)

        assert time.monotonic() - began < SOON_S


@pytest.mark.abuse("N09")
async def test_an_executor_that_dies_before_its_claim_does_not_keep_the_job(site: Site, tmp_path: Path) -> None:
    """The supervisor cannot know whom it was handed to; it sees that nobody claims it."""
    path = tmp_path / "ex2.andon.json"
    write_credentials(path, await site.broker.add_executor("ex2"))
    dying = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _DIES_WITH_A_JOB, str(path)), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert dying.stdout is not None
    await asyncio.wait_for(dying.stdout.readline(), 20)

    while dying.returncode is None:  # it may not pull yet, and the other one is not asked
        await site.supervisor.publish_job(a_job(), f"d{time.monotonic_ns()}")
        with suppress(TimeoutError):
            await asyncio.wait_for(dying.wait(), 1)
    assert dying.returncode == -signal.SIGKILL
    began = time.monotonic()
    delivery = await _next(site.executor)

    assert delivery.job == a_job()
    assert time.monotonic() - began < SOON_S


def test_a_claim_that_is_faster_than_the_brokers_word_counts(site: Site) -> None:
    """A waiting executor claims within a millisecond, often before the supervisor hears that the job is stored."""
    unclaimed = Unclaimed(site.supervisor.connection)

    unclaimed.settled("$JS.ACK.JOBS.default.1.7.1.0.0")
    unclaimed.published(7, "default")
    assert len(unclaimed) == 0

    unclaimed.redelivered("$JS.ACK.JOBS.default.1.7.1.0.0")
    unclaimed.published(8, "default")
    assert len(unclaimed) == 2


async def test_a_claimed_job_is_left_alone(site: Site) -> None:
    """Whoever claimed works in peace for as long as it says so."""
    await site.supervisor.publish_job(a_job(), "d1")
    delivery = await _next(site.executor)
    await site.executor.claim(a_claim(delivery.ack_subject))

    assert await site.executor.next_job(UNCLAIMED_S + 2) is None


async def test_a_stopped_broker_loses_no_job_and_no_reader(site: Site) -> None:
    """A round trip that takes long is waited for, not given up: a late PONG would make the connection deaf (NATS.md §9)."""
    pulling = asyncio.create_task(site.executor.next_job(10))
    await asyncio.sleep(0.1)
    os.kill(site.broker.pid, signal.SIGSTOP)
    try:
        pulling.cancel()
        await asyncio.wait({pulling})
        await asyncio.sleep(6)
    finally:
        os.kill(site.broker.pid, signal.SIGCONT)
    await site.supervisor.publish_job(a_job(), "d1")
    began = time.monotonic()

    assert (await _next(site.executor)).job == a_job()
    assert time.monotonic() - began < SOON_S


async def _both(executor: NatsExecutorLink, pulling: "asyncio.Task[Delivery | None]") -> None:
    """Take two jobs, the first one perhaps by a pull that is already going on; claim and acknowledge them."""
    first: Delivery | None = None
    with suppress(asyncio.CancelledError):
        first = await pulling
    deliveries = [first] if first is not None else []
    while len(deliveries) < 2:
        deliveries.append(await _next(executor))
    for delivery in deliveries:
        await executor.claim(a_claim(delivery.ack_subject))
        await executor.ack(delivery.ack_subject)


async def _next(executor: NatsExecutorLink) -> Delivery:
    async with asyncio.timeout(LEASE_S / 2):
        while (delivery := await executor.next_job(5)) is None:
            pass
    return delivery
