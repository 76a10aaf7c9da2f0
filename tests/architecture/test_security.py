"""Every row of the abuse catalogue has a test that names it and shows its positive control; SECURITY.md names tests that exist."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sandbox.executor.prove.catalogue import PROBES
from tests.architecture.source import ROOT, dotted, functions, modules, tree
from tests.security.catalogue import CATALOGUE

_CONTROL = re.compile(r"[Tt]he control\b|\bcontrol:|\bpositive control\b")


@dataclass(frozen=True)
class Mark:
    """One row named by one test, or by a whole file outside its tests."""

    row: str
    path: Path
    name: str
    """Of the test, empty for the file."""
    text: str


@cache
def marks() -> tuple[Mark, ...]:
    """Return every use of `pytest.mark.abuse` below tests/."""
    return tuple(mark for path in modules("tests") for mark in _marks_in(path))


def _marks_in(path: Path) -> Iterator[Mark]:
    source = (ROOT / path).read_text()
    inside: set[int] = set()
    for function in functions(path):
        for call in _abuse_calls(function):
            inside.add(id(call))
            yield from _named(call, path, function.name, ast.get_source_segment(source, function, padded=True) or "")
    for call in _abuse_calls(tree(path)):
        if id(call) not in inside:
            yield from _named(call, path, "", source)


def _abuse_calls(node: ast.AST) -> Iterator[ast.Call]:
    return (call for call in ast.walk(node) if isinstance(call, ast.Call) and dotted(call.func) == "pytest.mark.abuse")


def _named(call: ast.Call, path: Path, name: str, text: str) -> Iterator[Mark]:
    """Yield the rows that are written out; what a table adds at run time (`*cheat.rows`) is written out once beside it."""
    return (Mark(str(argument.value), path, name, text) for argument in call.args if isinstance(argument, ast.Constant))


def test_marks_name_rows_of_the_catalogue():
    """A mistyped row would leave the right one untested."""
    assert [mark for mark in marks() if mark.row not in CATALOGUE] == []


def test_every_row_has_a_test():
    """Besides its control, unless the catalogue says why none is owed."""
    named = {mark.row for mark in marks() if not mark.name.startswith("test_control_")}
    owed = {row.id for row in CATALOGUE.values() if not (row.accepted or row.later)}

    assert sorted(owed - named) == []


def test_every_row_has_a_positive_control():
    """A probe that cannot succeed anywhere proves nothing: see the catalogue for how a test says that it has one."""
    shown = {mark.row for mark in marks() if mark.name.startswith("test_control_") or _CONTROL.search(mark.text)}
    owed = {row.id for row in CATALOGUE.values() if not (row.accepted or row.later or row.no_control)}

    assert sorted(owed - shown) == []


def _named_tests(text: str) -> set[str]:
    return set(re.findall(r"`(tests/[^`]+)`", text))


def test_security_names_tests_that_exist():
    """As `tests/…/file.py`, `tests/…/file.py::test_name` or a folder."""
    names = _named_tests((ROOT / "SECURITY.md").read_text())
    missing = []
    for name in names:
        path, _, test = name.partition("::")
        if not (ROOT / path).exists() or (test and test not in {function.name for function in functions(Path(path))}):
            missing.append(name)

    assert missing == []


def test_every_promise_names_a_test():
    """P1 to P28, each once."""
    rows = re.findall(r"(?m)^\| (P\d+) \| ([^|]+) \| (.*) \|$", (ROOT / "SECURITY.md").read_text())

    assert [number for number, _, _ in rows] == [f"P{number}" for number in range(1, 29)]
    assert [number for number, _, cell in rows if not _named_tests(cell)] == []


def test_security_says_what_the_proof_is_about():
    """The promises that `andon doctor --prove` has probes for, and how many attacks are known."""
    text = (ROOT / "SECURITY.md").read_text()
    said = re.search(r"It is about ([P0-9, toand]+)\.", text)
    assert said
    named: set[int] = set()
    for part in re.split(r", | and ", said[1]):
        numbers = [int(number) for number in re.findall(r"P(\d+)", part)]
        named |= set(range(numbers[0], numbers[-1] + 1))

    assert named == {int(probe.promise.partition(":")[0].removeprefix("P")) for probe in PROBES}
    assert f"lists the {len(CATALOGUE)} attacks" in text
