"""The test stage's gate: every acceptance criterion has a test by name, read from the text; whether they are red is `checks`' part."""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence

from sandbox.contract.errors import Rejected
from sandbox.contract.python_source import SOURCE_BYTES_MAX, BadSource, dotted, parse
from sandbox.contract.tree import Change, Tree
from supervisor.gates.spec import Criterion
from supervisor.gates.verdict import Judgement, finding, judgement

CHECK = "tests"

_NUMBERED = re.compile(r"req[_-]?([0-9]{3})[_.-]([0-9]{1,3})(?![0-9])", re.IGNORECASE)
_EVADING = frozenset({"skip", "skipif", "xfail", "skipTest", "skipUnless", "skipIf", "expectedFailure", "importorskip"})


def criterion_of(name: str) -> str | None:
    """Return the criterion a test's name carries, `REQ-001.1` for `test_req_001_1_…`, or None."""
    found = _NUMBERED.search(name)
    return f"REQ-{found.group(1)}.{int(found.group(2))}" if found else None


def judge_tests(base: Tree, result: Tree, changes: Sequence[Change], criteria: Sequence[Criterion]) -> Judgement:
    """Return the verdict on written tests.

    Args:
        base: What the stage started from: names that are there already prove nothing about this feature.
        result: What it left.
        changes: What differs between them.
        criteria: Of the specification; each needs a test whose name carries it.
    """
    findings, notes, named = [], [], set[str]()
    for change in changes:
        data = _data(result, change.path) if change.new is not None else None
        if data is None:
            continue
        try:
            added = set(names_in(change.path, data)) - _names_before(base, change)
            evasions = list(_evasions(change.path, data))
        except BadSource as error:
            findings.append(finding(CHECK, f"{change.path}: {error}", change.path))
            continue
        named |= {criterion for name in added if (criterion := criterion_of(name))}
        notes += evasions
    known = {criterion.id for criterion in criteria}
    findings += [
        finding(CHECK, f"{criterion.id} has no test; name one `{criterion.test_prefix}_…`. It says: {criterion.text[:400]}")
        for criterion in criteria
        if criterion.id not in named
    ]
    findings += [
        finding(CHECK, f"a test is named after {unknown}, which the specification does not have") for unknown in sorted(named - known)
    ]
    return judgement(findings, [*notes, f"{len(named & known)} of {len(known)} criteria have a test"])


def names_in(path: str, data: bytes) -> Iterator[str]:
    """Yield names of tests in one file: functions for Python, any name that carries a criterion for other languages.

    Raises:
        BadSource: A Python file that cannot be parsed: it could not be collected either.
    """
    if path.endswith(".py"):
        yield from _python_names(parse(data).body)
    else:
        yield from (match.group(0) for match in _NUMBERED.finditer(data.decode("utf-8", "replace")))


def _names_before(base: Tree, change: Change) -> set[str]:
    data = _data(base, change.path) if change.old is not None else None
    try:
        return set(names_in(change.path, data)) if data is not None else set()
    except BadSource:
        return set()


def _python_names(body: Iterable[ast.stmt]) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef) and statement.name.startswith("test"):
            yield statement.name
        elif isinstance(statement, ast.ClassDef):
            yield from _python_names(statement.body)


def _evasions(path: str, data: bytes) -> Iterator[str]:
    """Yield marks that keep a test from deciding; the reports decide, this says where to look."""
    if not path.endswith(".py"):
        return
    for node in ast.walk(parse(data)):
        name = (dotted(node) or "").rsplit(".", 1)[-1] if isinstance(node, ast.Attribute | ast.Name) else ""
        if name in _EVADING:
            yield f"{path}: line {getattr(node, 'lineno', 0)}: {name}"


def _data(tree: Tree, path: str) -> bytes | None:
    try:
        return tree.read(path, SOURCE_BYTES_MAX)
    except (KeyError, Rejected):
        return None
