"""The leader is killed while an agent's container works: another supervisor, with a state directory of its own, brings the line home."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sandbox.contract.credentials import write_credentials
from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from supervisor.store.broker.embedded import EmbeddedBroker, supervisor_file
from tests.e2e.line import Line, Provider
from tests.e2e.watching import a_sample, wait_until
from tests.fakes.repositories import run_git

pytestmark = [pytest.mark.docker, pytest.mark.timeout(400)]


@contextmanager
def running(log: Path, environment: dict[str, str], *command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process of ours as long as the block lasts; ask it to end, then make it."""
    with log.open("ab") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def types_in(state: Path, kind: str, text: str = "") -> int:
    """Return how many events of a kind, which contain `text`, a supervisor's run files hold."""
    return sum(
        json.loads(line)["type"] == kind and text in line
        for path in (state / "runs").glob("*/events.jsonl")
        for line in path.read_text().splitlines()
    )


async def test_a_line_that_lost_its_supervisor_lands_once_by_the_other_one(tmp_path: Path, provider: Provider):
    """Real containers, default line: the branch is in the person's repository, and no agent's call was made twice for one attempt."""
    repository = await asyncio.to_thread(a_sample, tmp_path / "notes")
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        file = tmp_path / "ex1.andon.json"
        write_credentials(file, await broker.add_executor("ex1"))
        base = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ANDON_DISK_FLOOR_MIB": "0"}
        fleet = {"NATS_URL": broker.url, "NATS_CREDS": str(supervisor_file(tmp_path / "nats"))}
        andon = str(Path(sys.executable).with_name("andon"))
        with ExitStack() as stack:

            def supervise(name: str) -> "subprocess.Popen[bytes]":
                own = base | fleet | {"ANDON_STATE_DIRECTORY": str(tmp_path / name)}
                return stack.enter_context(running(tmp_path / f"{name}.log", own, sys.executable, "-m", "supervisor"))

            left = supervise("left")
            wait_until(lambda: "supervisor.ready" in (tmp_path / "left.log").read_text(), "the first supervisor leads")
            supervise("right")
            work = base | provider.server.environment()
            executor = [andon, "executor", "--creds", str(file), "--state", str(tmp_path / "ex1")]
            stack.enter_context(running(tmp_path / "ex1.log", work, *executor))
            (tmp_path / "person").mkdir()
            person = Line(tmp_path / "person", fleet)
            run = person.start("run", SAMPLE_REQUEST, "--repo", str(repository), "--no-baseline", "--json")
            stack.callback(run.kill)
            # Both work: an executor that had not got the answer to its claim would claim once more, and that is another attempt.
            calls = provider.server.calls
            wait_until(lambda: calls("implement") and calls("test"), "implement and test run", 150)
            left.kill()
            killed = time.monotonic()
            ready = wait_until(lambda: "supervisor.ready" in (tmp_path / "right.log").read_text(), "the other one leads", 20)
            took_s = time.monotonic() - killed
            stdout, stderr = run.communicate(timeout=200)

    assert ready
    assert took_s <= 10
    assert run.returncode == 0, stderr
    result = json.loads(stdout)
    assert run_git(repository, "rev-parse", f"andon/{SAMPLE_FEATURE}").strip() == result["commit"]
    assert types_in(tmp_path / "right", "run_landed") == 1
    assert [len(stage["attempts"]) for stage in result["stages"]] == [1] * len(result["stages"])
