"""The runner of checks: every command, its exit, its report, its bounds."""

import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract.job import Assignment, Check, Submission
from sandbox.inside.checks.runner import TAIL_CHARS_MAX, environment_of, run_checks
from sandbox.inside.gateway_client import SUBMISSION_BYTES_MAX
from sandbox.inside.paths import Paths, base_environment


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths.below(str(tmp_path))
    for directory in (found.workspace, found.out, found.tmp, found.home):
        directory.mkdir(parents=True)
    return found


def run(paths: Paths, *checks: Check, wall_s: int = 60) -> Submission:
    assignment = Assignment(
        job_id="0123456789-validate-1", stage="validate", round=1, attempt=1, kind="checks", checks=checks, traceparent="", wall_s=wall_s
    )
    return run_checks(assignment, paths, {**base_environment(paths), "PATH": os.environ["PATH"]}, lambda line: None)


def check(name: str, *argv: str, **fields: Any) -> Check:
    return Check(name=name, argv=argv, **fields)


def pytest_check(**fields: Any) -> Check:
    argv = (sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:asyncio")
    return check("tests", *argv, report="junit", is_tests=True, **fields)


def test_every_check_runs_whatever_becomes_of_the_others(paths: Paths) -> None:
    """Exit codes and tails in the order of the checks."""
    done = run(paths, check("one", "sh", "-c", "echo out; echo err >&2; exit 3"), check("two", "no-such-tool"), check("three", "true"))

    assert (done.status, done.steps) == ("checked", 3)
    assert [(one.name, one.exit_code) for one in done.exits] == [("one", 3), ("two", 127), ("three", 0)]
    assert done.exits[0].output_tail == "out\nerr\n"
    assert "no-such-tool" in done.exits[1].output_tail


def test_a_check_is_killed_at_its_timeout(paths: Paths) -> None:
    """With its children, and the next one still runs."""
    done = run(paths, check("slow", "sh", "-c", "sleep 100 & sleep 100", timeout_s=1), check("next", "true"))

    assert [one.exit_code for one in done.exits] == [None, 0]


def test_the_wall_bounds_all_checks_together(paths: Paths) -> None:
    """What does not get its turn is reported as killed."""
    done = run(paths, check("slow", "sleep", "100"), check("starved", "sleep", "100"), wall_s=1)

    assert [one.exit_code for one in done.exits] == [None, None]
    assert sum(one.duration_s for one in done.exits) < 5


def test_pytest_leaves_a_report_however_it_is_started(paths: Paths) -> None:
    """The test tree stays clean: neither byte code nor a cache."""
    (paths.workspace / "test_a.py").write_text("def test_good():\n    pass\n\ndef test_bad():\n    assert False\n")

    done = run(paths, pytest_check())

    assert done.exits[0].exit_code == 1
    suite = ElementTree.parse(paths.out / "tests.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [path.name for path in paths.workspace.iterdir()] == ["test_a.py"]


def test_one_file_that_cannot_be_collected_hides_no_other(paths: Paths) -> None:
    """Pytest alone would run nothing."""
    (paths.workspace / "test_a.py").write_text("def test_good():\n    pass\n")
    (paths.workspace / "test_b.py").write_text("import nowhere_at_all\n")

    run(paths, pytest_check(path="deep/report file.xml"))

    cases = [case.get("name") for case in ElementTree.parse(paths.out / "deep/report file.xml").getroot().iter("testcase")]
    assert "test_good" in cases


def test_options_already_asked_for_stay(tmp_path: Path) -> None:
    """Ours are added; only a check that owes a JUnit report gets them."""
    environment = {"PYTEST_ADDOPTS": "-x"}

    assert environment_of(pytest_check(), tmp_path, environment)["PYTEST_ADDOPTS"].startswith(f"-x --junitxml={tmp_path}/tests.xml ")
    assert environment_of(check("lint", "ruff"), tmp_path, environment) == environment
    assert environment_of(check("lint", "ruff", report="sarif"), tmp_path, environment) == environment


def test_only_the_tail_of_long_output_is_kept(paths: Paths) -> None:
    """The whole goes to the container's log."""
    done = run(paths, check("long", "seq", "1", "100000"))

    assert len(done.exits[0].output_tail) == TAIL_CHARS_MAX
    assert done.exits[0].output_tail.endswith("99999\n100000\n")


def test_many_long_tails_still_fit_one_submission(paths: Paths) -> None:
    """The longest are halved first, and an escaped character counts as it is sent."""
    loud = [check(f"loud{number}", "sh", "-c", "head -c 40000 /dev/zero | tr '\\0' '\\001'") for number in range(12)]

    done = run(paths, *loud, check("quiet", "echo", "short"))

    assert len(done.model_dump_json().encode()) <= SUBMISSION_BYTES_MAX
    assert done.exits[-1].output_tail == "short\n"
    assert all(one.output_tail for one in done.exits)
