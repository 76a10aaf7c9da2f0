"""Write scopes: which paths a stage may change, judged on the host after the container is dead; never prompt text.

The same pure function runs on the executor and again in the supervisor (DECISIONS G1, G3).
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from pydantic import Field

from sandbox.contract.errors import UnsafePath
from sandbox.contract.model import Frozen

PATTERN_CHARS_MAX = 400


class WriteScope(Frozen):
    """Ordered glob patterns; the last match wins, `!` denies, an empty scope allows nothing.

    `*` and `?` stay within one path component, `**` spans components; a pattern is anchored at the repository root.
    Only globs, never regular expressions: a pattern cannot be made slow (ABUSE A07).
    """

    patterns: tuple[str, ...] = Field((), max_length=500)

    def allows(self, path: str) -> bool:
        """Return whether the last pattern that matches `path` allows it."""
        verdict = False
        for pattern in self.patterns:
            denied = pattern.startswith("!")
            if matches(path, pattern[1:] if denied else pattern):
                verdict = not denied
        return verdict


def offending_paths(changed: Iterable[str], scope: WriteScope) -> list[str]:
    """Return the changed paths that `scope` does not allow, sorted.

    Args:
        changed: Paths relative to the repository root, `/` between components; deletions and both ends of renames included.
        scope: The stage's scope.

    Raises:
        UnsafePath: A path is absolute, empty, contains `.`, `..` or an empty component, or is under `.git`.
    """
    return sorted(path for path in changed if not scope.allows(checked_path(path)))


def checked_path(path: str) -> str:
    """Return `path` if it is a safe repository path.

    Raises:
        UnsafePath: It is absolute, climbs, or touches `.git` in any case.
    """
    parts = path.split("/")
    if not path or any(part in {"", ".", ".."} for part in parts):
        raise UnsafePath(f"path {path!r} is absolute, empty or climbs")
    if any(part.lower() == ".git" for part in parts):
        raise UnsafePath(f"path {path!r} is under .git")
    if "\0" in path or "\\" in path:
        raise UnsafePath(f"path {path!r} holds a NUL or a backslash")
    return path


def matches(path: str, pattern: str) -> bool:
    """Return whether one glob matches a whole path; `docs/**` also matches nothing but what is below `docs`."""
    return _match(tuple(path.split("/")), tuple(pattern.split("/")))


def _match(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Match component by component, in O(len(path) * len(pattern)) by remembering reachable pattern positions."""
    positions = _with_empty_stars({0}, pattern)
    for part in path:
        following: set[int] = set()
        for at in positions:
            if at >= len(pattern):
                continue
            if pattern[at] == "**":
                following.add(at)
                if at == len(pattern) - 1:  # a final `**` has to consume at least one component
                    following.add(at + 1)
            elif _component(pattern[at]).fullmatch(part):
                following.add(at + 1)
        positions = _with_empty_stars(following, pattern)
    return len(pattern) in positions


def _with_empty_stars(positions: set[int], pattern: tuple[str, ...]) -> set[int]:
    reached = set(positions)
    frontier = list(positions)
    while frontier:
        at = frontier.pop()
        if at < len(pattern) - 1 and pattern[at] == "**" and at + 1 not in reached:
            reached.add(at + 1)
            frontier.append(at + 1)
    return reached


@lru_cache(maxsize=4096)
def _component(glob: str) -> re.Pattern[str]:
    if len(glob) > PATTERN_CHARS_MAX:
        raise UnsafePath(f"glob component of {len(glob)} characters; at most {PATTERN_CHARS_MAX}")
    # Runs of stars are collapsed, so that the compiled expression backtracks at most quadratically over one component.
    collapsed = re.sub(r"\*+", "*", glob)
    return re.compile("".join({"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)) for char in collapsed), re.DOTALL)
