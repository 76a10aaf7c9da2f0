"""A committed tree as gates and bundlers read it, and what changed between two; not how git gives it (`sandbox/mirror.py`)."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

FileMode = Literal["100644", "100755", "120000", "160000", "100664"]


class Entry(NamedTuple):
    """One leaf of a tree: what git printed, of which there are tens of thousands, so nothing is validated a second time."""

    mode: str
    """Six octal digits as git writes them: 100644, 100755, 120000 (link), 160000 (submodule); old trees hold 100664."""
    sha: str
    size_bytes: int | None
    """None for a submodule."""


class Change(NamedTuple):
    """One path that differs between two trees; a rename is a deletion and an addition."""

    path: str
    old: Entry | None
    new: Entry | None


class Tree(Protocol):
    """A read-only snapshot of one commit. Synchronous: use it inside `Mirror.inspect`, which runs in a thread."""

    @property
    def commit(self) -> str:
        """Return the commit's id."""
        ...

    def entries(self) -> Mapping[str, Entry]:
        """Return every leaf by path (UTF-8 with surrogateescape)."""
        ...

    def read(self, path: str, bytes_max: int = 1 << 20) -> bytes:
        """Return a regular file's bytes.

        Raises:
            KeyError: No such file, or not a regular one.
            Rejected: It is larger than `bytes_max`.
        """
        ...
