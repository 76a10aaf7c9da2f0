"""Lines that are stopped or broken in the middle, and go on: budgets, killed containers and processes, Ctrl-C, a person's stop."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from tests.e2e.line import Line, Provider
from tests.e2e.watching import (
    Going,
    a_sample,
    branches,
    events_of,
    every_byte,
    file_in_mirror,
    going,
    has,
    kill_sandbox,
    salvaged,
    sandboxes,
    stack_pids,
    wait_until,
)
from tests.fakes.repositories import run_git
from tests.fakes.script import Call, bash, conversation, create, does
from tests.fakes.scripts.rate_limit import HAPPY, MODULE, SPEC, STALLS_ALWAYS, STALLS_ONCE

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

BRANCH = f"andon/{SAMPLE_FEATURE}"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return a_sample(tmp_path / "notes")


@pytest.fixture
def arguments(repository: Path, tmp_path: Path) -> list[str]:
    """The sample request on the sample, with the specification given, to be quick."""
    (tmp_path / "spec.yaml").write_text(SPEC.replace("{feature}", SAMPLE_FEATURE))
    return [SAMPLE_REQUEST, "--repo", str(repository), "--spec", str(tmp_path / "spec.yaml"), "--slug", SAMPLE_FEATURE, "--no-baseline"]


def landed_once(line: Line, run_id: str, repository: Path) -> None:
    """Check that the run moved its branch by one commit, once, and left nothing else."""
    events = events_of(line, run_id)
    assert [one["type"] for one in events].count("run_landed") == 1
    assert [one["type"] for one in events].count("run_delivered") == 1
    assert branches(repository) == [BRANCH, "main"]
    assert run_git(repository, "rev-list", "--count", f"main..{BRANCH}") == "1"


def stalled(run: Going, provider: Provider) -> dict[str, Any]:
    """Wait until implement hangs in its long command and everything beside it is done; return its container."""
    wait_until(lambda: len(provider.server.calls("implement")) == 2, "implement is told to sleep", 90)
    run.wait_event("job_judged", job_id=f"{run.run_id}-red-check-1", verdict="pass")

    def only() -> list[dict[str, Any]] | None:
        boxes = sandboxes(run.line)
        return boxes if len(boxes) == 1 else None

    (box,) = wait_until(only, "implement's container is the only one", 30)
    found: dict[str, Any] = box
    return found


def test_a_container_that_is_killed_in_the_middle_gets_a_second_attempt(
    line: Line, provider: Provider, repository: Path, arguments: list[str]
):
    """`docker kill` is an infrastructure fault: the same job, a new container; what the first one wrote is on a salvage ref."""
    provider.says(STALLS_ONCE)

    with going(line, *arguments) as run:
        box = stalled(run, provider)
        kill_sandbox(line, box["Id"])
        done = run.end()

    assert done.exit_code == 0, done.stderr
    first, second = done.stage("implement")["attempts"]
    assert (first["attempt"], first["outcome"], first["container_id"]) == (1, "killed", box["Id"])
    assert (second["attempt"], second["outcome"]) == (2, "submitted")
    assert second["container_id"] != first["container_id"]
    assert {call.attempt for call in provider.server.calls("implement")} == {1, 2}
    refs = salvaged(line, run.run_id)
    assert "def check" in file_in_mirror(line, refs[f"refs/andon/salvage/{run.run_id}/implement-1-1"], MODULE)
    landed_once(line, run.run_id, repository)


def test_an_exhausted_budget_parks_and_a_larger_one_lands(line: Line, provider: Provider, repository: Path, arguments: list[str]):
    """Exit 4 before more is spent than was allowed; the work is kept; `resume --budget` goes on from there."""
    before = every_byte(repository)
    long_answers = [bash(f"echo step {number}", output_tokens=16_000) for number in range(50)]
    provider.says(HAPPY.with_first("scripted: long answers", conversation("implement", *long_answers)))

    parked = line.run(*arguments, "--budget", "0.90")

    assert (parked.exit_code, parked.result["state"]) == (4, "parked"), parked.stderr
    assert parked.stage("implement")["attempts"][-1]["outcome"] == "budget"
    assert 0.30 < parked.result["cost_usd"] <= 0.90
    assert every_byte(repository) == before
    assert "andon resume" in parked.stderr or "resume" in Path(parked.result["report"]).read_text()
    assert f"refs/andon/salvage/{parked.result['run_id']}/test-1-1" in salvaged(line, parked.result["run_id"])

    poor = line.andon("resume", parked.result["run_id"][:8], "--budget", "0.01", "--json")
    assert poor.exit_code == 2
    assert "larger --budget" in poor.stderr

    provider.says(HAPPY)
    done = line.andon("resume", parked.result["run_id"], "--budget", "20", "--json")

    assert (done.exit_code, done.result["state"]) == (0, "landed"), done.stderr
    assert done.result["run_id"] == parked.result["run_id"]
    assert [each[1] for each in done.rounds if each[0] == "interface"] == [1]
    landed_once(line, done.result["run_id"], repository)


def test_ctrl_c_parks_and_resume_lands(line: Line, provider: Provider, repository: Path, arguments: list[str]):
    """Exit 130 with the command that goes on; nothing runs meanwhile; the resumed run lands."""
    provider.says(STALLS_ALWAYS)

    with going(line, *arguments) as run:
        stalled(run, provider)
        run.process.send_signal(signal.SIGINT)
        parked = run.end()

    assert (parked.exit_code, parked.result["state"]) == (130, "parked"), parked.stderr
    assert sandboxes(line) == []
    assert branches(repository) == ["main"]
    assert f"refs/andon/salvage/{run.run_id}/implement-1-1" in salvaged(line, run.run_id)
    shown = line.andon("status", run.run_id)
    assert f"andon resume {run.run_id}" in shown.stdout

    provider.says(HAPPY)
    done = line.andon("resume", run.run_id, "--json")

    assert (done.exit_code, done.result["state"]) == (0, "landed"), done.stderr
    landed_once(line, run.run_id, repository)


def test_a_stopped_run_is_cancelled_for_good(line: Line, provider: Provider, repository: Path, arguments: list[str]):
    """`andon stop --cancel` from elsewhere ends it: the watching command ends too, work is kept, and there is nothing to resume."""
    provider.says(STALLS_ALWAYS)

    with going(line, *arguments) as run:
        stalled(run, provider)
        stopped = line.andon("stop", run.run_id, "--cancel", "--reason", "no longer wanted")
        done = run.end()

    assert stopped.exit_code == 0, stopped.stderr
    assert done.result["state"] == "cancelled"
    assert done.exit_code == 130
    assert "no longer wanted" in Path(done.result["report"]).read_text()
    assert salvaged(line, run.run_id)
    assert branches(repository) == ["main"]
    again = line.andon("resume", run.run_id, "--json")
    assert again.result["state"] == "cancelled"
    assert "nothing to go on with" in again.stderr


def test_a_run_that_is_parked_from_elsewhere_can_be_cancelled_then(line: Line, provider: Provider, repository: Path, arguments: list[str]):
    """`stop` parks, with its work salvaged; `stop --cancel` afterwards ends it."""
    provider.says(STALLS_ALWAYS)

    with going(line, *arguments) as run:
        stalled(run, provider)
        assert line.andon("stop", run.run_id).exit_code == 0
        parked = run.end()
    assert (parked.exit_code, parked.result["state"]) == (130, "parked"), parked.stderr

    assert salvaged(line, run.run_id)
    assert line.andon("stop", run.run_id, "--cancel").exit_code == 0
    ended = wait_until(lambda: line.andon("status", run.run_id, "--json").result["state"] == "cancelled", "the run is cancelled", 20)
    assert ended


def test_the_run_outlives_its_command_and_its_supervisor(line: Line, provider: Provider, repository: Path, arguments: list[str]):
    """kill -9 of the CLI, then of the supervisor: the next one takes the run up; it lands once, and `status` shows it."""
    with going(line, *arguments) as run:
        # Both work: an executor that had not got the answer to its claim would claim once more, and that is another attempt.
        wait_until(lambda: provider.server.calls("implement") and provider.server.calls("test"), "both have asked the model", 90)
        run.process.kill()
        old = stack_pids(line)["supervisor"]
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: stack_pids(line)["supervisor"] != old, "the stack started another supervisor", 30)
        wait_until(lambda: has(events_of(line, run.run_id), "run_delivered"), "the run is delivered", 180)

    shown = line.andon("status", run.run_id, "--json")
    assert (shown.exit_code, shown.result["state"], shown.result["exit_code"]) == (0, "landed", 0)
    # What an executor does is not lost with a supervisor: every attempt was the first.
    assert [len(stage["attempts"]) for stage in shown.result["stages"]] == [1] * len(shown.result["stages"])
    landed_once(line, run.run_id, repository)


def test_the_run_outlives_its_executor(line: Line, provider: Provider, repository: Path, arguments: list[str]):
    """kill -9 of the executor: the next one salvages what the agent wrote, removes the container, and makes the attempt again."""
    provider.says(STALLS_ONCE)

    with going(line, *arguments) as run:
        box = stalled(run, provider)
        old = stack_pids(line)["executor"]
        os.kill(old, signal.SIGKILL)
        done = run.end()

    assert done.exit_code == 0, done.stderr
    first, second = done.stage("implement")["attempts"]
    assert (first["outcome"], first["container_id"]) == ("lost", box["Id"])
    assert second["outcome"] == "submitted"
    assert stack_pids(line)["executor"] != old
    commit = salvaged(line, run.run_id)[f"refs/andon/salvage/{run.run_id}/implement-1-1"]
    assert "def check" in file_in_mirror(line, commit, MODULE)
    landed_once(line, run.run_id, repository)
    assert sandboxes(line) == []


def test_two_runs_at_once_do_not_meet(line: Line, provider: Provider, tmp_path: Path):
    """Two repositories, one stack: both land, each in its own repository, each call attributed to its own run."""
    ended = {}
    repositories = {name: a_sample(tmp_path / name) for name in ("one", "two")}
    (tmp_path / "spec.yaml").write_text(SPEC.replace("{feature}", SAMPLE_FEATURE))

    def run(name: str) -> None:
        options = ("--spec", str(tmp_path / "spec.yaml"), "--slug", SAMPLE_FEATURE, "--no-baseline")
        ended[name] = line.run(SAMPLE_REQUEST, "--repo", str(repositories[name]), *options, timeout_s=280)

    threads = [threading.Thread(target=run, args=(name,)) for name in repositories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(280)

    assert {name: done.exit_code for name, done in ended.items()} == {"one": 0, "two": 0}, [done.stderr for done in ended.values()]
    assert len({done.result["run_id"] for done in ended.values()}) == 2
    for name, done in ended.items():
        assert done.result["repo"] == str(repositories[name])
        landed_once(line, done.result["run_id"], repositories[name])
        theirs = sum(call.usage["output_tokens"] for call in provider.server.calls() if call.run == done.result["run_id"])
        assert done.result["usage"]["output_tokens"] == theirs > 0
    assert provider.server.violations == []


PLANTS = """
cd /workspace
mkdir -p .git/hooks
for hook in pre-commit post-checkout post-commit reference-transaction post-index-change fsmonitor-watchman pre-receive update; do
  printf '#!/bin/sh\\ntouch CANARY\\n' > .git/hooks/$hook; chmod 755 .git/hooks/$hook
done
git config core.fsmonitor 'touch CANARY; :'
git config core.hooksPath .git/hooks
git config filter.x.clean 'touch CANARY; cat'
git config filter.x.smudge 'touch CANARY; cat'
git config diff.external 'touch CANARY; :'
git config core.pager 'touch CANARY; cat'
"""


def test_what_an_agent_plants_for_git_runs_nowhere(line: Line, provider: Provider, repository: Path, arguments: list[str], tmp_path: Path):
    """Hooks, filters, monitors and external diffs, in the sandbox's `.git` and by an attributes file: the run lands, nothing of it ran."""
    canary = tmp_path / "canary"
    tmp_path.chmod(0o777)
    attributes = create("notes_api/.gitattributes", "* filter=x diff=x\n")
    plants = Call("bash", {"command": PLANTS.replace("CANARY", str(canary))})
    happy = HAPPY.conversation("implement", 1, 1)
    assert happy is not None
    planted = conversation("implement", does(plants, attributes), *happy.turns)
    provider.says(HAPPY.with_first("scripted: plants", planted))

    done = line.run(*arguments)

    assert done.exit_code == 0, done.stderr
    assert not canary.exists()
    assert "notes_api/.gitattributes" in done.result["files"]["created"]
    assert done.result["files"]["deleted"] == []
    assert not any(".git/" in name for name in done.result["files"]["created"])
    configuration = run_git(repository, "config", "--list", "--local")
    assert "filter.x" not in configuration
    landed_once(line, done.result["run_id"], repository)
