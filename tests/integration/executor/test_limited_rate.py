"""A provider that limits its rate, and an attempt that has less time than that: a real executor, container and agent."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox.contract.job import Limits
from sandbox.contract.result import Outcome
from sandbox.contract.wire import Progress
from sandbox.executor.config import Pace
from sandbox.runtime.docker import DockerRuntime
from tests.fakes.script import Fault, bash, single, submit
from tests.integration.executor.fleet import Fleet, a_fleet, an_executor

pytestmark = [pytest.mark.docker, pytest.mark.slow]

WALL_S = 30.0
"""Enough for an agent to begin on a busy machine."""
BUSY = Fault(status=429, kind="rate_limit_error", retry_after_s=WALL_S + 4)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: sockets and mounts live below it."""
    with tempfile.TemporaryDirectory(prefix="andon-it-", dir="/tmp") as made:
        yield Path(made)


@asynccontextmanager
async def heard(fleet: Fleet) -> AsyncIterator[list[Progress]]:
    """Collect what attempts say of themselves."""
    said: list[Progress] = []

    async def listen() -> None:
        async for progress in fleet.link.progress():
            said.append(progress)

    task = asyncio.create_task(listen())
    try:
        yield said
    finally:
        task.cancel()


async def test_a_wait_longer_than_the_wall_clock_ends_no_attempt(directory: Path, docker_runtime: DockerRuntime, agent_image: str):
    """The provider lets nobody through for longer than the stage has: the agent goes on after it, does its work, and submits."""
    script = single(bash("echo made > made.txt", fault=BUSY), submit("done"))
    async with a_fleet(directory, script) as fleet, an_executor(fleet, docker_runtime, agent_image, Pace()), heard(fleet) as said:
        fleet.desk.wall_left_s = WALL_S
        await fleet.link.publish_job(fleet.job(limits=Limits(wall_s=int(WALL_S), no_progress_s=int(WALL_S))), "1")

        result = await fleet.result()

    assert (result.outcome, result.reason) == (Outcome.SUBMITTED, "")
    assert result.ended_at - result.started_at > WALL_S + 4
    assert [progress.phase for progress in said].count("throttled") >= 1


async def test_the_control_a_tool_that_takes_as_long_is_cut_off(directory: Path, docker_runtime: DockerRuntime, agent_image: str):
    """The same time spent by the agent's own tool is charged."""
    script = single(bash(f"sleep {WALL_S + 4:.0f}"), submit("done"))
    async with a_fleet(directory, script) as fleet, an_executor(fleet, docker_runtime, agent_image, Pace()):
        fleet.desk.wall_left_s = WALL_S
        await fleet.link.publish_job(fleet.job(limits=Limits(wall_s=int(WALL_S))), "1")

        result = await fleet.result()
        calls = len(fleet.model.log)

    assert (result.outcome, calls) == (Outcome.TIMEOUT, 1)
    assert "wall clock" in result.reason
