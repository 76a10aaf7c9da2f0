"""Several hosts as several homes: a stack that serves others over TLS, an executor and a client that have nothing but one file each."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.bus import new_user_key
from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from tests.e2e.line import Line, Provider
from tests.e2e.watching import RESULT_KEYS, a_sample, branches, wait_until
from tests.fakes.repositories import run_git

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

JOIN_S = 5.0
WHY_S = 2.0
VERSION_S = 0.25
"""What `andon version` takes at most on a machine that has time; a slower one is given more for everything."""
BRANCH = f"andon/{SAMPLE_FEATURE}"


@dataclass
class Hosts:
    """A control host and a client's host; files are carried between them by hand, as a person does."""

    control: Line
    client: Line
    provider: Provider
    directory: Path

    def executors(self, line: Line | None = None) -> dict[str, dict[str, Any]]:
        """Return the rows of `andon fleet --json` by name."""
        shown = (line or self.control).andon("fleet", "--json")
        assert shown.exit_code == 0, shown.stderr
        return {row["executor"]: row for row in json.loads(shown.stdout)}

    def slowness(self) -> float:
        """Return how many times slower than it should be this machine is now, at least 1."""
        begun = time.monotonic()
        assert self.control.andon("version").exit_code == 0
        return max(1.0, (time.monotonic() - begun) / VERSION_S)

    def add(self, name: str, *options: str) -> Path:
        """Admit a member on the control host and return its file."""
        path = self.directory / f"{name}.andon.json"
        added = self.control.andon("fleet", "add", name, "--output", str(path), *options)
        assert added.exit_code == 0, added.stderr
        return path


@dataclass
class Joined:
    """An executor on a host of its own."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path
    listed_in_s: float
    slowness: float


@pytest.fixture(scope="module")
def hosts(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A stack that listens beyond this host, and a client that knows it by its file alone."""
    directory = tmp_path_factory.mktemp("hosts")
    for name in ("control", "client"):
        (directory / name).mkdir()
    control = Line(directory / "control", provider.server.environment())
    up = control.andon("up", "--listen", f"0.0.0.0:{_free_port()}", "--advertise", "127.0.0.1", timeout_s=900)
    assert up.exit_code == 0, up.stderr
    hosts = Hosts(control, Line(directory / "client", {}), provider, directory)
    hosts.client.environment["NATS_CREDS"] = str(hosts.add("ada", "--client"))
    yield hosts
    down = control.andon("down")
    assert down.exit_code == 0, down.stderr


@pytest.fixture(scope="module")
def joined(hosts: Hosts) -> Iterator[Joined]:
    """An executor elsewhere that has joined with the file it was given."""
    file = hosts.add("ex1", "--label", "mem=16")
    home = hosts.directory / "ex1"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **hosts.provider.server.environment()}
    log = home / "executor.log"
    command = [str(Path(sys.executable).with_name("andon")), "executor", "--creds", str(file), "--state", str(home / "state")]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--label", "zone=b"], env=environment, cwd=home, stdout=out, stderr=out)
    begun = time.monotonic()
    try:
        wait_until(lambda: hosts.executors()["ex1"]["standing"] != "absent", f"ex1 is listed, see {log}", 20)
        listed_in_s = time.monotonic() - begun
        wait_until(lambda: hosts.executors()["ex1"]["standing"] == "ready", f"ex1 takes jobs, see {log}", 20)
        yield Joined("ex1", process, log, listed_in_s, hosts.slowness())
    finally:
        process.terminate()
        assert process.wait(30) == 0, log.read_text()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def a_pipeline(path: Path) -> Path:
    """Return a pipeline whose every job asks for a host in zone b."""
    shipped = Path("supervisor/pipeline/default.yaml").read_text()
    path.write_text(shipped.replace("  defaults:\n", "  defaults:\n    labels: {zone: b}\n", 1))
    return path


def test_an_executor_elsewhere_joins_with_one_command_and_one_file(hosts: Hosts, joined: Joined) -> None:
    """Over TLS, outbound only; it is listed with its labels, slots, release and a fresh life sign."""
    row = hosts.executors()["ex1"]

    assert joined.listed_in_s <= JOIN_S * max(joined.slowness, hosts.slowness())
    assert {"mem": "16", "zone": "b"}.items() <= row["labels"].items()
    assert (row["standing"], row["slots"], row["busy"], row["model"], row["pools"]) == ("ready", 2, 0, "live", ["default"])
    assert row["age_s"] <= 15
    assert json.loads((hosts.directory / "ex1.andon.json").read_text())["url"].startswith("tls://127.0.0.1:")


def test_a_client_elsewhere_sees_the_same_fleet(hosts: Hosts, joined: Joined) -> None:
    """With its file alone; nothing is started on its host."""
    seen = hosts.executors(hosts.client)

    assert {"ex1", "local"} <= seen.keys()
    assert not (hosts.client.state / "stack.json").exists()


def test_a_line_runs_for_a_client_elsewhere_and_is_brought_home(hosts: Hosts, joined: Joined, tmp_path: Path) -> None:
    """Its jobs run where their labels are; branch, files and reading verbs are on the client's host."""
    repository = a_sample(tmp_path / "notes")
    pipeline = a_pipeline(tmp_path / "pipeline.yaml")

    run = hosts.client.run(SAMPLE_REQUEST, "--repo", str(repository), "--pipeline", str(pipeline), "--priority", "7", timeout_s=240)

    assert run.exit_code == 0, run.stderr
    assert run_git(repository, "rev-parse", BRANCH).strip() == run.result["commit"]
    assert {attempt["executor"] for stage in run.result["stages"] for attempt in stage["attempts"]} == {"ex1"}
    files = {path.name for path in (hosts.client.state / "runs" / run.result["run_id"]).iterdir()}
    assert {"events.jsonl", "result.json", "report.md", "trace.otlp.jsonl", "logs", "submitted.json"} <= files
    for line in (hosts.client, hosts.control):
        assert line.andon("status", run.result["run_id"], "--json").result["state"] == "landed"
    assert "b/notes_api/rate_limit.py" in hosts.client.andon("diff", run.result["run_id"]).stdout
    assert run.result["run_id"] in hosts.client.andon("list", "--fleet").stdout


def test_a_client_that_was_killed_brings_its_run_home_later(hosts: Hosts, joined: Joined, tmp_path: Path) -> None:
    """The fleet goes on without it; `andon apply` does what is left, and twice is as once."""
    repository = a_sample(tmp_path / "notes")
    process = hosts.client.start("run", SAMPLE_REQUEST, "--repo", str(repository))
    wait_until(lambda: _newest(hosts.client) is not None and bool(_stages(hosts.client)), "a stage has begun", 60)
    run_id = _newest(hosts.client)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run_id is not None

    wait_until(lambda: hosts.control.andon("status", run_id, "--json").result["state"] == "landed", "it has landed", 240)
    before = branches(repository)
    applied, again = hosts.client.andon("apply", run_id), hosts.client.andon("apply", run_id)

    assert BRANCH not in before
    assert (applied.exit_code, again.exit_code) == (0, 0), applied.stderr
    assert f"is in {repository}: {run_git(repository, 'rev-parse', BRANCH).strip()}" in applied.stdout
    assert hosts.client.andon("status", run_id, "--json").result["state"] == "landed"
    assert "could not be delivered" not in hosts.control.andon("logs", run_id).stdout


def test_a_run_elsewhere_is_parked_by_ctrl_c_and_goes_on(hosts: Hosts, joined: Joined, tmp_path: Path) -> None:
    """Exit code 130, then the same object as `run` gives, and the branch is here; no finished stage is done again."""
    repository = a_sample(tmp_path / "notes")
    process = hosts.client.start("run", SAMPLE_REQUEST, "--repo", str(repository))
    wait_until(lambda: any(stage["verdict"] == "pass" for stage in _stages(hosts.client)), "a stage has passed", 90)
    run_id = _newest(hosts.client)
    assert run_id is not None
    process.send_signal(signal.SIGINT)
    process.communicate()
    parked = hosts.client.andon("status", run_id, "--json").result
    passed = [(stage["job"], len(stage["attempts"])) for stage in parked["stages"] if stage["verdict"] == "pass"]

    resumed = hosts.client.andon("resume", run_id, "--json", timeout_s=240)

    assert (process.returncode, parked["state"]) == (130, "parked")
    assert (resumed.exit_code, resumed.result["state"]) == (0, "landed"), resumed.stderr
    assert set(resumed.result) == RESULT_KEYS
    assert passed
    assert set(passed) <= {(stage["job"], len(stage["attempts"])) for stage in resumed.result["stages"]}
    assert run_git(repository, "rev-parse", BRANCH).strip() == resumed.result["commit"]


def _newest(line: Line) -> str | None:
    runs = sorted(path.name for path in (line.state / "runs").glob("*") if (path / "submitted.json").exists())
    open_runs = [each for each in runs if not (line.state / "runs" / each / "result.json").exists()]
    return open_runs[-1] if open_runs else None


def _stages(line: Line) -> list[dict[str, Any]]:
    newest = _newest(line)
    return line.andon("status", newest, "--json").result.get("stages", []) if newest else []


def test_why_answers_within_a_second_or_two(hosts: Hosts, joined: Joined, tmp_path: Path) -> None:
    """A job nobody can run says which labels are missing, also to a client elsewhere."""
    repository = a_sample(tmp_path / "notes")
    pipeline = a_pipeline(tmp_path / "pipeline.yaml")
    pipeline.write_text(pipeline.read_text().replace("{zone: b}", "{gpu: a100}"))
    process = hosts.client.start("run", SAMPLE_REQUEST, "--repo", str(repository), "--pipeline", str(pipeline))
    try:
        wait_until(lambda: bool(_stages(hosts.client)), "a job waits", 60)
        run_id = _newest(hosts.client)
        assert run_id is not None

        begun = time.monotonic()
        why = hosts.client.andon("why", run_id)
        took_s = time.monotonic() - begun

        assert why.exit_code == 0, why.stderr
        assert "gpu=a100" in why.stdout
        assert took_s <= WHY_S * hosts.slowness()
        assert hosts.client.andon("stop", run_id).exit_code == 0
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()


def test_misuse_is_one_line_and_a_documented_exit_code(hosts: Hosts, joined: Joined, tmp_path: Path) -> None:
    """A wrong file, another authority's certificate, no broker, an unknown name: never a traceback."""
    file = json.loads((hosts.directory / "ada.andon.json").read_text())
    other = Line(tmp_path / "other", {})
    other.home.mkdir()
    other_fleet = _file(tmp_path / "other.andon.json", {**file, "ca": _another_authority(tmp_path)})
    cases = {
        _file(tmp_path / "not.json", "nonsense"): 2,
        hosts.directory / "ex1.andon.json": 2,
        tmp_path / "missing.andon.json": 2,
        other_fleet: 5,
        _file(tmp_path / "nobody.andon.json", {**file, "url": f"tls://127.0.0.1:{_free_port()}"}): 5,
        _file(tmp_path / "stranger.andon.json", {**file, "nkey_seed": new_user_key().seed}): 5,
    }

    for path, exit_code in cases.items():
        other.environment["NATS_CREDS"] = str(path)
        ended = other.andon("fleet")
        assert (ended.exit_code, ended.stdout, len(ended.stderr.splitlines())) == (exit_code, "", 1), f"{path}: {ended.stderr}"
        assert ended.stderr.startswith("andon: error: ")
    assert hosts.client.andon("fleet", "drain", "ex7").exit_code == 2
    assert hosts.control.andon("fleet", "remove", "ex7").exit_code == 2


def _file(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(0o600)
    return path


def _another_authority(directory: Path) -> str:
    line = Line(directory / "stranger", {"ANDON_BROKER_DIRECTORY": str(directory / "broker")})
    line.home.mkdir()
    assert line.andon("fleet", "init", "--listen", "0.0.0.0:4222", "--advertise", "127.0.0.1").exit_code == 0
    path = directory / "theirs.andon.json"
    assert line.andon("fleet", "add", "theirs", "--client", "--output", str(path)).exit_code == 0
    return str(json.loads(path.read_text())["ca"])


def test_drain_lets_an_executor_go_and_remove_locks_it_out(hosts: Hosts) -> None:
    """It ends with 0 when it is drained; with a key that was revoked it is refused at once."""
    file = hosts.add("ex2")
    home = hosts.directory / "ex2"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    command = [str(Path(sys.executable).with_name("andon")), "executor", "--creds", str(file), "--state", str(home / "state")]
    process = subprocess.Popen(command, env=environment, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: hosts.executors().get("ex2", {}).get("standing") == "ready", "ex2 has joined", 20)

        drained = hosts.control.andon("fleet", "drain", "ex2")

        assert (drained.exit_code, process.wait(20)) == (0, 0)
        assert "ex2 has gone" in drained.stdout
        assert hosts.executors()["ex2"]["standing"] == "absent"
        assert hosts.control.andon("fleet", "remove", "ex2").exit_code == 0
        assert "ex2" not in hosts.executors()
        again = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=60, check=False)
        assert again.returncode in {2, 5}, again.stderr
        assert "Traceback" not in again.stderr
    finally:
        process.kill()
        process.wait()
