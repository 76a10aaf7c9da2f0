"""The source as architecture tests read it: files, syntax trees, calls; not what is required of them."""

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = ("supervisor/demo/repository", "tests/fixtures")


@cache
def modules(*tops: str) -> tuple[Path, ...]:
    """Return the Python files below `tops`, relative to the root, without shipped samples."""
    found = (path.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("*.py"))
    return tuple(sorted(path for path in found if not path.as_posix().startswith(NOT_OURS)))


@cache
def tree(path: Path) -> ast.Module:
    """Return a module's syntax tree."""
    return ast.parse((ROOT / path).read_text())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function of a module, methods and inner ones included."""
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imported(path: Path) -> set[str]:
    """Return the top-level packages a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` of a name or attribute, or an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        front = dotted(node.value)
        return f"{front}.{node.attr}" if front else ""
    return ""


def attributes(path: Path) -> set[str]:
    """Return every dotted name a module mentions, e.g. `os.environ`."""
    return {dotted(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}


def methods_called(path: Path) -> set[str]:
    """Return the last part of every call's name, e.g. `exec_create`."""
    calls = (node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call))
    return {func.attr if isinstance(func, ast.Attribute) else func.id for func in calls if isinstance(func, ast.Attribute | ast.Name)}


@cache
def project() -> dict[str, object]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
