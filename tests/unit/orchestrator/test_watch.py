"""What no message tells: executors that are gone, attempts past their wall clock; time is the test's."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sandbox.contract.errors import BrokerError
from sandbox.contract.result import Outcome
from sandbox.contract.wire import ClaimRequest, Heartbeat
from supervisor.orchestrator.watch import GONE_GRACE_S, UNTAKEN_S, WALL_GRACE_S, Watch
from tests.fakes.line_world import World, a_world, wait_until


class Scene:
    """One claimed job, a clock that stands still, and who is alive."""

    def __init__(self, world: World, run: str) -> None:
        self.world = world
        self.run = run
        self.now = 1000.0
        self.alive = ["host-1"]
        self.is_away = False
        assert world.orchestrator is not None
        actors = world.orchestrator._actors
        ports = world.ports(clock=lambda: self.now, link=self, queue=self)
        self.waiting = False
        self.watch = Watch(ports, lambda: tuple(actors.values()))

    async def executors(self) -> list[Heartbeat]:
        """Return who is alive."""
        if self.is_away:
            raise BrokerError("away")
        return [Heartbeat(executor=name, release="1", pools=(), slots=1, busy=0, model="none") for name in self.alive]

    def is_waiting(self, dedupe: str) -> bool:
        """Return whether the queue still has the copy."""
        assert dedupe.startswith(f"{self.run}-spec-1:")
        return self.waiting

    async def look_after(self, seconds: float) -> list[Outcome]:
        """Move the clock, look, and return how attempts have ended."""
        self.now += seconds
        await self.watch.look()
        job = (await self.world.state(self.run)).jobs[f"{self.run}-spec-1"]
        return [attempt.outcome for attempt in job.attempts if attempt.outcome is not None]


@asynccontextmanager
async def a_scene(*, claimed: bool = True) -> AsyncIterator[Scene]:
    async with a_world() as world, world.supervisor(clock=lambda: 1000.0):
        run = await world.submit()
        await world.until(run, lambda state: bool(state.jobs), "a job is dispatched")
        assert world.broker.desk is not None
        ack = "$JS.ACK.JOBS.default.1.1.1.1.0"
        if claimed:
            reply = await world.broker.desk.claim(ClaimRequest(executor="host-1", job_id=f"{run}-spec-1", ack_subject=ack))
            assert reply.decision == "granted"
        yield Scene(world, run)


async def test_an_executor_that_is_gone_loses_its_attempt_after_the_grace():
    """Its life sign has expired already when we first miss it; the job is published again."""
    async with a_scene() as scene:
        assert await scene.look_after(60) == []
        scene.alive = []
        assert await scene.look_after(5) == []
        assert await scene.look_after(GONE_GRACE_S - 0.1) == []
        assert await scene.look_after(0.1) == [Outcome.LOST]
        await wait_until(lambda: "job_republished" in [event.type for event in scene.world.observed], "it is published again")


async def test_an_executor_that_comes_back_in_time_keeps_its_attempt():
    """A reconnect within the grace starts the count anew."""
    async with a_scene() as scene:
        scene.alive = []
        await scene.look_after(1)
        await scene.look_after(GONE_GRACE_S - 1)
        scene.alive = ["host-1"]
        await scene.look_after(1)
        scene.alive = []

        assert await scene.look_after(1) == []
        assert await scene.look_after(GONE_GRACE_S - 1) == []


async def test_a_blind_watch_declares_nobody_dead():
    """Without the bus an executor is silent, not dead."""
    async with a_scene() as scene:
        scene.is_away = True
        scene.now += 1000
        with pytest.raises(BrokerError):
            await scene.watch.look()
        scene.is_away = False

        assert await scene.look_after(1) == []


async def test_an_attempt_long_past_its_wall_clock_is_ended_although_its_executor_lives():
    """A hung executor must not hold a run for ever."""
    async with a_scene() as scene:
        assert await scene.look_after(1800 + WALL_GRACE_S - 0.1) == []
        assert await scene.look_after(0.1) == [Outcome.LOST]


async def test_a_job_nobody_takes_from_the_bus_is_published_again():
    """Its copy was acked by somebody else, or the broker lost it: a new copy goes out, and only one."""
    async with a_scene(claimed=False) as scene:
        await scene.look_after(0)
        await scene.look_after(UNTAKEN_S - 1)
        assert "job_republished" not in [event.type for event in scene.world.observed]
        await scene.look_after(1)
        await scene.look_after(UNTAKEN_S - 1)
        state = await scene.world.state(scene.run)

    assert [event.type for event in scene.world.observed].count("job_republished") == 1
    assert state.jobs[f"{scene.run}-spec-1"].publications == 2


async def test_a_job_that_waits_for_an_executor_is_not_lost():
    """However long nobody has a free slot."""
    async with a_scene(claimed=False) as scene:
        scene.waiting = True
        await scene.look_after(0)
        await scene.look_after(10 * UNTAKEN_S)

    assert "job_republished" not in [event.type for event in scene.world.observed]
