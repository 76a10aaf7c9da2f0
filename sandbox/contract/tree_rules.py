"""What a tree may hold: names, links, sizes; pure rules that the walker, the provisioner and the quarantine share.

Not who applies them: `workspace/seal.py` judges what is on disk, `quarantine.py` what is in a git bundle. Rules judge
*changes*; what the base commit holds and nobody touched is carried over unjudged (DECISIONS G1).
"""

import re
import unicodedata
from collections.abc import Collection, Iterable

from pydantic import Field

from sandbox.contract.model import Frozen
from sandbox.contract.tree import Change, Entry

LINK_TARGET_BYTES_MAX = 1_024
"""Longer symbolic links are neither given to an agent nor taken from one."""

_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # controls, bidi and zero-width marks, surrogates, line breaks
_PLAIN_PATH = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.+-]*/)*[A-Za-z0-9_][A-Za-z0-9_.+-]*")
"""Nearly every path there is: no trick can be made of it, so nothing else has to be looked at."""
_TEMPLATES_OF_ENV = (".example", ".sample", ".template")
_TAKEN_MODES = frozenset({"100644", "100755", "120000"})


class TreeLimits(Frozen):
    """The published limits of a tree an agent wrote; beyond one of them the stage fails with a reason."""

    entries_max: int = Field(250_000, ge=1)
    """Files, links and directories in all, the untouched ones included."""
    depth_max: int = Field(64, ge=1)
    """Components of one path."""
    name_bytes_max: int = Field(255, ge=1)
    path_bytes_max: int = Field(1_024, ge=1)
    changed_files_max: int = Field(20_000, ge=1)
    """Added, modified and deleted paths."""
    file_bytes_max: int = Field(64 << 20, ge=1)
    """One changed file, by its apparent size: a sparse file counts in full."""
    changed_bytes_max: int = Field(256 << 20, ge=1)
    """All added and modified files together."""


def unsafe_name(name: str) -> str | None:
    """Return why one path component may not be in a tree, or None; any script is fine, tricks are not.

    Args:
        name: The component, bytes that are not UTF-8 as surrogates (PEP 383).
    """
    if name in {"", ".", ".."}:
        return "is empty or climbs"
    if "/" in name or "\\" in name:
        return "holds a slash or a backslash"
    if any("\udc80" <= char <= "\udcff" for char in name):
        return "is not UTF-8"
    if any(unicodedata.category(char) in _REFUSED_CATEGORIES for char in name):
        return "holds a control or invisible character"
    # `.git. `, `.GIT` and `git~1` are `.git` to file systems of other platforms, and so is `.git::$INDEX_ALLOCATION`.
    if name.split(":")[0].rstrip(". ").casefold() in {".git", "git~1"}:
        return "looks like .git"
    return None


def unsafe_path(path: str, limits: TreeLimits) -> str | None:
    """Return why a path may not be in a tree, as a sentence without its subject, or None."""
    is_short = len(path) <= limits.name_bytes_max and len(path) <= limits.path_bytes_max and path.count("/") < limits.depth_max
    if is_short and _PLAIN_PATH.fullmatch(path):
        return None
    parts = path.split("/")
    for part in parts:
        reason = unsafe_name(part)
        if reason:
            return f"has a name that {reason}"
        if len(part.encode()) > limits.name_bytes_max:
            return f"has a name of more than {limits.name_bytes_max} bytes"
    if len(parts) > limits.depth_max:
        return f"is {len(parts)} levels deep; at most {limits.depth_max}"
    if len(path.encode()) > limits.path_bytes_max:
        return f"is longer than {limits.path_bytes_max} bytes"
    return None


def unsafe_link(path: str, target: bytes) -> str | None:
    """Return why a symbolic link may not be in a tree, or None; nothing is looked up on disk.

    `..` is allowed only at the start of a target: the link's own directory is a real one, so leading steps up are exact,
    while a later one could climb through another link.

    Args:
        path: Where the link is, relative to the root.
        target: What it holds.
    """
    if len(target) > LINK_TARGET_BYTES_MAX:
        return f"is a link of more than {LINK_TARGET_BYTES_MAX} bytes"
    parts = target.decode("utf-8", "surrogateescape").split("/")
    if parts[0] == "":
        return "is a link to an absolute path" if target else "is an empty link"
    steps_up = 0
    while steps_up < len(parts) and parts[steps_up] == "..":
        steps_up += 1
    if steps_up > path.count("/"):
        return "is a link that leaves the tree"
    for part in parts[steps_up:]:
        if part == "..":
            return "is a link that climbs in the middle of its target"
        if part not in {"", "."} and unsafe_name(part):
            return f"is a link to a name that {unsafe_name(part)}"
    return None


def is_private(path: str) -> bool:
    """Return whether a path is a `.env` file: never given to an agent, never taken from one (DECISIONS G1)."""
    name = path.rpartition("/")[2]
    return name == ".env" or (name.startswith(".env.") and not name.endswith(_TEMPLATES_OF_ENV))


def withheld(path: str, entry: Entry, link_target: bytes | None, limits: TreeLimits) -> str | None:
    """Return why an entry of a base commit is not given to the agent and carried over as it is, or None.

    Args:
        path: Relative to the root.
        entry: The entry in the base commit.
        link_target: The blob of a link (mode 120000), None for others.
        limits: The limits of the tree.
    """
    if entry.mode == "160000":
        return "is a submodule"
    if is_private(path):
        return "is a .env file"
    reason = unsafe_path(path, limits)
    if reason is None and entry.mode == "120000":
        reason = unsafe_link(path, link_target or b"")
    return reason


def collision(final: Collection[str], changed: Iterable[str]) -> tuple[str, str] | None:
    """Return two paths of `final`, one of them new, that differ only in case or Unicode form; or None.

    A file system of another platform would make one of them overwrite the other. Pairs that the base commit already
    held are not judged.

    Args:
        final: Every leaf of the tree.
        changed: The leaves of `final` that the base commit does not have.
    """
    changed_leaves = set(changed)
    if not changed_leaves:
        return None
    before = {prefix for path in final if path not in changed_leaves for prefix in _prefixes(path)}
    added = {prefix for path in changed_leaves for prefix in _prefixes(path)} - before
    seen: dict[str, str] = {}
    clashes: set[tuple[str, str]] = set()
    for prefix in sorted(before) + sorted(added):
        other = seen.setdefault(_folded(prefix), prefix)
        if other != prefix and prefix in added:
            clashes.add((min(prefix, other), max(prefix, other)))
    return min(clashes, default=None)


def refused_change(change: Change, link_target: bytes | None, limits: TreeLimits) -> str | None:
    """Return why one change may not be made by an agent, or None; collisions and sums are judged over all changes.

    Args:
        change: What changed.
        link_target: The blob of the new entry if it is a link.
        limits: The limits of the tree.
    """
    if change.old is not None and change.old.mode == "160000":
        return "is a submodule, which no stage may change"
    if is_private(change.path):
        return "is a .env file, which no stage may change"
    reason = unsafe_path(change.path, limits)
    if reason or change.new is None:
        return reason
    if change.new.mode not in _TAKEN_MODES:
        return "is a submodule, which no stage may add" if change.new.mode == "160000" else f"has mode {change.new.mode}"
    if (change.new.size_bytes or 0) > limits.file_bytes_max:
        return f"has {change.new.size_bytes} bytes; at most {limits.file_bytes_max}"
    return unsafe_link(change.path, link_target or b"") if change.new.mode == "120000" else None


def too_much(changes: Collection[Change], limits: TreeLimits) -> str | None:
    """Return why the changes together are too many or too large, or None."""
    if len(changes) > limits.changed_files_max:
        return f"{len(changes)} changed files; at most {limits.changed_files_max}"
    total_bytes = sum(change.new.size_bytes or 0 for change in changes if change.new is not None)
    if total_bytes > limits.changed_bytes_max:
        return f"{total_bytes} bytes of changed files; at most {limits.changed_bytes_max}"
    return None


def shown(path: str) -> str:
    """Return a path as it may be printed: nothing invisible in it, at most 200 characters."""
    return (path if path.isprintable() else ascii(path))[:200]


def _prefixes(path: str) -> list[str]:
    """Return a path and every directory above it."""
    prefixes = [path]
    at = path.rfind("/")
    while at > 0:
        prefixes.append(path[:at])
        at = path.rfind("/", 0, at)
    return prefixes


def _folded(path: str) -> str:
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
