"""Write scopes: which paths a stage may change, judged on the host after the container is dead; never prompt text.

The same pure function runs on the executor and again in the supervisor (DECISIONS G1, G3).
"""

from collections.abc import Iterable
from functools import lru_cache

from pydantic import Field, field_validator

from sandbox.contract.errors import UnsafePath
from sandbox.contract.model import Frozen

PATTERN_CHARS_MAX = 400


class WriteScope(Frozen):
    """Ordered glob patterns; the last match wins, `!` denies, an empty scope allows nothing.

    `*` and `?` stay within one path component, `**` spans components; a pattern is anchored at the repository root.
    A denying pattern matches whatever the case of the letters: `Makefile` and `makefile` are one file on some systems.
    Only globs, never regular expressions: a pattern cannot be made slow (ABUSE A07).
    """

    patterns: tuple[str, ...] = Field((), max_length=500)

    @field_validator("patterns")
    @classmethod
    def _can_match(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            _refuse_unmatchable(pattern.removeprefix("!"))
        return patterns

    def allows(self, path: str) -> bool:
        """Return whether the last pattern that matches `path` allows it."""
        parts = tuple(path.split("/"))
        folded = tuple(path.casefold().split("/"))
        for pattern in reversed(self.patterns):
            denied = pattern.startswith("!")
            if _match(folded, _components(pattern[1:].casefold())) if denied else _match(parts, _components(pattern)):
                return not denied
        return False


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
    # Windows drops trailing dots and spaces, and knows `.git` by its short name too.
    if any(part.lower().rstrip(". ") in {".git", "git~1"} for part in parts):
        raise UnsafePath(f"path {path!r} is under .git")
    if "\0" in path or "\\" in path:
        raise UnsafePath(f"path {path!r} holds a NUL or a backslash")
    return path


def matches(path: str, pattern: str) -> bool:
    """Return whether one glob matches a whole path; `docs/**` also matches nothing but what is below `docs`."""
    return _match(tuple(path.split("/")), _components(pattern))


def _refuse_unmatchable(glob: str) -> None:
    if len(glob) > PATTERN_CHARS_MAX:
        raise ValueError(f"glob of {len(glob)} characters; at most {PATTERN_CHARS_MAX}")
    if any(part in {"", ".", ".."} for part in glob.split("/")) or "\0" in glob or "\\" in glob:
        raise ValueError(
            f"glob {glob!r} can match nothing: give it relative to the repository root, '/' between components, "
            "'**' for everything below a directory"
        )


@lru_cache(maxsize=4096)
def _components(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.split("/"))


def _match(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Match component by component, in O(len(path) * len(pattern)) by remembering reachable pattern positions."""
    if "**" not in pattern:
        return len(path) == len(pattern) and all(_component_matches(part, glob) for part, glob in zip(path, pattern, strict=True))
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
            elif _component_matches(part, pattern[at]):
                following.add(at + 1)
        if not following:
            return False
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


def _component_matches(name: str, glob: str) -> bool:
    """Match one component in O(len(name) * len(glob)): only the last star is ever retried, which is enough for globs.

    A regular expression would backtrack once per star: `*a*a*a…` then takes time exponential in the stars.
    """
    if "*" not in glob and "?" not in glob:
        return name == glob
    at_name = at_glob = retry_name = 0
    star = -1
    while at_name < len(name):
        if at_glob < len(glob) and glob[at_glob] == "*":
            star, retry_name = at_glob, at_name
            at_glob += 1
        elif at_glob < len(glob) and glob[at_glob] in ("?", name[at_name]):
            at_name += 1
            at_glob += 1
        elif star >= 0:
            retry_name += 1
            at_name, at_glob = retry_name, star + 1
        else:
            return False
    return not glob[at_glob:].strip("*")
