"""What the whole change holds and no report says: tests that are not from their own commits, protected paths, suppressions.

Asked beside `checks.judge_validate`; it never fails work, it lowers the verdict's assurance and says where a person should look.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from sandbox.contract.errors import Rejected
from sandbox.contract.python_source import SOURCE_BYTES_MAX
from sandbox.contract.tree import Change, Tree
from supervisor.gates.suppressions import suppression_notes
from supervisor.gates.verdict import Judgement
from supervisor.stages.contract import FEATURES, class_of

_DECIDING = re.compile(
    rb"\b(pytest_runtest_makereport|pytest_runtest_logreport|pytest_runtest_protocol|pytest_runtest_call|pytest_runtestloop|"
    rb"pytest_pyfunc_call|pytest_report_teststatus|pytest_collection_modifyitems|pytest_sessionfinish)\b"
)

NAMED_MAX = 10
NOTES_MAX = 20
"""Of ours, beside those the reports gave."""


def with_whole(said: Judgement, trees: Sequence[Tree], changes: Sequence[Change]) -> Judgement:
    """Return the verdict with what the trees say of it.

    Args:
        said: What the reports say.
        trees: The run's base, the tree that was judged, then what each test stage left.
        changes: What differs between the first two.
    """
    base, result, *of_tests = trees
    foreign = sorted(not_their_own(base, result, of_tests, changes))
    ours = chain(_protected(changes), _deciding(result, changes), suppression_notes(base, result, changes))
    notes = [*said.notes, *islice(ours, NOTES_MAX)]
    if not foreign:
        return said.model_copy(update={"notes": tuple(notes)})
    notes.append(f"tests or their configuration are not from a test stage or the base commit: {_named(foreign)}; the verdict rests on them")
    return said.model_copy(update={"notes": tuple(notes), "assurance": "unlocked" if said.assurance else ""})


def not_their_own(base: Tree, result: Tree, of_tests: Sequence[Tree], changes: Sequence[Change]) -> Iterator[str]:
    """Yield changed tests and configuration of tests that neither the base commit nor a test stage's commit holds as they are."""
    own = [base.entries(), *(tree.entries() for tree in of_tests)]
    for change in changes:
        if class_of(change.path) == "tests" or _configures_tests(change.path):
            now = result.entries().get(change.path)
            if all(entries.get(change.path) != now for entries in own):
                yield change.path


def _configures_tests(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name in {"conftest.py", "pytest.ini", ".pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml", "quality.toml"}


def _protected(changes: Sequence[Change]) -> Iterator[str]:
    """Yield that a person has to look, if a stage's own scope let it change protected paths."""
    protected = (change.path for change in changes if class_of(change.path) == "protected")
    paths = sorted(path for path in protected if not path.startswith(f"{FEATURES}/"))
    if paths:
        yield f"needs a person's eye: protected paths were changed, as the pipeline allows: {_named(paths)}"


def _deciding(result: Tree, changes: Sequence[Change]) -> Iterator[str]:
    """Yield that a person has to look, where changed tests have a say in results: they could make failures passes."""
    for change in changes:
        if change.new is None or not change.path.endswith(".py") or class_of(change.path) != "tests":
            continue
        try:
            data = result.read(change.path, SOURCE_BYTES_MAX)
        except (KeyError, Rejected):
            continue
        hooks = sorted({match.group().decode() for match in _DECIDING.finditer(data)})
        if hooks:
            yield f"{change.path} decides how tests are reported ({', '.join(hooks)}); look whether failures stay failures"


def _named(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - NAMED_MAX} more" if len(paths) > NAMED_MAX else ""
    return ", ".join(paths[:NAMED_MAX]) + more
