"""Two hosts as network namespaces with a cable between them: the executor's joins over TLS, works, is cut off, and comes back.

Network and state directory are the executor's own; the engine is one for both (its socket is a file), as are the processes' names.
"""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import scene
from tests.e2e.line import Line, Provider
from tests.e2e.watching import a_sample, going, sandboxes, wait_until
from tests.leaks import mounts_below

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(400)]

JOIN_S = 30.0
"""Five on a quiet machine, of which `test_fleet` is the proof; here it is only waited for."""
CUT_S_MAX = 60.0
"""An executor that says nothing is given up after 25 s: its life sign lasts 15 s, its grace 10."""
SLUG = "outlives-a-cable"
PIPELINE = scene.PIPELINE.replace("agent: implement}", "agent: implement, labels: {site: far}}")


@dataclass(frozen=True)
class Cable:
    """A pair of network devices between this host and a namespace."""

    namespace: str
    device: str
    here: str
    """Address of this end."""

    def enter(self, argv: list[str]) -> list[str]:
        """Return the command that runs `argv` in the namespace; its mounts stay this host's, which the engine has to see."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *argv]

    def set(self, state: str) -> None:
        """Plug it in (`up`) or pull it out (`down`)."""
        _ip("link", "set", self.device, state)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@pytest.fixture
def cable() -> Iterator[Cable]:
    """A namespace with one cable to here; both are gone afterwards, whatever happened."""
    number = os.getpid() % 250 + 1
    made = Cable(f"andon-t{number}", f"andon-a{number}", f"10.213.{number}.1")
    there = f"andon-b{number}"
    _ip("netns", "add", made.namespace)
    try:
        _ip("link", "add", made.device, "type", "veth", "peer", "name", there)
        _ip("link", "set", there, "netns", made.namespace)
        _ip("addr", "add", f"{made.here}/30", "dev", made.device)
        made.set("up")
        for arguments in (
            ["addr", "add", f"10.213.{number}.2/30", "dev", there],
            ["link", "set", there, "up"],
            ["link", "set", "lo", "up"],
        ):
            _ip("-n", made.namespace, *arguments)
        yield made
    finally:
        with suppress(AssertionError):
            _ip("link", "del", made.device)
        _ip("netns", "del", made.namespace)


@contextmanager
def far_executor(cable: Cable, home: Path, credentials: Path, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run an executor in the namespace, with a home of its own; drained at the end."""
    command = [Line(home, {}).command[0], "executor", "--creds", str(credentials), "--state", str(home / "state"), "--slots", "2"]
    with (home / "executor.log").open("wb") as log:
        process = subprocess.Popen(
            cable.enter([*command, "--label", "site=far"]),
            env=Line(home, environment).environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
        )
    try:
        yield process
        process.terminate()
        assert process.wait(60) == 0, (home / "executor.log").read_text()[-2000:]
    finally:
        process.kill()
        process.wait()


def executors(line: Line) -> dict[str, dict[str, Any]]:
    """Return the rows of `andon fleet --json` by name."""
    shown = line.andon("fleet", "--json", timeout_s=60)
    assert shown.exit_code == 0, shown.stderr
    return {row["executor"]: row for row in json.loads(shown.stdout)}


def standing(line: Line) -> str:
    """Return what `andon fleet` says of the far host."""
    return str(executors(line)["far"]["standing"])


def _free_port(address: str) -> int:
    with socket.create_server((address, 0)) as server:
        return int(server.getsockname()[1])


def test_a_host_that_was_cut_off_comes_back_and_the_run_lands_once(cable: Cable, tmp_path: Path):
    """The cable is out for longer than the fleet waits: the attempt is given up; when it is in again, the job is done and lands once."""
    control_home, far_home = tmp_path / "control", tmp_path / "far"
    control_home.mkdir()
    far_home.mkdir()
    repository = a_sample(tmp_path / "notes")
    before = scene.Before.of(repository)
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    with Provider(cable.here) as provider:
        provider.says(scene.script(dawdle_s=20.0))
        control = Line(control_home, provider.server.environment())
        up = control.andon("up", "--listen", f"{cable.here}:{_free_port(cable.here)}", "--advertise", cable.here, timeout_s=300)
        assert up.exit_code == 0, up.stderr
        try:
            added = control.andon("fleet", "add", "far", "--output", str(tmp_path / "far.andon.json"))
            assert added.exit_code == 0, added.stderr
            with far_executor(cable, far_home, tmp_path / "far.andon.json", provider.server.environment()):
                wait_until(lambda: standing(control) == "ready", "the far host is in the fleet", JOIN_S)
                assert executors(control)["far"]["labels"]["site"] == "far"
                assert json.loads((tmp_path / "far.andon.json").read_text())["url"].startswith("tls://")
                arguments = ["Outlive a cable", "--repo", str(repository), "--pipeline", str(tmp_path / "pipeline.yaml")]
                with going(control, *arguments, "--slug", SLUG, "--no-baseline") as run:
                    wait_until(lambda: len(provider.server.calls("implement")) >= 2, "the agent works on the far host", 90)
                    assert {box["executor"] for box in _attempts(control, run.run_id, "implement")} == {"far"}
                    cable.set("down")
                    try:
                        wait_until(lambda: _outcomes(control, run.run_id) == ["lost"], "the attempt is given up", CUT_S_MAX)
                        assert standing(control) == "absent", "a host that is cut off is shown as such"
                    finally:
                        cable.set("up")
                    wait_until(lambda: standing(control) != "absent", "the far host is back by itself", 60)
                    done = run.end(200)
                assert done.exit_code == 0, done.stderr
                assert [one["outcome"] for one in done.stage("implement")["attempts"]] == ["lost", "submitted"]
        finally:
            down = control.andon("down")
        assert down.exit_code == 0, down.stderr
        assert scene.problems_of_repository(before, f"andon/{SLUG}", landed=True) == []
        assert scene.problems_of_bill(provider.server.begun, done.result["run_id"], done.result["cost_usd"]) == []
        (mirror,) = (control.state / "mirrors").glob("*.git")
        assert scene.problems_of_work(provider.server.begun, done.result["run_id"], mirror, [done.result["commit"]]) == []
    assert sandboxes(Line(far_home, {})) == []
    assert mounts_below(tmp_path) == []


def _attempts(line: Line, run_id: str, stage: str) -> list[dict[str, Any]]:
    result = line.andon("status", run_id, "--json", timeout_s=60).result
    return [attempt for each in result["stages"] if each["stage"] == stage for attempt in each["attempts"]]


def _outcomes(line: Line, run_id: str) -> list[str]:
    """Return how the attempts at implement that are over ended."""
    return [attempt["outcome"] for attempt in _attempts(line, run_id, "implement") if attempt["outcome"] is not None]
