"""A stack of its own, started and ended by one run: a replay without a key, and what is on the machine before, during and after."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from supervisor.demo import SAMPLE_FEATURE
from tests.e2e.golden import difference
from tests.e2e.line import CANARY, Finished, Line, Provider
from tests.e2e.log_lines import lines_of
from tests.e2e.watching import a_sample, branches, going, sandboxes, stack_pids, wait_until
from tests.fakes.traces import SeenTrace
from tests.leaks import mounts_below

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def processes_of(line: Line) -> list[str]:
    """Return the command lines of every process that has our state directory in its arguments or environment."""
    found = []
    needle = os.fsencode(line.home)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int(path.name) != os.getpid() and needle in (path / "cmdline").read_bytes() + (path / "environ").read_bytes():
                found.append(f"{path.name} {(path / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
        except OSError:
            continue
    return found


def sockets(line: Line) -> Path:
    """Return where this line's executor has its sockets; other stacks of the same user have theirs beside it."""
    instance = hashlib.sha256(os.fsencode(line.state / "executor")).hexdigest()[:8]
    return Path("/tmp") / f"andon-{os.getuid()}" / instance


def canaries(directory: Path) -> list[str]:
    """Return the files below a directory that hold the key."""
    found = subprocess.run(["grep", "-rlaF", "--", CANARY, str(directory)], capture_output=True, text=True, check=False)
    return found.stdout.splitlines()


@pytest.mark.abuse("W01")
def test_nothing_is_left_of_a_run_and_the_key_is_nowhere(provider: Provider, tmp_path: Path):
    """The stack ends with its last client: no container, mount, process or socket; no file below the state directory has the key."""
    line = Line(tmp_path / "home", provider.server.environment())
    (line.home / "config" / "andon").mkdir(parents=True)
    # Everything that can be said of it is searched for the key too.
    (line.home / "config" / "andon" / "config.yaml").write_text("log_level: debug\n")
    repository = a_sample(tmp_path / "notes")

    with going(line, "Add rate limiting to the API", "--repo", str(repository)) as run:
        run.wait_event("attempt_started", job_id=f"{run.run_id}-interface-1")
        pids = stack_pids(line)
        wait_until(lambda: list(sockets(line).glob("*/gateway.sock")), "the control: a sandbox's socket is there")
        # The control plane never gets the key; the executor is the only one that has it.
        environments = {name: Path(f"/proc/{pid}/environ").read_bytes() for name, pid in pids.items()}
        commands = {name: Path(f"/proc/{pid}/cmdline").read_bytes() for name, pid in pids.items()}
        done = run.end()

    assert done.exit_code == 0, done.stderr
    assert CANARY.encode() in environments["executor"], "the control: this is where the key is"
    assert CANARY.encode() not in environments["supervisor"]
    assert CANARY.encode() not in environments["nats-server"]
    assert not any(CANARY.encode() in command for command in commands.values())
    wait_until(lambda: not processes_of(line), "every process of the stack has ended", 30)
    assert sandboxes(line) == []
    assert mounts_below(line.home) == []
    assert not sockets(line).exists()
    assert not (line.state / "stack.json").exists()
    said = {(each["service.name"], each["event"]) for each in lines_of(line, run.run_id) if each["level"] == "debug"}
    assert {("andon-sup", "budget.settled"), ("andon-exec", "container.output")} <= said, "the control: the log is at level debug"
    assert canaries(line.home) == []
    assert canaries(repository) == []
    (line.home / "control").write_text(CANARY)
    assert canaries(line.home) == [str(line.home / "control")], "the control: the search finds it"


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Line, Finished]:
    """The sample, replayed without a key on a stack of its own, which has ended."""
    line = Line(tmp_path_factory.mktemp("replayed") / "home", {})
    line.home.mkdir()
    return line, line.run()


def test_without_a_key_the_sample_is_replayed_and_lands(replayed: tuple[Line, Finished]):
    """One line says so; the result says so; the branch is in a scratch copy of the sample, and a second run gets another copy."""
    line, done = replayed

    assert done.exit_code == 0, done.stderr
    assert done.result["replay"] is True
    assert "replay" in done.stderr
    assert "replay" in Path(done.result["report"]).read_text()
    repository = Path(done.result["repo"])
    assert line.state in repository.parents
    assert branches(repository) == [f"andon/{SAMPLE_FEATURE}", "main"]
    wait_until(lambda: not processes_of(line), "every process of the stack has ended", 30)


def test_the_trace_of_the_replay_is_the_agreed_one(replayed: tuple[Line, Finished]):
    """Names, kinds, services, nesting, and what the spans say; after a change that is meant, `make golden` writes the file anew."""
    line, done = replayed
    wait_until(lambda: not processes_of(line), "every process of the stack has ended", 30)

    changed = difference(SeenTrace.of_file(line.state / "runs" / done.result["run_id"] / "trace.otlp.jsonl"))

    assert not changed, changed


def test_the_verbs_that_read_agree_with_the_result_and_start_nothing(line: Line, provider: Provider, tmp_path: Path):
    """`status`, `list`, `logs`, `diff` of a finished run, as text and as JSON, with and without its id."""
    repository = a_sample(tmp_path / "notes")
    (tmp_path / "pipeline.yaml").write_text("pipeline:\n  stages:\n    - {name: docs, agent: docs}\n")
    done = line.run("Document the limit", "--repo", str(repository), "--pipeline", str(tmp_path / "pipeline.yaml"))
    assert done.exit_code == 0, done.stderr
    run_id = done.result["run_id"]

    assert line.andon("status", run_id[:9], "--json").result == done.result
    row = json.loads(line.andon("list", "--json").stdout)[0]
    assert (row["run_id"], row["state"], row["commit"]) == (run_id, "landed", done.result["commit"])
    events = [json.loads(each) for each in line.andon("logs", run_id, "--json").stdout.splitlines()]
    assert [each["type"] for each in events][-2:] == ["run_landed", "run_delivered"]
    assert [each["seq"] for each in events] == sorted(each["seq"] for each in events)
    changed = json.loads(line.andon("diff", run_id, "--json").stdout)
    assert (changed["commit"], changed["landed"]) == (done.result["commit"], True)
    assert "+++ b/README.md" in changed["patch"]
    assert line.andon("diff", run_id).stdout.startswith("diff --git ")
    assert f"Landed: {done.result['feature']}" in line.andon("status", run_id).stdout
    assert "[docs]" in line.andon("logs", run_id, "--stage", "docs").stdout
    assert line.andon("logs", run_id, "-f").exit_code == 0
