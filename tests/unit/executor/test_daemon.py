"""The daemon gives back what it has: results of an earlier process first, and never hangs on a broker that stays away."""

import asyncio
from pathlib import Path
from typing import Any, cast

from sandbox.contract.errors import BrokerError
from sandbox.contract.result import AttemptResult
from sandbox.executor.config import Host
from sandbox.executor.daemon import STOP_DELIVERY_S, Daemon
from tests.fakes.wire_data import a_result


class Away:
    """A broker that refuses everything until it is back."""

    def __init__(self) -> None:
        self.is_back = False
        self.stored: list[AttemptResult] = []

    async def publish_result(self, result: AttemptResult) -> None:
        if not self.is_back:
            raise BrokerError("nobody is there")
        self.stored.append(result)


class OnlyLink:
    """A host of which only link and state are asked for."""

    def __init__(self, link: Away, state: Path) -> None:
        self.link = link
        self.config: Any = type("Config", (), {"state": state})


def a_daemon(link: Away, state: Path) -> Daemon:
    return Daemon(cast(Host, OnlyLink(link, state)))


async def test_a_result_waits_for_the_broker_and_leaves_the_disk_when_it_is_stored(tmp_path: Path):
    """A cut costs time, not work."""
    link, result = Away(), a_result()
    daemon = a_daemon(link, tmp_path)
    await daemon._outbox.keep(result)

    delivering = asyncio.create_task(daemon._deliver(result))
    await asyncio.sleep(0.05)
    link.is_back = True
    await asyncio.wait_for(delivering, 5)

    assert link.stored == [result]
    assert await daemon._outbox.left() == []


async def test_told_to_stop_it_leaves_the_result_on_disk_for_the_next_process(tmp_path: Path):
    """A broker that was killed with the stack must not keep its executor alive for ever."""
    daemon = a_daemon(Away(), tmp_path)
    await daemon._outbox.keep(a_result())

    daemon.cancel_all("stopping")
    await asyncio.wait_for(daemon._deliver(a_result()), STOP_DELIVERY_S + 3)

    assert await daemon._outbox.left() == [a_result()]
