"""What tools leave behind in a workspace and nobody meant to change; not what a stage may write (`contract.scope`).

Only paths absent from the base commit are ever litter (DECISIONS G2): a short shipped list, and the base commit's own
`.gitignore` files. What is dropped is counted and named in the report.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from pathspec import GitIgnoreSpec, RegexPattern

IGNORE_FILES_MAX = 200
IGNORE_FILE_BYTES_MAX = 64 << 10
"""A larger `.gitignore`, or one beyond the first 200, ignores nothing."""

_DIRECTORIES = frozenset(
    {
        "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".tox", ".nox", ".venv", "venv", ".eggs",
        "node_modules", "htmlcov", ".cache", ".npm",
    }
)  # fmt: skip
_FILES = frozenset({".coverage", ".DS_Store", "Thumbs.db"})
_DIRECTORY_SUFFIXES = (".egg-info",)
_FILE_SUFFIXES = (".pyc", ".pyo", ".swp")
_FILE_PREFIXES = (".coverage.",)
_SCREENED_LINES_MAX = 500
"""Of one file; more take longer to compile than they save."""
_GROUP = "(?P<ps_d>"  # how `pathspec` marks the end of a directory's name


class Litter:
    """The rules of one base commit.

    Args:
        ignore_files: Bytes of the base commit's `.gitignore` files by path, at most `IGNORE_FILES_MAX`.
    """

    def __init__(self, ignore_files: Mapping[str, bytes]) -> None:
        self._files = {path.rpartition("/")[0]: _read(data) for path, data in ignore_files.items() if len(data) <= IGNORE_FILE_BYTES_MAX}

    def drops(self, path: str, *, is_directory: bool) -> bool:
        """Return whether a path that the base commit does not have is litter; ask from the root downwards.

        As in gitignore(5), what is below an ignored directory is not asked for, and a deeper file decides before a
        higher one.
        """
        return _is_shipped_litter(path.rpartition("/")[2], is_directory) or self._is_ignored(path, is_directory)

    def _is_ignored(self, path: str, is_directory: bool) -> bool:
        asked = f"{path}/" if is_directory else path
        directory = path
        while directory:
            directory = directory.rpartition("/")[0]
            file = self._files.get(directory)
            if file is None:
                continue
            below = asked[len(directory) + 1 :] if directory else asked
            if file.screen is None or file.screen.search(below):
                verdict = file.spec.check_file(below).include
                if verdict is not None:
                    return verdict
        return False


def _is_shipped_litter(name: str, is_directory: bool) -> bool:
    if is_directory:
        return name in _DIRECTORIES or name.endswith(_DIRECTORY_SUFFIXES)
    return name in _FILES or name.endswith(_FILE_SUFFIXES) or name.startswith(_FILE_PREFIXES)


class _IgnoreFile(NamedTuple):
    spec: GitIgnoreSpec
    screen: re.Pattern[str] | None
    """Found in every path a line says something about, in a quarter of the time; None: every path has to be asked for."""


def _read(data: bytes) -> _IgnoreFile:
    lines = []
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError:
            continue  # a line git would not understand either
        lines.append(line)
    spec = GitIgnoreSpec.from_lines(lines)
    is_odd = len(lines) > _SCREENED_LINES_MAX or any(_GROUP in line for line in lines)
    return _IgnoreFile(spec, None if is_odd else _screen(spec))


def _screen(spec: GitIgnoreSpec) -> re.Pattern[str]:
    """Return all lines' expressions as one, without the names of their groups: in one expression a name may be there only once."""
    expressions = [pattern.regex.pattern for pattern in spec.patterns if isinstance(pattern, RegexPattern) and pattern.regex is not None]
    return re.compile("|".join(f"(?:{expression.replace(_GROUP, '(?:')})" for expression in expressions) or "(?!)")
