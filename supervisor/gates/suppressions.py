"""What a change tells linters, scanners and coverage to be silent about, counted; not whether that is right (ABUSE S09, S17)."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from sandbox.contract.errors import Rejected
from sandbox.contract.tree import Change, Tree

FILE_BYTES_MAX = 4 << 20
"""A larger file is named, not counted."""

_MARKS = re.compile(
    rb"(?P<mark>ruff:\s*noqa|flake8:\s*noqa|noqa|nosec|nosemgrep|NOSONAR|type:\s*ignore|mypy:\s*(?:ignore-errors|disable-error-code)"
    rb"|pyright:\s*(?:ignore|basic)|pylint:\s*(?:disable|skip-file)|pragma:\s*(?:no\s*cover|no\s*branch|allowlist\s+secret)|isort:\s*skip_file"
    rb"|fmt:\s*(?:off|skip)|eslint-disable|@ts-(?:ignore|nocheck|expect-error)|istanbul\s+ignore|c8\s+ignore)",
    re.IGNORECASE,
)
_COMMENT = re.compile(rb"#|//|/\*|<!--")
_CONFIGURATION = frozenset(
    {
        "ruff.toml", ".ruff.toml", "mypy.ini", ".mypy.ini", ".flake8", ".pylintrc", "pylintrc", ".bandit", ".coveragerc",
        "pyrightconfig.json", "pyproject.toml", "setup.cfg", "tox.ini", "pytest.ini", ".pytest.ini", ".secrets.baseline",
        ".eslintrc", ".eslintrc.json", ".eslintignore",
    }
)  # fmt: skip
"""Files a tool reads from the directory of what it looks at: one below the root silences a part of the tree."""


def suppressions_added(base: Tree, result: Tree, changes: Sequence[Change]) -> Counter[str]:
    """Return how often each kind of suppression is in the changed files beyond what was there, by the mark's own words."""
    added: Counter[str] = Counter()
    for change in changes:
        if change.new is not None:
            before = marks_in(_data(base, change.path)) if change.old is not None else Counter[str]()
            added += marks_in(_data(result, change.path)) - before
    return added


def suppression_notes(base: Tree, result: Tree, changes: Sequence[Change]) -> Iterator[str]:
    """Yield what a person should know of silenced tools: how often, and which configuration is nested in the tree."""
    added = suppressions_added(base, result, changes)
    if added:
        listed = ", ".join(f"{mark} {count}" for mark, count in sorted(added.items()))
        yield f"suppressions added by this change: {added.total()} ({listed})"
    for change in changes:
        path = PurePosixPath(change.path)
        if change.new is not None and path.name in _CONFIGURATION and len(path.parts) > 1:
            yield f"{change.path}: configures tools for a part of the tree; what they report of it may be less"
        elif change.new is not None and (change.new.size_bytes or 0) > FILE_BYTES_MAX:
            yield f"{change.path}: larger than {FILE_BYTES_MAX} bytes; suppressions in it are not counted"


def marks_in(data: bytes) -> Counter[str]:
    """Return the suppressions in comments of one file, by their words without what they name."""
    found: Counter[str] = Counter()
    for line in data.splitlines():
        comment = _COMMENT.search(line)
        if comment is not None:
            found.update(" ".join(mark.lower().decode().split()) for mark in _MARKS.findall(line, comment.start()))
    return found


def _data(tree: Tree, path: str) -> bytes:
    try:
        return tree.read(path, FILE_BYTES_MAX)
    except (KeyError, Rejected):
        return b""
