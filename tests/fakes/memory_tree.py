"""A tree in memory for tests of gates and bundlers; the real one is `sandbox/mirror.py`."""

import hashlib
from collections.abc import Mapping

from sandbox.contract.errors import Rejected
from sandbox.contract.tree import Change, Entry


class MemoryTree:
    """A read-only snapshot made from a mapping of path to content.

    Content is bytes or text of a regular file; a `Link` is a symbolic link; a `Submodule` is a gitlink.
    """

    def __init__(self, files: Mapping[str, "bytes | str | Link | Executable | Submodule"] | None = None) -> None:
        self._files = dict(files or {})
        listing = repr(sorted((path, repr(content)) for path, content in self._files.items()))
        self._commit = hashlib.sha1(listing.encode()).hexdigest()

    @property
    def commit(self) -> str:
        """Return an id that equal content shares."""
        return self._commit

    def entries(self) -> Mapping[str, Entry]:
        """Return every leaf by path."""
        return {path: _entry(content) for path, content in self._files.items()}

    def read(self, path: str, bytes_max: int = 1 << 20) -> bytes:
        """Return a regular file's bytes, as the protocol says."""
        content = self._files[path]
        if isinstance(content, Link | Submodule):
            raise KeyError(path)
        data = _bytes(content)
        if len(data) > bytes_max:
            raise Rejected(f"{path} has {len(data)} bytes; at most {bytes_max}")
        return data

    def with_files(self, files: Mapping[str, "bytes | str | Link | Executable | Submodule | None"]) -> "MemoryTree":
        """Return a tree with edits; None deletes."""
        merged: dict[str, bytes | str | Link | Executable | Submodule] = dict(self._files)
        for path, content in files.items():
            if content is None:
                merged.pop(path)
            else:
                merged[path] = content
        return MemoryTree(merged)


class Link:
    """A symbolic link."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __repr__(self) -> str:
        return f"Link({self.target!r})"


class Executable:
    """A regular file with the exec bit."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Executable({self.text!r})"


class Submodule:
    """A gitlink."""

    def __repr__(self) -> str:
        return "Submodule()"


def changes_between(base: MemoryTree, result: MemoryTree) -> list[Change]:
    """Return what differs, sorted by path, as `Mirror.changes` does."""
    old, new = base.entries(), result.entries()
    return [Change(path=path, old=old.get(path), new=new.get(path)) for path in sorted({*old, *new}) if old.get(path) != new.get(path)]


def _entry(content: bytes | str | Link | Executable | Submodule) -> Entry:
    if isinstance(content, Submodule):
        return Entry(mode="160000", sha="5" * 40, size_bytes=None)
    mode = "120000" if isinstance(content, Link) else "100755" if isinstance(content, Executable) else "100644"
    data = content.target.encode() if isinstance(content, Link) else _bytes(content)
    return Entry(mode=mode, sha=hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), size_bytes=len(data))


def _bytes(content: bytes | str | Executable) -> bytes:
    text = content.text if isinstance(content, Executable) else content
    return text.encode() if isinstance(text, str) else text
