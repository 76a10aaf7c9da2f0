"""A broker of three servers: one of them is killed in the middle of a run, and the run lands once."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox.bus import Connection
from sandbox.contract import subjects
from sandbox.contract.credentials import FILE_SUFFIX, Credentials, write_credentials
from tests.chaos import scene
from tests.chaos.paper_fleet import Member
from tests.e2e.line import Line, Provider
from tests.e2e.watching import a_sample
from tests.fakes.cluster import NatsCluster

pytestmark = pytest.mark.timeout(240)

RUN_S = 150.0
SLUG = "outlives-a-server"


class Fleet:
    """One supervisor, one executor over bare processes, and a person's command, each with a file of its own for the cluster."""

    def __init__(self, home: Path, cluster: NatsCluster, line: Line) -> None:
        self.home = home
        self.cluster = cluster
        self.line = line

    @classmethod
    @asynccontextmanager
    async def running(cls, home: Path, cluster: NatsCluster, provider: Provider) -> AsyncIterator["Fleet"]:
        """Run them as long as the context lasts."""
        home.mkdir()
        control = _file(home, "supervisor", cluster.supervisor)
        person = _file(home, "person", await cluster.client("person"))
        worker = _file(home, "ex1", await cluster.executor("ex1"))
        base = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
        supervisor = base | {"NATS_URL": cluster.urls, "NATS_CREDS": str(control), "ANDON_STATE_DIRECTORY": str(home / "control")}
        executor = [sys.executable, "-m", "tests.fakes.paper_executor", "--creds", str(worker), "--state", str(home / "ex1")]
        members = [
            Member("supervisor", [sys.executable, "-m", "supervisor"], supervisor, home / "supervisor.log"),
            Member("ex1", executor, {**base, **provider.server.environment()}, home / "ex1.log"),
        ]
        try:
            yield cls(home, cluster, Line(home / "person", {"NATS_URL": cluster.urls, "NATS_CREDS": str(person)}))
        finally:
            for member in reversed(members):
                member.stop()

    async def leader(self) -> int:
        """Return the server that leads the log of events."""
        async with Connection.open(self.cluster.supervisor, name="look", inbox="fleet") as connection:
            return await self.cluster.leader(connection, subjects.STREAM_EVENTS)


def _file(home: Path, name: str, credentials: Credentials) -> Path:
    path = home / f"{name}{FILE_SUFFIX}"
    write_credentials(path, credentials)
    return path


async def until(is_so, what: str, seconds: float = 60.0) -> None:
    """Wait without blocking the loop that watches the servers."""
    for _ in range(int(seconds / 0.05)):
        if is_so():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"after {seconds:.0f} s still not: {what}")


async def test_a_run_outlives_the_server_that_leads_its_log(tmp_path: Path):
    """Every stream is kept three times: with the leader killed the other two go on, nobody starts anything again, the run lands once."""
    tmp_path.chmod(0o711)
    repository = await asyncio.to_thread(a_sample, tmp_path / "notes")
    before = scene.Before.of(repository)
    (tmp_path / "pipeline.yaml").write_text(scene.PIPELINE)
    with Provider() as provider:
        provider.says(scene.script(dawdle_s=3.0))
        async with (
            NatsCluster.run(tmp_path / "cluster") as cluster,
            Fleet.running(tmp_path / "fleet", cluster, provider) as fleet,
        ):
            fleet.line.home.mkdir()
            options = ["--repo", str(repository), "--pipeline", str(tmp_path / "pipeline.yaml"), "--slug", SLUG, "--no-baseline"]
            command = fleet.line.start("run", "Outlive a server", *options, "--json")
            try:
                await until(lambda: command.poll() is not None or len(provider.server.calls("implement")) >= 2, "the agent works")
                victim = await fleet.leader()
                await cluster.kill(victim)
                out, err = await asyncio.wait_for(asyncio.to_thread(command.communicate), RUN_S)
            finally:
                command.kill()
                await asyncio.to_thread(command.communicate)
            assert cluster.lost == [victim]

        assert command.returncode == 0, err
        result = json.loads(out)
        assert result["state"] == "landed"
        assert scene.problems_of_repository(before, f"andon/{SLUG}", landed=True) == []
        assert scene.problems_of_bill(provider.server.begun, result["run_id"], result["cost_usd"]) == []
        assert {call.attempt for call in provider.server.begun} == {1}, "no work was done twice"
