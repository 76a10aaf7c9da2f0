"""What every file of the source looks like: said what it is for, and short enough to be read."""

import ast
from pathlib import Path

from tests.architecture.source import functions, modules, tree

FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

LONGER_FILES: dict[str, str] = {}
"""Path → why it stays one file."""
LONGER_FUNCTIONS: dict[str, str] = {}
"""`path:name` → why it stays one function."""


def test_every_module_says_what_it_is_for():
    """A module begins with a docstring; empty files need none."""
    silent = [str(path) for path in modules("sandbox", "supervisor", "images", "tests", "benchmarks") if _is_silent(path)]

    assert silent == []


def _is_silent(path: Path) -> bool:
    return bool(tree(path).body) and not ast.get_docstring(tree(path))


def test_files_are_short_enough_to_be_read():
    """A longer file is listed with its reason."""
    long = {str(path): _lines(tree(path)) for path in modules("sandbox", "supervisor", "images") if _lines(tree(path)) > FILE_LINES_MAX}
    long |= {str(path): _lines(tree(path)) for path in modules("tests", "benchmarks") if _lines(tree(path)) > TEST_FILE_LINES_MAX}

    assert {path: lines for path, lines in long.items() if path not in LONGER_FILES} == {}
    assert set(LONGER_FILES) <= set(long), "no longer too long: remove it from the list"


def test_functions_are_short_enough_to_be_read():
    """A longer function is listed with its reason."""
    long = {
        f"{path}:{function.name}": _lines(function)
        for path in modules("sandbox", "supervisor", "tests", "benchmarks")
        for function in functions(path)
        if _lines(function) > FUNCTION_LINES_MAX
    }

    assert {name: lines for name, lines in long.items() if name not in LONGER_FUNCTIONS} == {}
    assert set(LONGER_FUNCTIONS) <= set(long), "no longer too long: remove it from the list"


def test_every_test_says_its_fact():
    """The name is the fact; the docstring's line says why it matters."""
    silent = [
        f"{path}:{function.name}"
        for path in modules("tests")
        for function in functions(path)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]

    assert silent == []


def _lines(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if isinstance(node, ast.Module):
        return max((statement.end_lineno or 0 for statement in node.body), default=0)
    return (node.end_lineno or node.lineno) - node.lineno + 1
