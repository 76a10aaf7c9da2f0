"""The daemon: it joins before it pulls, takes no job when it should not, drains, and ends when the supervisor refuses it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox.contract.errors import UsageError
from sandbox.contract.wire import BudgetReply, BudgetRequest, ClaimReply, ClaimRequest, Control, JoinReply, JoinRequest
from sandbox.executor.config import Host
from sandbox.executor.daemon import Daemon
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.fakes.wire_data import a_job, a_result, wait_until
from tests.unit.executor.a_host import a_host


class Desk:
    """A supervisor whose answers the test chooses; it has no job for anybody."""

    def __init__(self) -> None:
        self.joined: list[JoinRequest] = []
        self.join_reply = JoinReply(accepted=True, release="9")
        self.claimed: list[ClaimRequest] = []
        self.claim_reply = ClaimReply(decision="gone")

    async def join(self, request: JoinRequest) -> JoinReply:
        self.joined.append(request)
        return self.join_reply

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        self.claimed.append(request)
        return self.claim_reply

    async def budget(self, request: BudgetRequest) -> BudgetReply:
        raise NotImplementedError


@asynccontextmanager
async def working(host: Host) -> AsyncIterator[tuple[Daemon, asyncio.Task[None]]]:
    """Run a daemon; at the end it is drained, unless it has ended."""
    daemon = Daemon(host)
    running = asyncio.create_task(daemon.run())
    try:
        yield daemon, running
    finally:
        daemon.cancel_all("the test is over")
        await asyncio.wait({running}, timeout=20)
        assert running.done(), "it hangs"


def pulls(broker: MemoryBroker) -> int:
    return broker.waiting["default"]


async def held(broker: MemoryBroker) -> str:
    await wait_until(lambda: _is_true("ex1" in broker.life_signs), "a life sign")
    return broker.life_signs["ex1"][1].held


async def _is_true(value: bool) -> bool:
    return value


async def test_it_waits_for_a_supervisor_before_it_pulls_and_says_so(tmp_path: Path):
    """Jobs may lie on the queue for long before anybody answers claims."""
    broker, desk = MemoryBroker(), Desk()
    async with (
        MemoryExecutorLink.connect(broker, "ex1") as link,
        a_host(tmp_path, link, labels={"gpu": "a100"}, slots=2) as host,
        working(host),
    ):
        assert "supervisor" in await held(broker)
        assert pulls(broker) == 0

        broker.desk = desk
        await wait_until(lambda: _is_true(pulls(broker) == 2), "both slots pull")

    assert [(each.executor, each.labels, each.slots) for each in desk.joined] == [("ex1", {"gpu": "a100"}, 2)]


async def test_a_refused_executor_takes_no_job_and_ends_with_the_reason(tmp_path: Path):
    """Another version: one line that says why, as a usage error."""
    broker = MemoryBroker(desk=(desk := Desk()))
    desk.join_reply = JoinReply(accepted=False, reason="protocol 1 is too old, 2 is needed: install the newer release", release="9")
    broker.enqueue(a_job(), "default")
    async with MemoryExecutorLink.connect(broker, "ex1") as link, a_host(tmp_path, link) as host:
        with pytest.raises(UsageError, match=r"protocol 1 is too old.*supervisor is release 9"):
            await asyncio.wait_for(Daemon(host).run(), 10)

    assert broker.jobs[0].deliveries == 0


async def test_a_refused_claim_makes_it_ask_again_whether_it_belongs(tmp_path: Path):
    """The supervisor was replaced by one of another version while the executor was a member."""
    broker = MemoryBroker(desk=(desk := Desk()))
    async with MemoryExecutorLink.connect(broker, "ex1") as link, a_host(tmp_path, link) as host:
        running = asyncio.create_task(Daemon(host).run())
        await wait_until(lambda: _is_true(pulls(broker) == 1), "it is a member")

        desk.claim_reply = ClaimReply(decision="refused", reason="another version")
        desk.join_reply = JoinReply(accepted=False, reason="another version")
        broker.enqueue(a_job(), "default")

        with pytest.raises(UsageError, match="another version"):
            await asyncio.wait_for(running, 10)


async def test_a_claim_refused_for_the_job_alone_leaves_it_a_member(tmp_path: Path):
    """The companion: a job of another pool is no reason to end."""
    broker = MemoryBroker(desk=(desk := Desk()))
    desk.claim_reply = ClaimReply(decision="refused", reason="another pool")
    broker.enqueue(a_job(), "default")
    async with MemoryExecutorLink.connect(broker, "ex1") as link, a_host(tmp_path, link) as host, working(host) as (_, running):
        await wait_until(lambda: _is_true(len(desk.joined) == 2), "it asks again")
        await wait_until(lambda: _is_true(pulls(broker) == 1), "it pulls again")

        assert not running.done()


@pytest.mark.parametrize("how", ["signal", "supervisor"])
async def test_a_drained_executor_takes_no_job_and_ends_by_itself(tmp_path: Path, how: str):
    """A job that comes afterwards stays on the queue for others."""
    broker = MemoryBroker(desk=Desk())
    async with MemoryExecutorLink.connect(broker, "ex1") as link, a_host(tmp_path, link) as host, working(host) as (daemon, running):
        await wait_until(lambda: _is_true(pulls(broker) == 1), "it pulls")

        if how == "signal":
            daemon.drain()
        else:
            for queue in broker.controls["ex1"]:
                queue.put_nowait(Control(verb="drain"))
        await asyncio.wait_for(running, 10)
        broker.enqueue(a_job(), "default")

        assert pulls(broker) == 0
        assert daemon._ready.held == "draining"


async def test_results_of_an_earlier_process_are_delivered_before_a_job_is_pulled(tmp_path: Path):
    """A job of ours that comes again must not be claimed while its result lies here."""
    broker = MemoryBroker(desk=Desk())
    async with MemoryExecutorLink.connect(broker, "ex1") as link, a_host(tmp_path, link) as host:
        await host.outbox.keep(a_result())
        async with working(host):
            await wait_until(lambda: _is_true(pulls(broker) == 1), "it pulls")

            assert len(broker.results) == 1
            assert await host.outbox.left() == []
