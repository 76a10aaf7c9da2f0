"""A broker that goes away costs time, never work: the container stands still, goes on, or its work is salvaged (DECISIONS D2)."""

import asyncio
import io
import os
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.contract.result import AttemptResult, Outcome
from sandbox.executor.config import Pace
from sandbox.runtime.docker import DockerRuntime
from sandbox.workspace.quota import release_filesystem
from tests.fakes.script import bash, single, submit
from tests.integration.executor.fleet import (
    Fleet,
    a_fleet,
    an_executor,
    an_executor_process,
    go_on,
    has_made,
    states_of,
    until,
    workspace_of,
)
from tests.leaks import mounts_below
from tests.servers.engines import TestEngine

pytestmark = pytest.mark.docker

WAITS = single(bash("echo made > made.txt; while [ ! -e go ]; do sleep 0.1; done; rm go"), submit("done"))
SHORT = Pace(renew_s=0.5, doubt_s=2.0, beat_s=1.0, post_s=0.2)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: sockets and mounts live below it."""
    with tempfile.TemporaryDirectory(prefix="andon-it-", dir="/tmp") as made:
        yield Path(made)
        for mount in mounts_below(Path(made)):  # of an executor that was killed, and no other one came after it
            release_filesystem(Path(mount))


async def paths_in(fleet: Fleet, result: AttemptResult) -> bytes:
    assert result.git_bundle is not None
    return await fleet.link.get_blob(result.git_bundle)


async def stopped_at_once(fleet: Fleet, process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM twice; two at once would be one."""
    said = fleet.directory / "ex.err"
    drains = said.read_text().count("executor.draining")
    process.send_signal(signal.SIGTERM)
    await until(lambda: said.read_text().count("executor.draining") > drains, "it drains")
    process.send_signal(signal.SIGTERM)


async def test_a_broker_that_is_away_pauses_the_container_and_its_return_finishes_the_same_attempt(
    directory: Path, docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str
):
    """Paused as the engine says, no call granted meanwhile, claimed again with the token, one attempt in all."""
    async with a_fleet(directory, WAITS) as fleet, an_executor(fleet, docker_runtime, agent_image, SHORT):
        await fleet.link.publish_job(fleet.job(), "1")
        await until(lambda: has_made(fleet, "made.txt"), "the agent works")

        os.kill(fleet.broker.pid, signal.SIGSTOP)
        try:
            await until(lambda: states_of(fleet, engine.url) == ["paused"], "the container is paused", within_s=10)
            go_on(fleet)  # what would let it finish, if it could move
            calls = len(fleet.model.log)
            await asyncio.sleep(1.5)
            assert states_of(fleet, engine.url) == ["paused"]
            assert len(fleet.model.log) == calls
        finally:
            os.kill(fleet.broker.pid, signal.SIGCONT)
        result = await fleet.result()

        assert (result.outcome, result.attempt) == (Outcome.SUBMITTED, 1)
        first, *again = [(claim.goes_on, claim.token) for claim in fleet.desk.claims]
        assert (first, set(again)) == ((False, fleet.desk.token), {(True, fleet.desk.token)}), "the same attempt is claimed again"
        assert await paths_in(fleet, result)
        await until(lambda: states_of(fleet, engine.url) == [], "the container is removed")


async def test_an_attempt_that_is_not_granted_again_is_salvaged_and_removed(
    directory: Path, docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str
):
    """Somebody else has the job: the work is kept, the container goes, nothing runs twice."""
    async with a_fleet(directory, WAITS) as fleet, an_executor(fleet, docker_runtime, agent_image, SHORT):
        await fleet.link.publish_job(fleet.job(), "1")
        await until(lambda: has_made(fleet, "made.txt"), "the agent works")

        fleet.desk.knows_tokens = False
        os.kill(fleet.broker.pid, signal.SIGSTOP)
        try:
            await until(lambda: states_of(fleet, engine.url) == ["paused"], "the container is paused", within_s=10)
        finally:
            os.kill(fleet.broker.pid, signal.SIGCONT)
        result = await fleet.result()

        assert result.outcome is Outcome.LOST
        assert "lease was lost" in result.reason
        assert await paths_in(fleet, result)
        await until(lambda: states_of(fleet, engine.url) == [], "the container is removed")


async def test_what_was_finished_while_the_broker_was_away_is_delivered_once_even_over_a_kill(
    directory: Path, docker_runtime: DockerRuntime, engine: TestEngine
):
    """The result and its bundle lie on disk; the next process delivers them, and the workspace is long gone."""
    del docker_runtime
    async with a_fleet(directory, WAITS) as fleet:
        async with an_executor_process(fleet) as process:
            await fleet.link.publish_job(fleet.job(), "1")
            await until(lambda: has_made(fleet, "made.txt"), "the agent works")
            os.kill(fleet.broker.pid, signal.SIGSTOP)
            try:
                go_on(fleet)
                # The second call of the agent needs the ledger, which is behind the broker: so the work is done without a last word.
                await stopped_at_once(fleet, process)
                await until(lambda: bool(list((fleet.state / "results").glob("*.json"))), "the result is on disk")
                process.kill()
                await asyncio.to_thread(process.wait)
            finally:
                os.kill(fleet.broker.pid, signal.SIGCONT)
        async with an_executor_process(fleet):
            result = await fleet.result()

            assert result.attempt == 1
            assert await paths_in(fleet, result)
            await until(lambda: not list((fleet.state / "results").iterdir()), "the disk is empty again")
        with pytest.raises(TimeoutError):
            await fleet.result(within_s=2)


async def test_a_killed_executor_comes_back_and_salvages_what_its_agent_wrote(
    directory: Path, docker_runtime: DockerRuntime, engine: TestEngine
):
    """The container is removed, the work is sealed and reported as lost, under the attempt's own token."""
    del docker_runtime
    async with a_fleet(directory, WAITS) as fleet:
        async with an_executor_process(fleet) as process:
            await fleet.link.publish_job(fleet.job(), "1")
            await until(lambda: has_made(fleet, "made.txt"), "the agent works")
            process.kill()
        token = fleet.desk.token
        assert states_of(fleet, engine.url) == ["running"]

        async with an_executor_process(fleet) as process:
            result = await fleet.result()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0

        assert (result.outcome, result.attempt, result.token) == (Outcome.LOST, 1, token)
        assert await paths_in(fleet, result)
        assert states_of(fleet, engine.url) == []


async def test_the_first_sigterm_lets_the_job_end_and_a_second_one_salvages_it(
    directory: Path, docker_runtime: DockerRuntime, engine: TestEngine
):
    """A service that is stopped finishes what it has; who is in a hurry asks twice."""
    del docker_runtime
    async with a_fleet(directory, WAITS) as fleet:
        async with an_executor_process(fleet) as process:
            await fleet.link.publish_job(fleet.job(), "1")
            await until(lambda: has_made(fleet, "made.txt"), "the agent works")
            process.send_signal(signal.SIGTERM)
            await until(lambda: "executor.draining" in (directory / "ex.err").read_text(), "it says so")
            go_on(fleet)
            assert await asyncio.to_thread(process.wait, 60) == 0
        assert (await fleet.result()).outcome is Outcome.SUBMITTED

        async with an_executor_process(fleet) as process:
            await fleet.link.publish_job(fleet.job(round=2, job_id=fleet.job().job_id.replace("-1", "-2")), "2")
            await until(lambda: has_made(fleet, "made.txt"), "the agent works again")
            await stopped_at_once(fleet, process)
            assert await asyncio.to_thread(process.wait, 60) == 0
        cut = await fleet.result()

        assert (cut.outcome, cut.cause) == (Outcome.KILLED, "cancelled")
        assert await paths_in(fleet, cut)
        assert states_of(fleet, engine.url) == []
        assert (directory / "ex.out").read_bytes() == b""
        assert all(line.startswith("{") for line in (directory / "ex.err").read_text().splitlines())


async def test_a_tree_outside_the_limits_is_kept_beside_the_result(
    directory: Path, docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str
):
    """It can be no commit; what the agent wrote is an archive at the broker, and the finding says so."""
    odd = single(bash("echo made > made.txt; mkfifo pipe"), submit("done"))
    async with a_fleet(directory, odd) as fleet, an_executor(fleet, docker_runtime, agent_image, SHORT):
        await fleet.link.publish_job(fleet.job(), "1")
        result = await fleet.result()

        assert (result.commit, result.git_bundle) == (None, None)
        assert "pipe" in result.findings[0].message
        assert "kept as a tar archive" in result.findings[0].message
        assert result.remains is not None
        with tarfile.open(fileobj=io.BytesIO(await fleet.link.get_blob(result.remains))) as archive:
            assert archive.getnames() == ["made.txt"]


async def test_a_workspace_that_is_gone_is_said_to_be_lost(directory: Path, docker_runtime: DockerRuntime, engine: TestEngine):
    """As after a restart of the host, whose memory it was: the attempt is reported, with what is lost, and the slot is used again."""
    del docker_runtime
    async with a_fleet(directory, WAITS) as fleet:
        async with an_executor_process(fleet) as process:
            await fleet.link.publish_job(fleet.job(), "1")
            await until(lambda: has_made(fleet, "made.txt"), "the agent works")
            process.kill()
        workspace = workspace_of(fleet)
        assert workspace is not None
        release_filesystem(workspace)
        workspace.mkdir()

        async with an_executor_process(fleet):
            result = await fleet.result()
            await until(lambda: not mounts_below(directory), "the slot is emptied")

        assert (result.outcome, result.git_bundle) == (Outcome.LOST, None)
        assert "is lost" in result.reason
        assert not result.findings
