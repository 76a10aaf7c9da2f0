"""What the fake broker adds for tests built on it: a clock of their own."""

from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink, MemorySupervisorLink
from tests.fakes.wire_data import a_heartbeat, a_job


async def test_leases_life_signs_and_repetitions_follow_the_given_clock() -> None:
    """Time passes only when the test says so."""
    now = 0.0
    broker = MemoryBroker(clock=lambda: now)
    async with MemorySupervisorLink.connect(broker) as supervisor, MemoryExecutorLink.connect(broker, "ex1") as executor:
        await executor.heartbeat(a_heartbeat())
        await supervisor.publish_job(a_job(), "d1")
        assert await executor.next_job(0.05) is not None
        assert await executor.next_job(0.05) is None
        assert len(await supervisor.executors()) == 1

        now = 61.0
        await broker.poke()

        again = await executor.next_job(0.05)
        assert again is not None
        assert again.deliveries == 2
        assert await supervisor.executors() == []

        now = 601.0
        await executor.ack(again.ack_subject)
        await supervisor.publish_job(a_job(), "d1")
        assert await executor.next_job(0.05) is not None
