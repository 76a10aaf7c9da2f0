"""Which supervisor is active: one at a time, and the next one soon."""

import asyncio
import base64
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.bus import Connection, NatsSupervisorLink
from sandbox.contract import subjects
from sandbox.contract.errors import BrokerError
from supervisor.store.broker.embedded import EmbeddedBroker
from supervisor.store.log.lease import Leadership

TTL_S = 3


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        async with NatsSupervisorLink.connect(broker.supervisor):
            pass
        yield broker


@pytest.fixture
async def one(broker: EmbeddedBroker) -> AsyncIterator[Connection]:
    async with Connection.open(broker.supervisor, name="one", inbox="fleet") as connection:
        yield connection


@pytest.fixture
async def two(broker: EmbeddedBroker) -> AsyncIterator[Connection]:
    async with Connection.open(broker.supervisor, name="two", inbox="fleet") as connection:
        yield connection


async def test_one_holds_it_and_the_other_waits(one: Connection, two: Connection) -> None:
    """While one supervisor renews, another does not get the lease, however long it waits."""
    async with Leadership.hold(one, "one", ttl_s=TTL_S) as first:
        with pytest.raises(BrokerError, match="not ours"):
            async with Leadership.hold(two, "two", wait_s=TTL_S + 1, ttl_s=TTL_S):
                pass

        assert first.is_held
        assert first.epoch > 0


async def test_given_back_it_is_free_at_once(one: Connection, two: Connection) -> None:
    """A supervisor that ends in order does not make its successor wait, and the epoch grows."""
    async with Leadership.hold(one, "one") as first:
        standby = asyncio.create_task(_epoch(two))
        await asyncio.sleep(0.1)
    began = time.monotonic()

    assert await standby > first.epoch
    assert time.monotonic() - began < 2
    assert not first.is_held


async def test_a_dead_holders_lease_runs_out(one: Connection, two: Connection) -> None:
    """A holder that vanished without a word is succeeded when its time is over, not before."""
    subject = subjects.lease(subjects.LEASE_SUPERVISOR)
    began = time.monotonic()
    await one.store(subject, b"{}", headers={"Nats-TTL": f"{TTL_S}s"})

    async with Leadership.hold(two, "two", wait_s=2 * TTL_S, ttl_s=TTL_S) as second:
        waited_s = time.monotonic() - began

    assert second.epoch > 1
    assert TTL_S - 0.5 < waited_s < TTL_S + 3


async def test_a_holder_whose_lease_was_taken_stands_down(one: Connection, two: Connection) -> None:
    """A leader that was stopped and woke up sees that it was succeeded, and does not give back what is not its own."""
    subject = subjects.lease(subjects.LEASE_SUPERVISOR)
    async with Leadership.hold(one, "one", ttl_s=TTL_S) as first:
        await two.store(subject, b"usurper", headers={"Nats-TTL": "60s"})

        why = await asyncio.wait_for(first.wait_lost(), 5)

        assert "another supervisor" in why
        assert not first.is_held
    assert await _written(two) == b"usurper"


async def test_a_holder_gives_back_its_own_lease_only(one: Connection, two: Connection) -> None:
    """One that ends before it noticed that it was succeeded leaves its successor's lease alone."""
    async with Leadership.hold(one, "one", ttl_s=TTL_S) as first:
        await two.store(subjects.lease(subjects.LEASE_SUPERVISOR), b"usurper", headers={"Nats-TTL": "60s"})
        assert first.is_held

    assert await _written(two) == b"usurper"


async def test_a_holder_that_cannot_renew_stands_down_before_the_broker_says_so(broker: EmbeddedBroker, one: Connection) -> None:
    """Without the broker the lease ends by our own clock, a second early."""
    async with Leadership.hold(one, "one", ttl_s=TTL_S) as first:
        os.kill(broker.pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            await asyncio.wait_for(first.wait_lost(), TTL_S + 1)

            assert not first.is_held
            assert time.monotonic() - began < TTL_S
        finally:
            os.kill(broker.pid, signal.SIGCONT)


async def test_it_survives_a_killed_broker(broker: EmbeddedBroker, one: Connection) -> None:
    """A restart of the broker within the lease's time changes nothing."""
    async with Leadership.hold(one, "one", ttl_s=TTL_S) as first:
        os.kill(broker.pid, signal.SIGKILL)

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(first.wait_lost(), TTL_S + 1)

        assert first.is_held


async def _epoch(connection: Connection) -> int:
    async with Leadership.hold(connection, "standby", wait_s=10) as leadership:
        return leadership.epoch


async def _written(connection: Connection) -> bytes:
    last = await connection.api(f"STREAM.MSG.GET.KV_{subjects.KV_LEASES}", {"last_by_subj": subjects.lease(subjects.LEASE_SUPERVISOR)})
    return base64.b64decode(last["message"]["data"])
