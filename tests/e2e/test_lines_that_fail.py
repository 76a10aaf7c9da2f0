"""Lines that end red, and one that is reworked to green: what stops them, what is told, what is kept, and that nothing lands."""

from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from tests.e2e.line import Finished, Line, Provider
from tests.e2e.watching import a_sample, branches, every_byte, file_in_mirror, salvaged
from tests.fakes.script import Script
from tests.fakes.scripts.rate_limit import (
    DRIFTED,
    INTERFACE_DRIFT,
    MODULE,
    NEVER_SUBMITS,
    ONE_TOO_MANY,
    PATCHED_AT_IMPORT,
    REWORK_EXHAUSTED,
    REWORK_TWICE,
    SCOPE_VIOLATION,
    SPEC,
    TEST_ONE_TOO_MANY_FAILS,
    TEST_SCOPE_VIOLATION,
    TESTS_NOTHING,
    WRONG_LINE,
)

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

Runs = Callable[..., Finished]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return a_sample(tmp_path / "notes")


@pytest.fixture
def runs(line: Line, provider: Provider, repository: Path, tmp_path: Path) -> Runs:
    """Run the sample request against a script with the specification given, to be quick, and check that nothing was landed."""
    (tmp_path / "spec.yaml").write_text(SPEC.replace("{feature}", SAMPLE_FEATURE))

    def run(script: Script, *options: str) -> Finished:
        provider.says(script)
        before = every_byte(repository)
        spec = ("--spec", str(tmp_path / "spec.yaml"), "--slug", SAMPLE_FEATURE, "--no-baseline")
        done = line.run(SAMPLE_REQUEST, "--repo", str(repository), *(options or spec))
        assert "Traceback" not in done.stderr
        if done.exit_code != 0:
            assert every_byte(repository) == before
            assert done.result["commit"] is None
            assert done.result["state"] == "failed"
        return done

    return run


def report_of(done: Finished) -> str:
    return Path(done.result["report"]).read_text()


def test_a_wrong_implementation_is_reworked_until_it_is_green(runs: Runs, provider: Provider, repository: Path):
    """Two red validates: each gives a new implement job that is told the failing tests, the diff and the round; the third is green."""
    done = runs(REWORK_TWICE)

    assert done.exit_code == 0, done.stderr
    assert sorted(each for each in done.rounds if each[0] == "validate") == [
        ("validate", 1, "fail"),
        ("validate", 2, "fail"),
        ("validate", 3, "pass"),
    ]
    assert sorted(round_ for stage, round_, _ in done.rounds if stage == "implement") == [1, 2, 3]
    assert [round_ for stage, round_, _ in done.rounds if stage == "test"] == [1]
    second = next(call for call in provider.server.calls("implement") if call.round == 2)
    told = str(second.request["messages"][0])
    assert TEST_ONE_TOO_MANY_FAILS in told
    assert "round 2" in told.lower()
    assert "len(times) > self._limit.requests" in told
    assert done.result["tests"] == {"passed": 15, "failed": 0, "skipped": 0}
    assert branches(repository) == [f"andon/{SAMPLE_FEATURE}", "main"]


def test_a_rework_that_never_helps_ends_after_four_implement_jobs(runs: Runs, line: Line):
    """Exit 1; the last work is on a salvage ref; report and result name the stage, the check and the first failing test."""
    done = runs(REWORK_EXHAUSTED)

    assert done.exit_code == 1
    assert [(round_, verdict) for stage, round_, verdict in done.rounds if stage == "validate"] == [(n, "fail") for n in (1, 2, 3, 4)]
    assert [round_ for stage, round_, _ in done.rounds if stage == "implement"] == [1, 2, 3, 4]
    assert "docs" not in {stage for stage, _, _ in done.rounds}
    assert done.result["tests"]["failed"] >= 1
    refs = salvaged(line, done.result["run_id"])
    assert {name.rsplit("/", 1)[1] for name in refs} >= {"implement-1-1", "implement-4-1", "test-1-1"}
    last = refs[f"refs/andon/salvage/{done.result['run_id']}/implement-4-1"]
    assert "len(times) > self._limit.requests" in file_in_mirror(line, last, MODULE)
    report = report_of(done)
    for told in ("validate", TEST_ONE_TOO_MANY_FAILS, "refs/andon/salvage/"):
        assert told in report
    assert TEST_ONE_TOO_MANY_FAILS in done.stderr


def test_writing_a_test_is_outside_the_scope_of_implement(runs: Runs, line: Line):
    """Exit 1 with path, stage and the line of YAML that would allow it; the sibling is cancelled or done, nothing follows."""
    done = runs(SCOPE_VIOLATION)

    assert done.exit_code == 1
    assert done.stage("implement")["verdict"] == "fail"
    assert "validate" not in {stage for stage, _, _ in done.rounds}
    for told in ("tests/test_app.py", "implement", "scope:"):
        assert told in report_of(done)
    assert "tests/test_app.py" in done.stderr
    refs = salvaged(line, done.result["run_id"])
    commit = refs[f"refs/andon/salvage/{done.result['run_id']}/implement-1-1"]
    assert "def test_nothing" in file_in_mirror(line, commit, "tests/test_app.py")


def test_writing_code_is_outside_the_scope_of_test(runs: Runs):
    """The companion: the scopes of the two siblings are disjoint both ways."""
    done = runs(TEST_SCOPE_VIOLATION)

    assert done.exit_code == 1
    assert done.stage("test")["verdict"] == "fail"
    assert "notes_api/extra.py" in done.stderr


def test_a_changed_signature_is_drift(runs: Runs):
    """Also one that would be compatible: the lock is the syntax tree."""
    done = runs(INTERFACE_DRIFT)

    assert done.exit_code == 1
    assert done.stage("implement")["verdict"] == "fail"
    assert "weight" in DRIFTED
    for told in (MODULE, "check"):
        assert told in done.stderr
    assert "interface" in report_of(done).lower()
    assert "validate" not in {stage for stage, _, _ in done.rounds}


@pytest.mark.slow
@pytest.mark.abuse("S10")
def test_a_signature_that_changes_at_import_is_reworked(runs: Runs, provider: Provider):
    """All tests are green and the text is as it was locked; what the import shows in the sandbox is not, and the next round is told."""
    done = runs(PATCHED_AT_IMPORT)

    assert done.exit_code == 0, done.stderr
    assert sorted(each for each in done.rounds if each[0] == "validate") == [("validate", 1, "fail"), ("validate", 2, "pass")]
    second = next(call for call in provider.server.calls("implement") if call.round == 2)
    told = str(second.request["messages"][0])
    assert "`RateLimiter.check` is locked as `def (self, client: " in told
    assert "after the import it is `def (self, client, weight = 1)`" in told
    assert TEST_ONE_TOO_MANY_FAILS not in told


def test_tests_that_are_green_on_the_stubs_stop_the_line(runs: Runs):
    """They are written anew twice, then the line stops at the red-check; nothing is validated."""
    done = runs(TESTS_NOTHING)

    assert done.exit_code == 1
    assert [(round_, verdict) for stage, round_, verdict in done.rounds if stage == "red-check"] == [(n, "fail") for n in (1, 2, 3)]
    assert [round_ for stage, round_, _ in done.rounds if stage == "test"] == [1, 2, 3]
    assert "validate" not in {stage for stage, _, _ in done.rounds}
    assert "red-check" in done.stderr
    assert "REQ-001" in report_of(done)


def test_an_agent_that_never_submits_fails_its_stage(runs: Runs, provider: Provider, tmp_path: Path):
    """Bounded by the stage's steps and told by name; the outcome is the agent's fault, so nothing is tried again."""
    done = runs(NEVER_SUBMITS)

    assert done.exit_code == 1
    (attempt,) = done.stage("implement")["attempts"]
    assert attempt["outcome"] in {"no_submit", "step_limit"}
    assert len(provider.server.calls("implement")) <= 60
    assert "submit" in done.stderr


def test_one_wrong_line_ends_at_validate_when_nothing_is_told_beyond_it(runs: Runs, line: Line, repository: Path, tmp_path: Path):
    """Recorded from a script with one wrong line, a cassette ends the replay at validate, naming the test (DECISIONS G11)."""
    cassette = tmp_path / "wrong.jsonl"
    recorded = runs(WRONG_LINE, "--slug", SAMPLE_FEATURE, "--no-baseline", "--record", str(cassette))
    assert (recorded.exit_code, recorded.stage("validate")["verdict"]) == (1, "fail")

    done = runs(WRONG_LINE, "--slug", SAMPLE_FEATURE, "--no-baseline", "--replay", str(cassette))

    assert done.exit_code == 1
    assert done.result["replay"] is True
    assert done.stage("validate")["verdict"] == "fail"
    assert TEST_ONE_TOO_MANY_FAILS in done.stderr
    assert "len(times) > self._limit.requests" in ONE_TOO_MANY
    assert "validate" in report_of(done)
