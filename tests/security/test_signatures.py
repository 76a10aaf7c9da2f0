"""What an import of the locked modules shows that their text does not, by a real Python through our runner and gates."""

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from sandbox.contract.interface_lock import InterfaceLock, drift, lock_interface, stubs_left
from sandbox.contract.job import Assignment, Check, CheckExit
from sandbox.contract.result import CheckReport, Finding
from sandbox.contract.scope import WriteScope
from sandbox.contract.signatures import ToImport
from sandbox.inside.checks.runner import run_checks
from sandbox.inside.paths import Paths
from sandbox.inside.sealed.walls import landlock_abi
from supervisor.gates.checks import judge_validate
from supervisor.gates.evidence import Evidence, read_evidence
from supervisor.gates.signatures import with_signatures
from supervisor.gates.verdict import Judgement
from supervisor.stages.path_classes import OF_THE_TESTS
from tests.security.signature_tricks import BASE, HONEST, STUBS, TRICKS, Trick

LOCKED = "shop/api.py"
LOCK, _ = lock_interface({LOCKED: (None, STUBS.encode())})
CHECK = Check(name="signatures", argv=(sys.executable,), report="signatures", to_import=ToImport(locked=(LOCKED,)), timeout_s=60)
LONE = {name: text for name, text in HONEST.items() if not name.endswith("_more.py")}


def check_of(files: Iterable[str], **changes: object) -> Check:
    """Return the check that imports the locked module, then the others."""
    others = tuple(sorted(path for path in files if path.endswith(".py") and path != LOCKED and path not in BASE))
    return CHECK.model_copy(update={"to_import": ToImport(locked=(LOCKED,), others=others), **changes})


def evidence_of(directory: Path, files: Mapping[str, str], check: Check) -> Evidence:
    """Return what the program in the container leaves of `files`, and the host reads when all is dead."""
    paths, ended = run(directory, files, check)
    return believed(check, ended, paths.out / "signatures.json")


def run(directory: Path, files: Mapping[str, str], check: Check) -> tuple[Paths, CheckExit]:
    paths = Paths.below(str(directory))
    for each in (paths.workspace, paths.out, paths.tmp, paths.home):
        each.mkdir(parents=True)
    for name, text in files.items():
        path = paths.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assignment = Assignment(
        job_id="0123456789-validate-1", stage="validate", round=1, attempt=1, kind="checks", checks=(check,), traceparent="", wall_s=60
    )
    return paths, run_checks(assignment, paths, {"PATH": os.environ["PATH"]}, lambda line: None).exits[0]


def believed(check: Check, ended: CheckExit, report: Path) -> Evidence:
    problem = None if report.is_file() else "no report at /out/signatures.json"
    return read_evidence(
        [check], [CheckReport(name=check.name, exit=ended, problem=problem)], {} if problem else {check.name: report.read_bytes()}
    )


def verdict(evidence: Evidence, on_stubs: Evidence | None, lock: InterfaceLock = LOCK) -> Judgement:
    """Return the verdict of a validate that ran nothing else."""
    return with_signatures(judge_validate(evidence, None, None, []), evidence, on_stubs, [lock], is_wanted=True)


def of_signatures(said: Judgement) -> list[Finding]:
    return [each for each in said.findings if each.check == "signatures"]


def messages(said: Judgement) -> str:
    return "\n".join(each.message for each in of_signatures(said))


@pytest.fixture(scope="module")
def on_stubs(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Return what the red-check's import of the stubs left."""
    return evidence_of(tmp_path_factory.mktemp("stubs") / "root", BASE, CHECK)


OF_EVERY_DAY = (
    "a decorator put on later",
    "a forged __signature__",
    "a wrapper that names what it wraps",
    "a module __getattr__",
    "other defaults",
    "async made plain",
    "the package patches it",
    "rebound after its import by another module",
    "another object in sys.modules",
    "an end while it is imported",
    "an import that fails",
    "a printed report",
    "a report on every descriptor",
    "honest again at the interpreter's end",
    "asked too early",
    "built-in functions and the library replaced",
    "a metaclass that equals everything",
    "our reader looked for",
    "our reader heard",
)
"""The others differ from one of these in what is changed, not in how; `make matrix` runs them."""


def of_each_day(trick: Trick) -> object:
    return pytest.param(trick, id=trick.name.replace(" ", "-"), marks=[] if trick.name in OF_EVERY_DAY else pytest.mark.slow)


def test_the_tricks_of_every_day_are_on_the_list():
    """A trick that was renamed would quietly run less often."""
    assert set(OF_EVERY_DAY) <= {trick.name for trick in TRICKS}


@pytest.mark.abuse("S10")
@pytest.mark.parametrize("trick", [of_each_day(each) for each in TRICKS])
def test_what_an_import_declares_is_compared_with_the_stubs(tmp_path: Path, trick: Trick, on_stubs: Evidence):
    """The control: nothing in the text of the locked file is drift, and no stub is left."""
    files = trick.product
    by_text = [*drift(LOCK, lambda path: files[path].encode(), files.keys()), *stubs_left(LOCK, lambda path: files[path].encode())]

    said = verdict(evidence_of(tmp_path / "root", files, check_of(files)), on_stubs)

    assert by_text == []  # control
    assert trick.told in messages(said), messages(said)


@pytest.mark.abuse("S10")
def test_an_honest_implementation_declares_what_was_locked(tmp_path: Path, on_stubs: Evidence):
    """With and without the stubs; the verdict says where only the text was compared."""
    evidence = evidence_of(tmp_path / "root", HONEST, check_of(HONEST))

    with_stubs, without = verdict(evidence, on_stubs), verdict(evidence, None)

    assert (of_signatures(with_stubs), of_signatures(without)) == ([], [])
    assert not any("signatures" in note for note in with_stubs.notes)
    assert "signatures: compared with the text only, because nobody imported the stubs: shop/api.py" in without.notes


@pytest.mark.abuse("S10")
@pytest.mark.parametrize("name", ["a decorator put on later", "a forged __signature__", "a default gone", "a module __getattr__"])
def test_without_stubs_functions_are_compared_with_their_text(tmp_path: Path, name: str):
    """A line without a red-check is not without a look at its functions."""
    files = next(trick for trick in TRICKS if trick.name == name).product

    said = verdict(evidence_of(tmp_path / "root", files, check_of(files)), None)

    assert "`allow` is locked" in messages(said)


def test_an_import_that_never_ends_is_no_evidence(tmp_path: Path, on_stubs: Evidence):
    """The check's own time ends it."""
    files = {**LONE, LOCKED: HONEST[LOCKED] + "\nfrom shop import _more\n", "shop/_more.py": "import threading\nthreading.Event().wait()\n"}

    said = verdict(evidence_of(tmp_path / "root", files, CHECK.model_copy(update={"timeout_s": 2})), on_stubs)

    assert "was still running after" in messages(said)


@pytest.mark.abuse("S10", "S16")
def test_a_report_that_was_written_after_is_no_evidence(tmp_path: Path, on_stubs: Evidence):
    """The runner says the digest of what it wrote; a report without one is somebody else's. The control: left alone it is believed."""
    paths, ended = run(tmp_path / "root", HONEST, check_of(HONEST))
    report, check = paths.out / "signatures.json", check_of(HONEST)
    left_alone = verdict(believed(check, ended, report), on_stubs)

    without_digest = verdict(believed(check, ended.model_copy(update={"report_sha256": None}), report), on_stubs)
    report.write_bytes(report.read_bytes() + b" ")
    changed = verdict(believed(check, ended, report), on_stubs)

    assert of_signatures(left_alone) == []  # control
    assert "the report is not the runner's" in messages(without_digest)
    assert "was changed after the command had ended" in messages(changed)


def test_a_link_in_the_report_s_place_is_not_followed(tmp_path: Path, on_stubs: Evidence):
    """The product can write to /out where nothing parts it; the runner's report takes the link's place."""
    plant = "import os\nos.symlink('/etc/passwd', os.path.join(os.path.dirname(os.getcwd()), 'out', 'signatures.json'))\n"

    paths, ended = run(tmp_path / "root", {**HONEST, "shop/__init__.py": plant}, CHECK)

    assert not (paths.out / "signatures.json").is_symlink()
    assert of_signatures(verdict(believed(CHECK, ended, paths.out / "signatures.json"), on_stubs)) == []


def test_a_check_that_was_not_made_fails(on_stubs: Evidence):
    """Unless the base commit's quality.toml wants none: then the verdict says that the text alone was compared."""
    nothing = Evidence()

    owed = with_signatures(Judgement(), nothing, on_stubs, [LOCK], is_wanted=True)
    unwanted = with_signatures(Judgement(), nothing, on_stubs, [LOCK], is_wanted=False)

    assert "nobody saw what they declare" in messages(owed)
    assert (unwanted.verdict, unwanted.notes) == (
        "pass",
        ("signatures: compared as text only, because quality.toml says `signatures = false`",),
    )


def test_what_is_no_python_is_said_not_to_be_compared():
    """A line with an interface of another language passes, and its verdict says what nobody looked at."""
    said = with_signatures(Judgement(), Evidence(), None, [InterfaceLock()], is_wanted=True)
    none = with_signatures(Judgement(), Evidence(), None, [], is_wanted=True)

    assert (said.verdict, said.notes) == ("pass", ("signatures: no Python module is locked, so nothing was compared at run time",))
    assert none == Judgement()


@pytest.mark.skipif(landlock_abi() < 1, reason="this kernel has no Landlock")
def test_where_tests_are_sealed_the_import_is_behind_the_wall(tmp_path: Path, on_stubs: Evidence):
    """The product reads no test while it is imported; the control: without the wall it does."""
    reads = "import pathlib\nif pathlib.Path('tests/test_a.py').read_text(): raise OSError('read it')\n"
    files = {
        **LONE,
        LOCKED: HONEST[LOCKED] + "\nfrom shop import _more\n",
        "shop/_more.py": reads,
        "tests/test_a.py": "def test_a(): ...\n",
    }
    sealed = CHECK.model_copy(update={"tests_scope": WriteScope(patterns=OF_THE_TESTS)})

    plain = verdict(evidence_of(tmp_path / "plain", files, CHECK), on_stubs)
    walled = verdict(evidence_of(tmp_path / "walled", files, sealed), on_stubs)
    honest = verdict(evidence_of(tmp_path / "honest", HONEST, check_of(HONEST, tests_scope=sealed.tests_scope)), on_stubs)

    assert "read it" in messages(plain)  # control
    assert "PermissionError" in messages(walled)
    assert of_signatures(honest) == []
