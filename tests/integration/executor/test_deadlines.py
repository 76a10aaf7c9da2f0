"""Each deadline of a stage alone, in a real container: the tool's, silence, the wall clock, and the container's own without an executor."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox.contract.job import Assignment, Check, Limits, Submission
from sandbox.contract.result import Outcome
from sandbox.executor.ending import Cancel, watch
from sandbox.runtime.container_spec import PROGRAM, SlotSpec
from sandbox.runtime.control import running_control
from sandbox.runtime.docker import DockerRuntime, DockerSandbox
from tests.fakes.gateway import Gateway, open_gateway
from tests.fakes.script import Fault, Turn, single, submit
from tests.fakes.scripted_model import ScriptedModel
from tests.fakes.wire_data import a_job
from tests.integration.runtime.test_docker_runtime import processes_of

pytestmark = pytest.mark.docker

SlotBuilder = Callable[..., SlotSpec]
SECONDS = 1_000


def an_assignment(*argv: str, timeout_s: int = SECONDS, wall_s: int = SECONDS, self_destruct_s: int = SECONDS) -> Assignment:
    return Assignment(
        job_id="0123456789-validate-1",
        stage="validate",
        round=1,
        attempt=1,
        kind="checks",
        checks=(Check(name="check", argv=argv, timeout_s=timeout_s),),
        traceparent="",
        wall_s=wall_s,
        self_destruct_s=self_destruct_s,
    )


class Held:
    """A lease that is never lost."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()


@asynccontextmanager
async def at_work(
    runtime: DockerRuntime, slot: SlotSpec, image: str, assignment: Assignment
) -> AsyncIterator[tuple[DockerSandbox, Gateway]]:
    """Start a container of our program and give it its work."""
    slot.gateway.chmod(0o755)
    async with open_gateway(slot.gateway, None, policy=None, peer_uid=slot.uid) as gateway:
        box = await runtime.stand_by(slot, image)
        try:
            gateway.session.assign(assignment)
            yield box, gateway
        finally:
            await box.remove()


async def submitted(gateway: Gateway, within_s: float = 30) -> Submission:
    return await asyncio.wait_for(gateway.session.wait_submitted(), within_s)


async def printed(box: DockerSandbox, text: str) -> None:
    async with asyncio.timeout(30):
        while text.encode() not in await box.log():
            await asyncio.sleep(0.05)


ESCAPES = {
    "holds the pipe open": "sleep 1000 & exit 0",
    "ignores SIGTERM": "(trap '' TERM HUP INT; while :; do sleep 1; done) & exit 0",
    "daemonizes": "setsid -f sh -c \"trap '' TERM HUP; sleep 1000\"; exit 0",
    "daemonizes twice and holds the pipe": (
        'python3 -c "import os,time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\ntime.sleep(1000)"'
    ),
}


@pytest.mark.parametrize("how", list(ESCAPES))
async def test_a_grandchild_cannot_hang_a_stage(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder, how: str):
    """The command has ended, so its check has; what escaped dies with the container."""
    slot = a_slot()
    began = time.monotonic()
    async with at_work(docker_runtime, slot, agent_image, an_assignment("sh", "-c", ESCAPES[how])) as (box, gateway):
        (end,) = (await submitted(gateway)).exits
        await asyncio.wait_for(box.wait(), 10)

    assert end.exit_code == 0
    assert time.monotonic() - began < 30
    assert slot.uid < 1_000 or processes_of(slot.uid) == []


async def test_the_deadline_of_a_tool_alone(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """A command that ignores every polite signal is killed at its own timeout; the program lives and says so."""
    stubborn = "trap '' TERM HUP INT; while :; do sleep 1; done"
    async with at_work(docker_runtime, a_slot(), agent_image, an_assignment("sh", "-c", stubborn, timeout_s=1)) as (_, gateway):
        (end,) = (await submitted(gateway)).exits

    assert end.exit_code is None
    assert 1 <= end.duration_s < 5


async def test_the_deadline_of_silence_alone(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """Nothing else would end it for a quarter of an hour; the container is dead when it is told."""
    job = a_job("validate", limits=Limits(no_progress_s=1))  # the job promises no long command, so its silence counts
    async with at_work(docker_runtime, a_slot(), agent_image, an_assignment("sleep", "1000")) as (box, gateway):
        ending = await asyncio.wait_for(watch(job, box, _Hasty(gateway), Held(), Cancel(), SECONDS), 60)
        assert (await box.wait()).code == 137

    assert ending.outcome is Outcome.TIMEOUT
    assert "no progress" in ending.reason


class _Hasty:
    """A session whose silence is counted in seconds, not in half minutes."""

    def __init__(self, gateway: Gateway) -> None:
        self._session = gateway.session
        self.submission = None
        self.failure = None
        self.is_limited = False
        self.limited_s = 0.0
        self.wait_submitted = gateway.session.wait_submitted

    async def wait_idle(self, limit_s: float) -> None:
        await self._session.wait_idle(limit_s / 15)


@pytest.mark.abuse("D15", "D25")
@pytest.mark.parametrize("tool", ["sleep 1000", "kill -STOP $PPID; sleep 1000"], ids=["the program waits", "the program is stopped"])
async def test_the_wall_clock_of_a_stage_alone(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder, tool: str):
    """Neither tool nor silence is over; the host's clock is, which nobody in the sandbox can stop."""
    async with at_work(docker_runtime, a_slot(), agent_image, an_assignment("sh", "-c", tool)) as (box, gateway):
        ending = await asyncio.wait_for(watch(a_job(), box, gateway.session, Held(), Cancel(), 2), 60)
        assert (await box.wait()).code == 137

    assert ending.outcome is Outcome.TIMEOUT
    assert "wall clock" in ending.reason


A_CLOCK_OF_ITS_OWN = """
import os, signal
if os.fork() == 0:
    signal.alarm(1)
    if os.fork() == 0:
        os.kill(os.getppid(), signal.SIGSTOP)
    signal.pause()
os.wait()
"""


@pytest.mark.abuse("D15", "D25")
async def test_control_a_container_that_stops_its_own_clock_lives_on(docker_runtime: DockerRuntime, agent_image: str):
    """With an engine's default flags nothing ends a container, and an alarm inside never reaches a program that was stopped."""
    program = (*PROGRAM[:2], "-c", A_CLOCK_OF_ITS_OWN)
    async with running_control(docker_runtime, agent_image, program, instance="test-control", binds={}, deadline=0) as box:
        assert not await box.wait(3)


@pytest.mark.parametrize("tool", ["sleep 1000", "kill -STOP $PPID; sleep 1000"], ids=["the program waits", "the program is stopped"])
async def test_the_container_ends_itself_when_nobody_is_left(
    docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder, tool: str
):
    """The executor is gone and its socket with it; even a program its own tool has stopped is killed by the kernel."""
    slot = a_slot()
    assignment = an_assignment("sh", "-c", f"echo begun; {tool}", self_destruct_s=4)
    slot.gateway.chmod(0o755)
    async with open_gateway(slot.gateway, None, policy=None, peer_uid=slot.uid) as gateway:
        box = await docker_runtime.stand_by(slot, agent_image)
        gateway.session.assign(assignment)
        with contextlib.suppress(TimeoutError):
            await printed(box, "begun")
    began = time.monotonic()
    try:
        ended = await asyncio.wait_for(box.wait(), 30)
    finally:
        await box.remove()

    assert ended.code == 137
    assert time.monotonic() - began < 15


async def test_waiting_for_a_busy_provider_is_not_silence(tmp_path: Path):
    """A 429 with its pause is not charged to the agent; what comes after it is."""
    patient = Fault(status=429, kind="rate_limit_error", retry_after_s=4.0)
    script = single(Turn(text="hello", fault=patient), submit("done"), stage="spec")
    async with ScriptedModel(script, api_key="sk-ant-canary-7f3a") as model, open_gateway(tmp_path, model.url) as gateway:
        gateway.session.assign(an_assignment("true"))
        silent = asyncio.create_task(gateway.session.wait_idle(2.0))

        await gateway.ask()
        assert not silent.done()

        began = time.monotonic()
        await asyncio.wait_for(silent, 10)
        assert time.monotonic() - began > 1.0


async def test_a_suspended_attempt_is_not_silent(tmp_path: Path):
    """The pause of a doubted lease counts only against the wall clock (DECISIONS D2)."""
    async with open_gateway(tmp_path, None, policy=None) as gateway:
        gateway.session.suspend()
        gateway.session.suspend()
        silent = asyncio.create_task(gateway.session.wait_idle(0.1))
        await asyncio.wait({silent}, timeout=0.5)
        assert not silent.done()

        gateway.session.resume()
        await asyncio.wait_for(silent, 5)
