"""What can be kept of a workspace whose tree was refused, as a tar archive for a person; nothing of it ever lands (`seal` is for that).

The same walk as the sealing one: by open directories, following no link, opening nothing that blocks, bounded. Where sealing
refuses the whole tree, this leaves out what does not fit and counts it. Not kept: devices, sockets and pipes (they hold no bytes),
what is on another file system, what changed while it was read, directories below `DEPTH_MAX`, and what is beyond the limits.
"""

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.contract.errors import GitError, InfrastructureError, RejectedTree
from sandbox.contract.tree import Entry
from sandbox.contract.tree_rules import TreeLimits, shown
from sandbox.git import blob_sha, in_thread
from sandbox.mirror import Mirror
from sandbox.workspace.provision import Manifest, base_tree

ARCHIVE_BYTES_MAX = 64 << 20
"""Contents of all files together."""
ENTRIES_MAX = 250_000
DEPTH_MAX = 256
LEFT_OUT_NAMED_MAX = 20

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass
class Remains:
    """An archive, and what is not in it."""

    archive: bytes = b""
    """tar, uncompressed; empty if nothing was changed."""
    left_out: list[str] = field(default_factory=list)
    """At most 20 lines, the last one a count of those beyond."""


async def remains_of(mirror: Mirror, manifest: Manifest, workspace: Path, *, bytes_max: int = ARCHIVE_BYTES_MAX) -> Remains:
    """Archive the files and links of a dead container's workspace that are not those of the base; all of them if git cannot tell.

    Raises:
        InfrastructureError: The directory cannot be read.
    """
    return await in_thread(_archive, mirror, manifest, workspace, bytes_max)


def _archive(mirror: Mirror, manifest: Manifest, workspace: Path, bytes_max: int) -> Remains:
    entries: dict[str, Entry] = {}
    with contextlib.suppress(GitError, RejectedTree):
        entries, _, _ = base_tree(mirror.git, manifest.commit, TreeLimits())
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        walk = _Walk(entries, archive, bytes_max)
        try:
            root = os.open(workspace, _OPEN_DIRECTORY)
        except OSError as error:
            raise InfrastructureError(f"the workspace {workspace} cannot be read: {error.strerror}") from error
        walk.run(root)
    return Remains(target.getvalue() if walk.kept else b"", walk.left_out())


@dataclass
class _Walk:
    """One pass, without recursion; at most `DEPTH_MAX` + 1 descriptors are open."""

    base: dict[str, Entry]
    archive: tarfile.TarFile
    bytes_left: int
    kept: int = 0
    _left_out: list[str] = field(default_factory=list)
    _left_out_count: int = 0
    _entries: int = 0

    def run(self, root: int) -> None:
        """Visit everything below an open directory, and close it."""
        device = os.fstat(root).st_dev
        levels: list[tuple[int, str, Iterator[str]]] = [(root, "", iter(self._names(root, "")))]
        try:
            while levels:
                directory, prefix, names = levels[-1]
                name = next(names, None)
                if name is None:
                    os.close(levels.pop()[0])
                    continue
                path = prefix + name
                if path == ".git":
                    continue
                child = self._visit(directory, name, path, device, len(levels))
                if child is not None:
                    levels.append((child, f"{path}/", iter(self._names(child, path))))
        finally:
            for directory, _, _ in levels:
                os.close(directory)

    def left_out(self) -> list[str]:
        """Return what was left out."""
        more = self._left_out_count - len(self._left_out)
        return [*self._left_out, *([f"and {more} more"] if more else [])]

    def _names(self, directory: int, path: str) -> list[str]:
        names: list[str] = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    self._entries += 1
                    if self._entries > ENTRIES_MAX:
                        self._leave_out(path, f"more than {ENTRIES_MAX} files and directories")
                        break
                    names.append(entry.name)
        except OSError as error:
            self._leave_out(path, error.strerror or "cannot be read")
        return sorted(names)

    def _visit(self, directory: int, name: str, path: str, device: int, depth: int) -> int | None:
        """Keep one entry; return an open directory to go into."""
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            kind = stat.S_IFMT(found.st_mode)
            if kind == stat.S_IFLNK:
                self._keep_link(directory, name, path)
            elif kind == stat.S_IFREG:
                self._keep_file(directory, name, path, found)
            elif kind != stat.S_IFDIR:
                self._leave_out(path, "holds no bytes: a device, socket or pipe")
            elif found.st_dev != device or depth > DEPTH_MAX:
                self._leave_out(path, "is on another file system" if found.st_dev != device else f"is more than {DEPTH_MAX} levels deep")
            else:
                return os.open(name, _OPEN_DIRECTORY, dir_fd=directory)
        except OSError as error:
            self._leave_out(path, error.strerror or "cannot be read")
        return None

    def _keep_link(self, directory: int, name: str, path: str) -> None:
        target = os.readlink(name, dir_fd=directory)
        info = tarfile.TarInfo(path)
        info.type, info.linkname = tarfile.SYMTYPE, target
        before = self.base.get(path)
        raw = os.fsencode(target)
        if before is None or before.mode != "120000" or before.sha != blob_sha(raw):
            self._add(info, b"")

    def _keep_file(self, directory: int, name: str, path: str, found: os.stat_result) -> None:
        before = self.base.get(path)
        if found.st_size > self.bytes_left and (before is None or before.size_bytes != found.st_size):
            self._leave_out(path, f"its {found.st_size} bytes do not fit")
            return
        data = _read(directory, name, found)
        if data is None:
            self._leave_out(path, "changed while it was read")
            return
        is_executable = bool(found.st_mode & 0o100)
        if before is not None and before.sha == blob_sha(data) and before.mode == ("100755" if is_executable else "100644"):
            return
        if len(data) > self.bytes_left:
            self._leave_out(path, f"its {len(data)} bytes do not fit")
            return
        info = tarfile.TarInfo(path)
        info.size, info.mode = len(data), 0o755 if is_executable else 0o644
        self.bytes_left -= len(data)
        self._add(info, data)

    def _add(self, info: tarfile.TarInfo, data: bytes) -> None:
        self.archive.addfile(info, io.BytesIO(data))
        self.kept += 1

    def _leave_out(self, path: str, why: str) -> None:
        self._left_out_count += 1
        if len(self._left_out) < LEFT_OUT_NAMED_MAX:
            self._left_out.append(f"{shown(path) if path else 'the rest'} ({why})")


def _read(directory: int, name: str, found: os.stat_result) -> bytes | None:
    """Return a file's bytes, None if it is not the file that was looked at, or grew."""
    handle = os.open(name, _OPEN_FILE, dir_fd=directory)
    with os.fdopen(handle, "rb") as file:
        opened = os.fstat(file.fileno())
        if (opened.st_dev, opened.st_ino, opened.st_size) != (found.st_dev, found.st_ino, found.st_size):
            return None
        data = file.read(found.st_size + 1)
        return data if len(data) == found.st_size else None
