"""The interface stage's gate: declarations only, and the lock they make; not what later stages do with it (`implement`)."""

from collections.abc import Sequence

from sandbox.contract.errors import Rejected
from sandbox.contract.interface_lock import PYTHON_SUFFIXES, InterfaceLock, lock_interface
from sandbox.contract.python_source import SOURCE_BYTES_MAX
from sandbox.contract.result import Finding
from sandbox.contract.tree import Change, Tree
from supervisor.gates.verdict import Judgement, finding, judgement


def judge_interface(base: Tree, result: Tree, changes: Sequence[Change]) -> Judgement:
    """Return the verdict on an interface; its evidence is the lock as JSON.

    Args:
        base: The tree the stage started from.
        result: What it left.
        changes: What differs between them.
    """
    lock, findings = lock_of(base, result, changes)
    others = [change.path for change in changes if not change.path.endswith(PYTHON_SUFFIXES)]
    notes = [f"{sum(len(locked.symbols) for locked in lock.files.values())} symbols in {len(lock.files)} files are locked"]
    if others:
        notes.append(f"not locked, because no Python: {', '.join(sorted(others)[:10])}" + (" …" if len(others) > 10 else ""))
    return judgement(findings, notes, evidence=lock.model_dump_json().encode())


def lock_of(base: Tree, result: Tree, changes: Sequence[Change]) -> tuple[InterfaceLock, list[Finding]]:
    """Return the lock of the interface between two trees, and what is wrong with it."""
    findings: list[Finding] = []
    versions: dict[str, tuple[bytes | None, bytes | None]] = {}
    for change in changes:
        if not change.path.endswith(PYTHON_SUFFIXES):
            continue
        try:
            versions[change.path] = (
                read_python(base, change.path) if change.old is not None else None,
                read_python(result, change.path) if change.new is not None else None,
            )
        except Rejected:
            findings.append(finding("interface", f"{change.path}: larger than {SOURCE_BYTES_MAX} bytes; split it", change.path))
    lock, found = lock_interface(versions)
    return lock, [*findings, *found]


def read_python(tree: Tree, path: str) -> bytes | None:
    """Return a regular file's bytes, None if there is none.

    Raises:
        Rejected: It is larger than what can be judged.
    """
    try:
        return tree.read(path, SOURCE_BYTES_MAX)
    except KeyError:
        return None
