"""Results reach the broker once, whatever is between: a cut is waited for, a stop leaves them on disk."""

import asyncio
from pathlib import Path

import pytest

from sandbox.contract.errors import BrokerError
from sandbox.contract.result import AttemptResult
from sandbox.executor.outbox import Outbox
from sandbox.executor.post import Letter, Post
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.fakes.wire_data import a_result, wait_until
from tests.unit.executor.a_host import HASTY


class Away(MemoryExecutorLink):
    """A broker that refuses everything until it is back."""

    is_back = False
    tries = 0

    async def publish_result(self, result: AttemptResult) -> None:
        self.tries += 1
        if not self.is_back:
            raise BrokerError("nobody is there")
        await super().publish_result(result)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def link(broker: MemoryBroker) -> Away:
    return Away(broker, "ex1", ("default",))


async def test_a_result_waits_for_the_broker_and_leaves_the_disk_when_it_is_stored(tmp_path: Path, broker: MemoryBroker, link: Away):
    """A cut costs time, not work."""
    outbox = Outbox(tmp_path, "ex1")
    await outbox.keep(a_result())

    delivering = asyncio.create_task(Post(link, outbox, HASTY).deliver(Letter(a_result())))
    await wait_until(lambda: _tried(link, 3), "some tries")
    assert broker.results == []
    link.is_back = True
    await asyncio.wait_for(delivering, 5)

    assert len(broker.results) == 1
    assert await outbox.left() == []


async def test_told_to_stop_it_leaves_the_result_on_disk_for_the_next_process(tmp_path: Path, link: Away):
    """A broker that was killed with the stack must not keep its executor alive for ever."""
    outbox = Outbox(tmp_path, "ex1")
    await outbox.keep(a_result())
    delivery = Post(link, outbox, HASTY)

    delivery.stop_soon()
    await asyncio.wait_for(delivery.deliver(Letter(a_result())), 5)

    assert await outbox.left() == [a_result()]


async def _tried(link: Away, times: int) -> bool:
    return link.tries >= times
