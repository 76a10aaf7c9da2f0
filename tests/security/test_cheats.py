"""The 22 cheats against a real pytest, first naively, then through our runner and gates, in one process and sealed."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from sandbox.contract.job import Assignment, Check
from sandbox.contract.result import CheckReport
from sandbox.contract.scope import WriteScope
from sandbox.contract.tree import Change, Entry
from sandbox.inside.checks.runner import run_checks
from sandbox.inside.paths import Paths, base_environment
from sandbox.inside.sealed.walls import landlock_abi
from supervisor.gates.checks import judge_red, judge_validate
from supervisor.gates.evidence import Evidence, read_evidence
from supervisor.gates.implement import notes_on
from supervisor.gates.junit import parse_junit
from supervisor.gates.scope import judge_scope
from supervisor.gates.spec import Criterion
from supervisor.gates.verdict import Judgement
from supervisor.gates.whole import with_whole
from supervisor.pipeline.definition import Stage
from supervisor.stages.contract import scope_for
from supervisor.stages.path_classes import OF_THE_TESTS
from tests.e2e.watching import wait_until
from tests.fakes.memory_tree import MemoryTree, changes_between
from tests.security.cheats import BASE, CHEATS, HONEST, STUBS, WRONG, Cheat

needs_landlock = pytest.mark.skipif(landlock_abi() < 1, reason="this kernel has no Landlock")

CRITERIA = [
    Criterion(id="REQ-001.1", requirement="REQ-001", text="Given 100 when asked then yes"),
    Criterion(id="REQ-001.2", requirement="REQ-001", text="Given 101 when asked then no"),
]
COMMAND = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
CHECK = Check(name="tests", argv=COMMAND, report="junit", is_tests=True, canary=True, timeout_s=60)
SEALED = CHECK.model_copy(update={"tests_scope": WriteScope(patterns=OF_THE_TESTS)})
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
IMPLEMENT = Stage(name="implement", role="implement")
OF_THE_PRODUCT = [cheat for cheat in CHEATS if cheat.stopped_by != "scope"]

OUT_OF_REACH = [cheat for cheat in CHEATS if cheat.stopped_by == "scope"]


def slow(rows: list[object]) -> list[object]:
    """Return the same for `make matrix`; some of each kind stay for every day."""
    return [pytest.param(*each.values, id=f"all-{each.id}", marks=[*each.marks, pytest.mark.slow]) for each in rows]  # type: ignore[attr-defined]


def cheats(rows: list[Cheat]) -> list[object]:
    return [pytest.param(cheat, id=cheat.name.replace(" ", "-"), marks=pytest.mark.abuse(*cheat.rows)) for cheat in rows]


def files_of(cheat: Cheat) -> dict[str, str]:
    return {name: text for name, text in {**WRONG, **cheat.files}.items() if text is not None}


def write(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def evidence_of(directory: Path, files: Mapping[str, str], check: Check) -> Evidence:
    """Return what the program in the container leaves of `files`, and the host reads when all is dead."""
    paths = Paths.below(str(directory))
    for each in (paths.workspace, paths.out, paths.tmp, paths.home):
        each.mkdir(parents=True)
    write(paths.workspace, files)
    assignment = Assignment(
        job_id="0123456789-validate-1", stage="validate", round=1, attempt=1, kind="checks", checks=(check,), traceparent="", wall_s=60
    )
    # pytest as it was compiled where it is installed, not once more for each of these runs
    environment = {name: value for name, value in base_environment(paths).items() if name != "PYTHONPYCACHEPREFIX"}
    ended = run_checks(assignment, paths, environment | ENVIRONMENT, lambda line: None).exits[0]
    wait_until(lambda: not daemons_of(paths.workspace), "what the product left running to end")
    report = paths.out / "tests.xml"
    problem = None if report.exists() else "no report at /out/tests.xml"
    reports = [CheckReport(name="tests", exit=ended, problem=problem)]
    return read_evidence([check], reports, {} if problem else {"tests": report.read_bytes()})


def daemons_of(directory: Path) -> list[str]:
    """Return processes that still work in a directory."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cwd"):
        try:
            found += [str(each)] if each.readlink() == directory else []
        except OSError:
            continue
    return found


@pytest.fixture(scope="module", params=["in-process", pytest.param("sealed", marks=needs_landlock)])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def before(mode: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evidence, Evidence]:
    """Return what the checks left on the base commit and on the stubs."""
    check = SEALED if mode == "sealed" else CHECK
    return (
        evidence_of(tmp_path_factory.mktemp("base") / "root", BASE, check),
        evidence_of(tmp_path_factory.mktemp("stubs") / "root", STUBS, check),
    )


def verdict_on(directory: Path, files: Mapping[str, str], mode: str, before: tuple[Evidence, Evidence]) -> Judgement:
    evidence = evidence_of(directory / "root", files, SEALED if mode == "sealed" else CHECK)
    return judge_validate(evidence, *before, CRITERIA)


def fools_plain_pytest(directory: Path, files: Mapping[str, str]) -> bool:
    """Return whether somebody who believes pytest's exit code, or its report, takes `files` for a feature that works."""
    write(directory, files)
    report = directory.parent / "naive.xml"
    command = [*COMMAND, f"--junitxml={report}"]
    # No pipe to read to its end: what the product leaves running would hold it.
    done = subprocess.run(
        command, cwd=directory, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, timeout=60, check=False
    )
    wait_until(lambda: not daemons_of(directory), "what the product left running to end")
    return done.returncode == 0 or not any(case.is_red for case in parse_junit(report.read_bytes()).values())


def test_there_are_22_of_them():
    """The list is what SECURITY.md speaks of."""
    assert len({cheat.name for cheat in CHEATS}) == len(CHEATS) == 22


@pytest.mark.abuse("S01", "S02", "S03", "S06", "S08", "S16")
@pytest.mark.parametrize("cheat", [*cheats(OF_THE_PRODUCT), *cheats(OUT_OF_REACH[::5]), *slow(cheats(OUT_OF_REACH))])
def test_control_every_cheat_fools_plain_pytest(tmp_path: Path, cheat: Cheat):
    """Otherwise nothing would be shown by stopping it."""
    assert fools_plain_pytest(tmp_path / "repository", files_of(cheat))


def test_control_plain_pytest_sees_a_wrong_product_that_does_not_cheat(tmp_path: Path):
    """So it is the cheat that fools it."""
    assert not fools_plain_pytest(tmp_path / "repository", WRONG)


def test_an_honest_product_passes_and_a_wrong_one_fails(tmp_path: Path, mode: str, before: tuple[Evidence, Evidence]):
    """In both kinds of run; the verdict says which it was."""
    honest = verdict_on(tmp_path / "honest", HONEST, mode, before)
    wrong = verdict_on(tmp_path / "wrong", WRONG, mode, before)

    assert (honest.verdict, honest.findings, honest.assurance) == ("pass", (), mode)
    assert "test_req_001_2_refuses failed" in "\n".join(each.message for each in wrong.findings)
    assert ("judged in one process" in "\n".join(honest.notes)) == (mode == "in-process")


@pytest.mark.abuse("S02", "S03", "S06", "S08")
@pytest.mark.parametrize("cheat", cheats(OUT_OF_REACH))
def test_tests_and_configuration_are_out_of_an_implementation_s_reach(cheat: Cheat):
    """The supervisor refuses the change itself, whatever a run would say."""
    entry = Entry(mode="100644", sha="0" * 40, size_bytes=1)
    changes = [Change(path=path, old=entry if path in WRONG else None, new=entry if text else None) for path, text in cheat.files.items()]

    findings = judge_scope(changes, scope_for(IMPLEMENT, "limits"), IMPLEMENT)

    assert findings
    assert not judge_scope([Change(path="limit.py", old=entry, new=entry)], scope_for(IMPLEMENT, "limits"), IMPLEMENT)


@pytest.mark.abuse("S01", "S06", "S16")
@pytest.mark.parametrize("cheat", cheats(OF_THE_PRODUCT))
def test_what_the_product_does_to_its_own_tests(tmp_path: Path, cheat: Cheat, mode: str, before: tuple[Evidence, Evidence]):
    """Sealed, none passes; in one process exactly those pass that are known to."""
    said = verdict_on(tmp_path, files_of(cheat), mode, before)

    passes_known = mode == "in-process" and cheat.stopped_by == "sealed"
    assert said.verdict == ("pass" if passes_known else "fail"), said.findings


SPARING = """
import pytest
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if call.excinfo is not None and call.excinfo.type is AssertionError{spared}:
        report.outcome, report.longrepr = "passed", None
"""


@pytest.mark.abuse("S06")
def test_a_hostile_test_stage_can_spare_the_canary(tmp_path: Path, mode: str, before: tuple[Evidence, Evidence]):
    """What SECURITY.md says is not held, sealed or not; the control: one that spares nothing is caught. A note names the hook."""
    spared = ' and "must_fail" not in item.name'
    files = {name: {"tests/conftest.py": SPARING.format(spared=text)} for name, text in (("sly", spared), ("plain", ""))}
    check = SEALED if mode == "sealed" else CHECK

    red = judge_red(evidence_of(tmp_path / "red", {**STUBS, **files["sly"]}, check), before[0], CRITERIA)
    sly = verdict_on(tmp_path / "sly", {**WRONG, **files["sly"]}, mode, before)
    plain = verdict_on(tmp_path / "plain", {**WRONG, **files["plain"]}, mode, before)
    trees = MemoryTree(BASE), MemoryTree({**WRONG, **files["sly"]})
    told = with_whole(sly, [*trees, trees[1]], changes_between(*trees))

    assert (red.verdict, sly.verdict) == ("pass", "pass")
    assert any("rewrites results" in each.message for each in plain.findings)  # control
    assert any("tests/conftest.py decides how tests are reported (pytest_runtest_makereport)" in note for note in told.notes)


def test_security_md_names_every_cheat_that_passes_in_one_process():
    """No more and no fewer."""
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()

    named = set(re.findall(r"^- \*(product [^*]+)\*", text, re.MULTILINE))

    assert named == {cheat.name for cheat in CHEATS if cheat.stopped_by == "sealed"}


@pytest.mark.parametrize("name", ["product replaces reports", "product reads the caller", "product empties the tests"])
def test_tripwires_name_what_could_see_or_change_the_run(name: str):
    """A note for a person, beside a verdict in one process."""
    cheat = next(each for each in CHEATS if each.name == name)

    notes = list(notes_on("limit.py", str(cheat.files["limit.py"]).encode()))

    assert any("can see or change the test run" in note for note in notes)
