"""Whether a stage wrote only where it may: the contract's own function over the raw change, plus what no path says; not the scopes."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from sandbox.contract.errors import UnsafePath
from sandbox.contract.result import Finding
from sandbox.contract.scope import WriteScope, offending_paths
from sandbox.contract.tree import Change
from supervisor.gates.verdict import finding
from supervisor.pipeline.definition import Stage
from supervisor.stages.contract import violation

CHECK = "write-scope"

_LINK = "120000"
_MODES = frozenset({"100644", "100755", _LINK})
_IMPORT_ROOTS = frozenset({"", "src", "lib", "tests", "test"})
"""Directories that end up on Python's path when tests run."""
_SHADOWED = (frozenset({"pytest", "_pytest", "pluggy", "iniconfig", "sitecustomize", "usercustomize"}) | sys.stdlib_module_names) - {"test"}
"""`test` is Python's own suite, which nobody imports, and the name of many directories of tests."""


def judge_scope(changes: Sequence[Change], scope: WriteScope, stage: Stage) -> list[Finding]:
    """Return one finding for each change a stage may not make.

    Args:
        changes: All that differs between the job's base and its result, deletions included.
        scope: What the job was given: the same value the executor judged by.
        stage: For the words of the finding.
    """
    try:
        outside = set(offending_paths((change.path for change in changes), scope))
    except UnsafePath as error:
        return [finding(CHECK, f"stage {stage.name}: {error}")]
    findings = [finding(CHECK, violation(path, stage), path) for path in sorted(outside)]
    findings += [finding(CHECK, f"stage {stage.name}: {path!r} {reason}", path) for path, reason in _odd(changes) if path not in outside]
    return findings


def _odd(changes: Sequence[Change]) -> Iterable[tuple[str, str]]:
    """Yield changes whose path is allowed and whose kind is not."""
    gone = [change.path for change in changes if change.old is not None]
    for change in changes:
        if change.new is None:
            continue
        if change.new.mode not in _MODES:
            yield change.path, f"has mode {change.new.mode}; regular files and links only"
        elif change.new.mode == _LINK and change.old is not None and change.old.mode != _LINK:
            yield change.path, "was a file and is a link now; write the file itself"
        elif change.new.mode == _LINK and any(path.startswith(f"{change.path}/") for path in gone):
            yield change.path, "was a directory and is a link now; write the files themselves"
        elif change.old is None and _shadows(change.path):
            yield change.path, "would be imported instead of a module of Python or pytest; give it another name"


def _shadows(path: str) -> bool:
    """Return whether a new file hides a module that the tests themselves need (ABUSE S08)."""
    where = PurePosixPath(path)
    if where.suffix == ".pth":
        return True
    parts = where.parts
    for depth in (1, 2):
        if len(parts) < depth or "/".join(parts[: depth - 1]) not in _IMPORT_ROOTS:
            continue
        name = parts[depth - 1]
        is_module = len(parts) == depth and name.endswith((".py", ".so", ".pyc"))
        is_package = len(parts) == depth + 1 and parts[-1].startswith("__init__.")
        if (is_module or is_package) and name.split(".")[0] in _SHADOWED:
            return True
    return False
