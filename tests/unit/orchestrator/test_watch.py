"""What no message tells: executors that are gone, attempts past their wall clock; time is the test's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from sandbox.contract.errors import BrokerError
from sandbox.contract.result import Outcome
from sandbox.contract.wire import ClaimRequest, Heartbeat, JoinRequest, Notice
from supervisor.orchestrator.watch import CUT_GRACE_S, DIRECTED_S, GONE_GRACE_S, UNTAKEN_S, WALL_GRACE_S, Watch
from supervisor.pipeline.events import JobRepublished
from tests.fakes.line_world import World, a_world, wait_until


class Scene:
    """One claimed job, a clock that stands still, and who is alive."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.run = ""
        self.now = 1000.0
        """What every age rests on."""
        self.wall = 1_750_000_000.0
        """What is only said."""
        self.alive = ["host-1"]
        self.signs = 0
        self.is_away = False
        self.waiting = False
        self.directed = ""
        self.waited_s = 0.0
        self.forgotten: list[str] = []
        self.claim: ClaimRequest
        """The first one's, if it was claimed."""

    def begin(self, run: str) -> None:
        """Watch the world's runs."""
        self.run = run
        assert self.world.orchestrator is not None
        actors = self.world.orchestrator._actors
        ports = self.world.ports(clock=lambda: self.wall, monotonic=lambda: self.now, link=self, queue=self)
        self.watch = Watch(ports, lambda: tuple(actors.values()), lambda job, attempt: self.waited_s if attempt == 1 else 0.0)

    async def notices(self) -> AsyncIterator[Notice]:
        """Hear nothing from the broker by itself."""
        while True:
            await asyncio.Event().wait()
            yield CUT

    def directed_to(self, dedupe: str) -> str:
        """Return on whose lane a copy is."""
        return self.directed if dedupe == f"{self.run}-spec-1:1" else ""

    async def forget(self, executor: str, pools: tuple[str, ...]) -> None:
        """Remember whose lanes are removed."""
        self.forgotten.append(executor)

    async def executors(self) -> list[Heartbeat]:
        """Return who is alive."""
        if self.is_away:
            raise BrokerError("away")
        said = {"release": "1", "pools": (), "slots": 1, "busy": 0, "model": "none", "seen_at": self.signs}
        return [Heartbeat.model_validate(said | {"executor": name}) for name in self.alive]

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
    async with a_world() as world, AsyncExitStack() as stack:
        scene = Scene(world)
        await stack.enter_async_context(world.supervisor(clock=lambda: scene.wall, monotonic=lambda: scene.now))
        run = await world.submit()
        await world.until(run, lambda state: bool(state.jobs), "a job is dispatched")
        assert world.broker.desk is not None
        ack = "$JS.ACK.JOBS.default.1.1.1.1.0"
        if claimed:
            scene.claim = ClaimRequest(executor="host-1", job_id=f"{run}-spec-1", ack_subject=ack)
            assert (await world.broker.desk.claim(scene.claim)).decision == "granted"
        scene.begin(run)
        yield scene


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


async def test_an_attempt_that_waited_for_the_providers_rate_has_so_much_longer():
    """Its executor does not charge it either."""
    async with a_scene() as scene:
        scene.waited_s = 600
        assert await scene.look_after(1800 + WALL_GRACE_S + 599) == []
        assert await scene.look_after(1) == [Outcome.LOST]


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


CUT = Notice(executor="host-1", is_connected=False)
BACK = Notice(executor="host-1", is_connected=True)
JOIN = JoinRequest(executor="host-1", release="1", pools=("default",), slots=1)


async def test_an_executor_whose_connection_closed_loses_its_attempt_after_a_short_grace():
    """The broker says so within milliseconds; its life sign, which lasts 15 s, is not waited for."""
    async with a_scene() as scene:
        scene.watch.note(CUT)
        assert await scene.look_after(0) == []
        assert await scene.look_after(CUT_GRACE_S - 0.1) == []
        assert await scene.look_after(0.1) == [Outcome.LOST]


@pytest.mark.parametrize("returns", ["connects", "joins", "signs"])
async def test_an_executor_that_is_back_within_the_grace_keeps_its_attempt(returns: str):
    """It connected or joined again, or a newer life sign came by a connection whose notice was lost."""
    async with a_scene() as scene:
        scene.watch.note(CUT)
        await scene.look_after(1)
        match returns:
            case "connects":
                scene.watch.note(BACK)
            case "joins":
                scene.watch.joined(JOIN)
            case _:
                scene.signs += 1

        assert await scene.look_after(1) == []
        assert await scene.look_after(CUT_GRACE_S) == []


async def test_a_blind_watch_forgets_whom_it_saw_cut_off():
    """When the broker itself was away, everybody's connection closed."""
    async with a_scene() as scene:
        scene.watch.note(CUT)
        scene.is_away = True
        task = asyncio.create_task(scene.watch.run())
        await wait_until(lambda: not scene.watch._cut, "the watch is blind")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        scene.is_away = False

        assert await scene.look_after(CUT_GRACE_S) == []


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0])
async def test_a_clock_that_jumps_a_day_ends_no_attempt_and_delays_nothing(jump_s: float):
    """Forwards or backwards: the attempt goes on, and its end comes when it would have come."""
    async with a_scene() as scene:
        await scene.look_after(60)
        scene.wall += jump_s
        assert await scene.look_after(60) == []
        assert scene.world.broker.desk is not None
        reply = await scene.world.broker.desk.claim(scene.claim.model_copy(update={"goes_on": True}))
        assert (reply.decision, reply.wall_left_s) == ("granted", 1800 - 120)
        assert await scene.look_after(1800 + WALL_GRACE_S - 120.1) == []
        assert await scene.look_after(0.1) == [Outcome.LOST]


async def test_a_clock_that_jumps_takes_back_no_job():
    """A job on the bus is as old as it is."""
    async with a_scene(claimed=False) as scene:
        await scene.look_after(0)
        scene.wall += 86_400
        await scene.look_after(UNTAKEN_S - 1)

    assert "job_republished" not in [event.type for event in scene.world.observed]


async def test_a_job_on_the_lane_of_an_executor_that_took_another_is_taken_back():
    """It would wait there until that one has ended, while others are free."""
    async with a_scene(claimed=False) as scene:
        scene.directed = "host-1"
        await scene.look_after(0)
        await scene.look_after(DIRECTED_S - 0.1)
        assert "job_republished" not in [event.type for event in scene.world.observed]
        await scene.look_after(0.1)
        state = await scene.world.state(scene.run)

    assert state.jobs[f"{scene.run}-spec-1"].publications == 2


async def test_what_was_directed_to_an_executor_that_is_gone_goes_elsewhere_and_its_lanes_are_removed():
    """Once; when it comes back it joins, and may be forgotten again."""
    async with a_scene(claimed=False) as scene:
        scene.watch.joined(JOIN)
        scene.directed = "host-1"
        scene.alive = []
        await scene.look_after(0)
        scene.watch.note(CUT)
        await scene.look_after(0)
        scene.now += CUT_GRACE_S - DIRECTED_S  # the copy is younger than what alone would take it back
        scene.watch._untaken_since.clear()
        await scene.look_after(DIRECTED_S - 0.1)
        assert scene.forgotten == []
        await scene.look_after(0.1)
        await scene.look_after(60)
        reasons = [event.reason for event in scene.world.observed if isinstance(event, JobRepublished)]

    assert (reasons, scene.forgotten) == (["executor host-1 is gone"], ["host-1"])
