"""The implement stage's gate: the locked interface as it was, no stub left, and what a person should look at; not whether it works.

The tripwires (SANDBOX.md §6.3) are notes: in one process with the tests a product can cheat, and this says where to look.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence

from sandbox.contract.errors import Rejected
from sandbox.contract.interface_lock import InterfaceLock, drift, stubs_left
from sandbox.contract.python_source import SOURCE_BYTES_MAX, BadSource, dotted, parse
from sandbox.contract.result import Finding
from sandbox.contract.tree import Change, Tree
from supervisor.gates.interface import read_python
from supervisor.gates.verdict import Judgement, finding, judgement

_WATCHED_MODULES = frozenset({"_pytest", "pytest", "unittest", "ctypes", "gc"})
_WATCHED_NAMES = frozenset({"sys._getframe", "os._exit", "gc.get_objects", "gc.get_referrers", "sys.modules", "sys.settrace", "sys.exit"})
_SUPPRESSIONS = re.compile(rb"#\s*(noqa|nosec|type:\s*ignore|mypy:\s*ignore|pragma:\s*no cover|ruff:\s*noqa|pylint:\s*disable)")
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069]")


def judge_implement(result: Tree, changes: Sequence[Change], locks: Iterable[InterfaceLock]) -> Judgement:
    """Return the verdict on an implementation.

    Args:
        result: What the stage left.
        changes: What differs from what it started from.
        locks: Of every interface before it; none if the pipeline has no interface stage.
    """
    findings: list[Finding] = []

    def read(path: str) -> bytes | None:
        try:
            return read_python(result, path)
        except Rejected:
            findings.append(finding("interface-lock", f"{path}: larger than {SOURCE_BYTES_MAX} bytes; it cannot be judged", path))
            return b""

    paths = result.entries().keys()
    for lock in locks:
        findings += drift(lock, read, paths)
        findings += stubs_left(lock, read)
    written = [(change.path, _text(result, change.path)) for change in changes if change.new is not None]
    return judgement(_unique(findings), [note for path, data in written if data is not None for note in notes_on(path, data)])


def notes_on(path: str, data: bytes) -> Iterator[str]:
    """Yield what a person should look at in one written file."""
    suppressed = sorted({match.group(1).decode() for match in _SUPPRESSIONS.finditer(data)})
    if suppressed:
        yield f"{path}: suppresses checks ({', '.join(suppressed)})"
    text = data.decode("utf-8", "replace")
    if _INVISIBLE.search(text):
        yield f"{path}: holds invisible or direction-changing characters"
    if not path.endswith(".py"):
        return
    try:
        found = sorted(set(_tripped(parse(data))))
    except BadSource as error:
        yield f"{path}: {error}"
        return
    if found:
        yield f"{path}: product code uses {', '.join(found[:10])}, which can see or change the test run"


def _tripped(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names if alias.name.split(".")[0] in _WATCHED_MODULES)
            case ast.ImportFrom(module=str(name)) if name.split(".")[0] in _WATCHED_MODULES:
                yield name
            case ast.ImportFrom(module=str(name)):
                yield from (each for alias in node.names if (each := f"{name}.{alias.name}") in _WATCHED_NAMES)
            case ast.Attribute() if dotted(node) in _WATCHED_NAMES:
                yield str(dotted(node))
            case _:
                pass


def _text(tree: Tree, path: str) -> bytes | None:
    try:
        return tree.read(path, SOURCE_BYTES_MAX)
    except (KeyError, Rejected):
        return None


def _unique(findings: Iterable[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))
