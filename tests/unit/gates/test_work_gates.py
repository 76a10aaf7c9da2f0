"""The gates of interface, implement, test and of nothing: each with what passes and what fails."""

import json

import pytest

from sandbox.contract.interface_lock import InterfaceLock
from sandbox.contract.job import Submission
from supervisor.gates.implement import judge_implement
from supervisor.gates.interface import judge_interface
from supervisor.gates.nothing import judge_empty
from supervisor.gates.spec import Criterion
from supervisor.gates.tests import criterion_of, judge_tests
from supervisor.gates.verdict import FINDINGS_MAX, Judgement, finding, judgement
from tests.fakes.memory_tree import MemoryTree, changes_between

BASE = MemoryTree({"app.py": "def run() -> int:\n    return 1\n", "data.json": "{}"})
STUBS = BASE.with_files({"limit.py": "def allow(client: str) -> bool:\n    raise NotImplementedError\n"})
DONE = STUBS.with_files({"limit.py": "def allow(client: str) -> bool:\n    return bool(client)\n"})


def the_lock() -> InterfaceLock:
    evidence = judge_interface(BASE, STUBS, changes_between(BASE, STUBS)).evidence
    assert evidence is not None
    return InterfaceLock.model_validate_json(evidence)


def implemented(result: MemoryTree) -> Judgement:
    return judge_implement(result, changes_between(STUBS, result), [the_lock()])


def test_an_interface_of_stubs_passes_and_its_evidence_is_the_lock():
    """Later gates and the test stage read it."""
    said = judge_interface(BASE, STUBS, changes_between(BASE, STUBS))

    assert said.verdict == "pass"
    assert list(json.loads(said.evidence or b"")["files"]) == ["limit.py"]


def test_an_interface_with_a_body_fails_and_names_file_line_and_symbol():
    """The finding is enough to repair it."""
    said = judge_interface(BASE, DONE, changes_between(BASE, DONE))

    assert [each.message for each in said.findings] == [
        "limit.py: line 1: `allow` has a body; leave its docstring and `...`, the implement stage fills it"
    ]


def test_what_is_no_python_is_said_to_be_unlocked():
    """A person should know what the lock does not hold."""
    result = STUBS.with_files({"schema.json": "{}"})

    assert any("schema.json" in note for note in judge_interface(BASE, result, changes_between(BASE, result)).notes)


def test_a_python_file_too_large_to_judge_fails():
    """What cannot be read cannot be locked."""
    result = STUBS.with_files({"big.py": "#" * 600_000})

    assert judge_interface(BASE, result, changes_between(BASE, result)).findings[0].path == "big.py"


def test_a_filled_interface_passes():
    """The companion of everything below."""
    assert implemented(DONE).verdict == "pass"


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("def allow(client: str, x: int = 0) -> bool:\n    return True\n", "interface-lock"),
        ("def allow(client: str) -> bool:\n    ...\n", "implementation"),
        ("def allow(client: str) -> bool:\n    return True\nEXTRA = 1\n", "interface-lock"),
        ("x" * 600_000, "interface-lock"),
        (None, "interface-lock"),
    ],
)
def test_drift_and_stubs_fail(text: str | None, check: str):
    """The lock is judged on the whole tree, whatever this stage changed."""
    said = implemented(STUBS.with_files({"limit.py": text}))

    assert said.verdict == "fail"
    assert {each.check for each in said.findings} == {check}


def test_without_an_interface_stage_nothing_is_locked():
    """A pipeline may leave it out."""
    assert judge_implement(DONE, changes_between(STUBS, DONE), []).verdict == "pass"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import sys\nsys._getframe(1)\n", "sys._getframe"),
        ("import os\nos._exit(0)\n", "os._exit"),
        ("from os import _exit\n", "os._exit"),
        ("import _pytest.runner\n", "_pytest.runner"),
        ("import ctypes\n", "ctypes"),
        ("import sys\nsys.modules['x'] = 1\n", "sys.modules"),
        ("x = 1  # noqa\n", "suppresses checks (noqa)"),
        ("x = 1  # type: ignore\n", "type: ignore"),
        ("password = 1  # nosec\n", "nosec"),
        ("x = 'a\u202eb'\n", "direction-changing"),
        ("def (\n", "is not Python"),
    ],
)
def test_what_a_person_should_look_at_is_a_note_and_no_failure(text: str, told: str):
    """In one process a product can cheat its tests; this says where to look (SANDBOX.md §6.3)."""
    said = implemented(DONE.with_files({"extra.py": text}))

    assert said.verdict == "pass"
    assert any(note.startswith("extra.py: ") and told in note for note in said.notes)


def test_ordinary_code_has_no_notes():
    """The companion: nothing is said where there is nothing to see."""
    assert implemented(DONE.with_files({"extra.py": "import json\n\n\ndef f() -> str:\n    return json.dumps({})\n"})).notes == ()


CRITERIA = [Criterion(id=f"REQ-00{r}.{n}", requirement=f"REQ-00{r}", text="Given … When … Then …") for r, n in ((1, 1), (1, 2), (2, 1))]
TESTS = "def test_req_001_1_a(): pass\ndef test_req_001_2_b(): pass\nclass TestTwo:\n    async def test_req_002_1_c(self): pass\n"


def written(files: dict[str, str | bytes | None], base: MemoryTree = BASE) -> Judgement:
    result = base.with_files(files)
    return judge_tests(base, result, changes_between(base, result), CRITERIA)


def test_a_test_for_each_criterion_passes():
    """Functions, methods and coroutines count."""
    said = written({"tests/test_limit.py": TESTS})

    assert said.verdict == "pass"
    assert "3 of 3 criteria have a test" in said.notes


def test_a_criterion_without_a_test_is_named_with_what_to_write():
    """The test agent reads this in its next round."""
    said = written({"tests/test_limit.py": TESTS.replace("test_req_001_2_b", "test_req_001_20_b")})

    assert "REQ-001.2 has no test; name one `test_req_001_2_…`" in said.findings[0].message
    assert "REQ-001.20, which the specification does not have" in said.findings[1].message


def test_a_name_that_was_there_before_proves_nothing():
    """An older feature's tests of the same ids are not this feature's."""
    base = BASE.with_files({"tests/test_limit.py": TESTS})

    assert len(written({"tests/test_limit.py": TESTS + "\n# touched\n"}, base).findings) == 3


def test_other_languages_carry_the_criterion_in_any_spelling():
    """`test_req_001_1_…`, any language."""
    text = 'test("REQ-001.1 allows", () => {})\nit("req_001_2 refuses")\nfunc TestReq002_1(t *testing.T) {}\n'

    assert written({"web/limit.test.ts": text}).verdict == "pass"


@pytest.mark.parametrize("data", [b"def (", b"\xff", b"# coding: utf-7\n"])
def test_a_test_file_that_is_no_python_fails(data: bytes):
    """It could not be collected either."""
    assert written({"tests/test_limit.py": TESTS, "tests/test_bad.py": data}).findings[0].path == "tests/test_bad.py"


def test_marks_that_keep_a_test_from_deciding_are_noted():
    """The reports decide; this says where to look."""
    said = written({"tests/test_limit.py": "import pytest\n" + TESTS + "@pytest.mark.skip\ndef test_more(): pass\n"})

    assert "tests/test_limit.py: line 6: skip" in said.notes


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("test_req_001_1_x", "REQ-001.1"),
        ("test_req_001_12", "REQ-001.12"),
        ("test_REQ_010_3_x", "REQ-010.3"),
        ("test_req_001_x", None),
        ("test_required_1", None),
        ("test_request_001_1", None),
        ("test_req_0011_1", None),
    ],
)
def test_a_name_carries_at_most_one_criterion(name: str, criterion: str | None):
    """`_1` is not the beginning of `_12`."""
    assert criterion_of(name) == criterion


@pytest.mark.parametrize("role", ["spec", "implement", "test"])
def test_an_empty_result_fails_where_work_is_owed(role: str):
    """A reason does not help (DECISIONS G7)."""
    assert judge_empty(role, role, Submission(status="done", summary="There was nothing to do, really.")).verdict == "fail"


@pytest.mark.parametrize("role", ["interface", "docs"])
def test_an_empty_result_with_a_reason_passes_where_it_may(role: str):
    """And without one it fails."""
    assert judge_empty(role, role, Submission(status="done", summary="The feature adds no public name.")).verdict == "pass"
    assert judge_empty(role, role, Submission(status="done", summary="  ok \n")).verdict == "fail"
    assert judge_empty(role, role, None).verdict == "fail"


def test_findings_and_notes_are_bounded_and_counted():
    """A verdict is one event: it has a size."""
    said = judgement([finding("x", f"{n}" * 9_000) for n in range(60)], [f"{n}" * 1_000 for n in range(60)])

    assert len(said.findings) == FINDINGS_MAX + 1
    assert said.findings[-1].message == "and 10 more findings"
    assert said.notes[-1] == "and 30 more notes"
    assert len(said.model_dump_json()) < 800_000


def test_a_rework_that_changes_nothing_is_told_with_what_it_was_to_put_right():
    """The person sees the red test, not only that a stage was idle."""
    said = judge_empty("implement", "implement", None, "validate, round 1, was red: test_a failed")

    assert said.findings[0].message == "stage implement changed nothing; validate, round 1, was red: test_a failed"
