"""The sample request through the whole line: what lands, what is told about it, and that it works."""

import hashlib
import http.client
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import docker
import pytest

from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from tests.e2e.line import CANARY, Finished, Line, Provider
from tests.e2e.watching import (
    ATTEMPT_KEYS,
    RESULT_KEYS,
    STAGE_KEYS,
    USAGE_KEYS,
    a_sample,
    branches,
    every_byte,
    going,
    is_delivered,
    sandboxes,
    wait_until,
)
from tests.fakes.repositories import plant_hooks, run_git
from tests.fakes.scripted_model import Logged
from tests.fakes.scripts.rate_limit import HAPPY

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

SPEC = f".andon/features/{SAMPLE_FEATURE}/spec.yaml"


class Landed:
    """A run that landed, with everything that was seen around it."""

    def __init__(self, line: Line, provider: Provider, path: Path) -> None:
        self.repository = a_sample(path / "notes")
        self.canary = path / "hook-ran"
        plant_hooks(self.repository / ".git", self.canary)
        run_git(self.repository, "config", "core.fsmonitor", f"touch {self.canary}; :")
        (self.repository / "work-in-progress.txt").write_text("mine\n")
        self.before = every_byte(self.repository)
        self.seen: dict[str, dict[str, Any]] = {}
        provider.says(HAPPY)
        with going(line, SAMPLE_REQUEST, "--repo", str(self.repository)) as run:

            def is_over() -> bool:
                self.seen |= {each["Id"]: each for each in sandboxes(line)}
                return run.process.poll() is not None

            wait_until(is_over, "the run is over", 240)
            self.done: Finished = run.end()
        self.log: list[Logged] = list(provider.server.log)
        self.violations = list(provider.server.violations)
        self.after = every_byte(self.repository)
        assert self.done.exit_code == 0, self.done.stderr


@pytest.fixture(scope="module")
def landed(line: Line, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Landed:
    """One happy run for the tests of this module; each looks at another side of it."""
    return Landed(line, provider, tmp_path_factory.mktemp("happy"))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def show(landed: Landed, form: str) -> str:
    return run_git(landed.repository, "show", "-s", f"--format={form}", landed.done.result["branch"])


def test_the_result_object_has_exactly_the_documented_keys(landed: Landed):
    """Stdout is one JSON object, and a program may rely on its keys."""
    result = landed.done.result

    assert landed.done.stdout.strip().startswith("{")
    assert set(result) == RESULT_KEYS
    assert set(result["usage"]) == USAGE_KEYS
    assert all(set(stage) == STAGE_KEYS for stage in result["stages"])
    assert all(set(attempt) == ATTEMPT_KEYS for stage in result["stages"] for attempt in stage["attempts"])
    assert set(result["files"]) == {"created", "modified", "deleted"}
    assert result["tests"] == {"passed": 15, "failed": 0, "skipped": 0}


def test_every_stage_passed_once_in_a_container_of_its_own(landed: Landed):
    """Baseline, red-check and validate are seen like the agents' stages; each attempt had another container."""
    result = landed.done.result

    assert sorted(landed.done.rounds) == sorted(
        (name, 1, "pass") for name in ("baseline", "spec", "interface", "implement", "test", "red-check", "validate", "docs")
    )
    attempts = [attempt for stage in result["stages"] for attempt in stage["attempts"]]
    assert [attempt["outcome"] for attempt in attempts] == ["submitted"] * 8
    assert len({attempt["container_id"] for attempt in attempts}) == 8


def test_implement_and_test_ran_at_the_same_time(landed: Landed):
    """The two containers were up together, by the result's times and by the engine's own list."""
    implement, test = (landed.done.stage(name)["attempts"][0] for name in ("implement", "test"))

    assert at(implement["started_at"]) < at(test["ended_at"])
    assert at(test["started_at"]) < at(implement["ended_at"])
    started = {name: landed.seen[each["container_id"]]["State"]["StartedAt"][:26] for name, each in (("i", implement), ("t", test))}
    assert at(started["i"]) < at(test["ended_at"][:-1])
    assert at(started["t"]) < at(implement["ended_at"][:-1])


def test_one_commit_with_its_trailers_is_on_the_branch(landed: Landed):
    """Its parent is the base, its author the repository's user, its trailers name run, trace, cost and the spec's digest."""
    result, repository = landed.done.result, landed.repository

    assert branches(repository) == [f"andon/{SAMPLE_FEATURE}", "main"]
    assert result["branch"] == f"andon/{SAMPLE_FEATURE}"
    assert show(landed, "%H %P") == f"{result['commit']} {result['base']}"
    assert run_git(repository, "rev-parse", "main") == result["base"]
    assert show(landed, "%an <%ae>|%cn") == "Ref O'Sitory <ref@example.org>|andon"
    spec = subprocess.run(["git", "show", f"{result['branch']}:{SPEC}"], cwd=repository, capture_output=True, check=True).stdout
    assert dict(each.split(": ", 1) for each in show(landed, "%(trailers)").splitlines() if each) == {
        "Andon-Run": result["run_id"],
        "Andon-Trace": result["trace_id"],
        "Andon-Cost": f"${result['cost_usd']:.4f}",
        "Andon-Spec": f"{SPEC}@sha256:{hashlib.sha256(spec).hexdigest()}",
    }


def test_the_files_of_the_commit_are_those_of_the_result(landed: Landed):
    """Code, tests, docs and the specification land; neither the lock nor the task bundle does."""
    result = landed.done.result
    raw = run_git(landed.repository, "diff", "--name-status", "--no-renames", result["base"], result["commit"])
    by_kind: dict[str, list[str]] = {"A": [], "M": [], "D": []}
    for each in raw.splitlines():
        by_kind[each[0]].append(each[1:].strip())

    assert result["files"] == {"created": by_kind["A"], "modified": by_kind["M"], "deleted": by_kind["D"]}
    assert by_kind["A"] == [SPEC, "notes_api/rate_limit.py", "tests/test_rate_limit.py"]


def test_the_users_repository_is_byte_identical_but_for_the_branch(landed: Landed):
    """Index, HEAD, configuration, hooks, work tree: every byte; new are loose objects and one ref; no hook or monitor ran."""
    changed = {name for name in landed.before if landed.after.get(name) != landed.before[name]}
    added = landed.after.keys() - landed.before.keys()

    assert changed == set()
    assert {name for name in added if not is_delivered(name)} == set()
    assert f".git/refs/heads/andon/{SAMPLE_FEATURE}" in added
    assert not landed.canary.exists()
    run_git(landed.repository, "-c", "core.fsmonitor=", "fsck", "--strict", "--no-dangling")


def test_the_provider_saw_what_the_result_counts(landed: Landed):
    """Every call is attributed, none broke the provider's rules, and tokens add up to the provider's own figures."""
    result = landed.done.result
    calls = [call for call in landed.log if call.status == 200]

    assert landed.violations == []
    assert {call.stage for call in calls} == {"spec", "interface", "implement", "test", "docs"}
    assert {call.headers["x-andon-run"] for call in calls} == {result["run_id"]}
    assert {call.headers["x-andon-job"] for call in calls} == {
        stage["job"] for stage in result["stages"] if stage["attempts"][0]["cost_usd"]
    }
    for ours, theirs in (
        ("input_tokens", "input_tokens"),
        ("output_tokens", "output_tokens"),
        ("cache_read_input_tokens", "cache_read_input_tokens"),
        ("cache_write_input_tokens", "cache_creation_input_tokens"),
    ):
        assert result["usage"][ours] == sum(call.usage[theirs] for call in calls), ours
    assert result["cost_usd"] == pytest.approx(sum(a["cost_usd"] for stage in result["stages"] for a in stage["attempts"]), abs=1e-5)
    assert result["cost_usd"] > 0


@pytest.mark.abuse("W01")
def test_no_container_knew_the_key_or_had_a_network(landed: Landed):
    """By the engine's own account of each container that was seen."""
    assert len(landed.seen) >= 5
    for facts in landed.seen.values():
        assert CANARY not in str(facts)
        assert "ANTHROPIC" not in str(facts["Config"]["Env"])
        assert facts["HostConfig"]["NetworkMode"] == "none"


@pytest.mark.abuse("W01")
def test_no_layer_of_an_image_holds_the_key(landed: Landed):
    """What `docker save` gives of every image a job ran in; the control: a word of our own program is found in the same bytes."""
    images = {str(facts["Image"]) for facts in landed.seen.values()}
    client = docker.APIClient()

    try:
        for image in images:
            assert not holds(client.get_image(image), CANARY.encode())
            assert holds(client.get_image(image), b"sandbox.inside")
    finally:
        client.close()


def holds(chunks: Iterable[bytes], needle: bytes) -> bool:
    """Return whether a stream of bytes holds `needle`, also across two chunks."""
    tail, found = b"", False
    for chunk in chunks:
        found = found or needle in tail + chunk
        tail = chunk[-len(needle) :]
    return found


def test_the_report_and_the_trace_are_where_the_result_says(landed: Landed):
    """The report names branch, commit, tests and cost; the trace file has spans of this trace alone."""
    result = landed.done.result
    report = Path(result["report"]).read_text()
    spans = (Path(result["report"]).parent / "trace.otlp.jsonl").read_text()

    for told in (result["branch"], result["commit"][:12], result["trace_id"], "15 passed"):
        assert told in report
    assert set(re.findall(r'"traceId":\s*"([^"]+)"', spans)) == {result["trace_id"]}


@contextmanager
def served(tree: Path) -> Iterator[http.client.HTTPConnection]:
    """Serve the landed code as a user would."""
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [sys.executable, "-m", "notes_api", "--port", "0"]
    with subprocess.Popen(argv, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        connection = http.client.HTTPConnection(process.stdout.readline().strip().removeprefix("http://"), timeout=10)
        try:
            yield connection
        finally:
            connection.close()
            process.terminate()


def test_the_landed_code_answers_a_hundred_requests_and_refuses_the_next(landed: Landed, tmp_path: Path):
    """Checked over HTTP against what the branch holds, outside everything the line itself ran."""
    run_git(tmp_path, "clone", "--quiet", "--branch", landed.done.result["branch"], str(landed.repository), "clone")
    answers = []
    with served(tmp_path / "clone") as connection:
        for _ in range(101):
            connection.request("GET", "/notes")
            response = connection.getresponse()
            response.read()
            answers.append((response.status, response.getheader("Retry-After")))

    assert answers[:100] == [(200, None)] * 100
    assert answers[100][0] == 429
    assert 1 <= int(answers[100][1] or 0) <= 60
