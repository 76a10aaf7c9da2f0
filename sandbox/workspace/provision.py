"""Write a commit's files into an empty directory for a container; git only lists and reads objects.

No `.git` is made, no attribute, filter or line-ending rule applies: what lands on disk is byte for byte what is in the
commit. What is not given to an agent (submodules, `.env` files, links that leave the tree, tricky names) is named in the
manifest and carried over by `seal` (DECISIONS G1).
"""

import errno
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from sandbox.contract.errors import InfrastructureError, RejectedTree
from sandbox.contract.model import Frozen
from sandbox.contract.tree import Entry
from sandbox.contract.tree_rules import LINK_TARGET_BYTES_MAX, TreeLimits, shown, unsafe_path, withheld
from sandbox.git import Git, GitOutputTooLarge, in_thread, list_tree, objects_stream
from sandbox.mirror import Mirror

WITHHELD_NAMED_MAX = 200

_BLOCK_BYTES = 4_096
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Withheld(Frozen):
    """An entry of the commit that was not written."""

    path: str
    reason: str
    """For a person, without its subject: `is a submodule`."""


class Manifest(Frozen):
    """What a workspace was made from; small enough for a slot's lease file, and all that `seal` needs."""

    commit: str
    files: int = Field(ge=0)
    """Files and links written."""
    bytes_written: int = Field(ge=0)
    withheld: tuple[Withheld, ...] = Field((), max_length=WITHHELD_NAMED_MAX)
    """The first ones, to be shown."""
    withheld_count: int = Field(0, ge=0)


async def provision(mirror: Mirror, commit: str, into: Path, *, uid: int, gid: int, limits: TreeLimits | None = None) -> Manifest:
    """Write the files of `commit` into the empty directory `into`, owned by uid:gid.

    Files get mode 0644 or 0755, directories 0755; a submodule becomes an empty directory, as a checkout makes it. Nothing
    else may write to `into` meanwhile: the container has not started.

    Raises:
        RejectedTree: The commit has too many or too large files for the directory, or paths no disk can hold.
        GitError: The commit is not in the mirror.
        InfrastructureError: The directory is not empty or cannot be written.
    """
    return await in_thread(_provision, mirror.git, commit, into, (uid, gid), limits or TreeLimits())


def base_tree(git: Git, commit: str, limits: TreeLimits) -> tuple[dict[str, Entry], dict[str, str], dict[str, bytes]]:
    """Return a commit's entries, why some of them are withheld (by path), and the targets of its links (by path).

    Raises:
        RejectedTree: It has more entries than `limits` allow.
        GitError: The commit is not there.
    """
    try:
        entries = list_tree(git, commit)
    except GitOutputTooLarge as error:
        raise RejectedTree(f"commit {commit} has more than {limits.entries_max} files, the most a workspace holds") from error
    if len(entries) > limits.entries_max:
        raise RejectedTree(f"commit {commit} has {len(entries)} files; a workspace holds {limits.entries_max}")
    targets = _link_targets(git, entries)
    reasons = {path: withheld(path, entry, targets.get(path), limits) for path, entry in entries.items()}
    return entries, {path: reason for path, reason in reasons.items() if reason}, targets


def _link_targets(git: Git, entries: Mapping[str, Entry]) -> dict[str, bytes]:
    """Return the targets of links; in place of one that is too long to be used, something just beyond the limit."""
    links = {path: entry.sha for path, entry in entries.items() if entry.mode == "120000"}
    if not links:
        return {}
    with objects_stream(git, list(links.values())) as objects:
        return {
            path: objects.read() if size_bytes <= LINK_TARGET_BYTES_MAX else b"-" * (LINK_TARGET_BYTES_MAX + 1)
            for path, size_bytes in zip(links, objects, strict=True)
        }


def _provision(git: Git, commit: str, into: Path, owner: tuple[int, int], limits: TreeLimits) -> Manifest:
    entries, reasons, targets = base_tree(git, commit, limits)
    given = {path: entry for path, entry in entries.items() if path not in reasons}
    submodules = [path for path, entry in entries.items() if entry.mode == "160000" and unsafe_path(path, limits) is None]
    bytes_needed = sum(-(-(entry.size_bytes or 0) // _BLOCK_BYTES) * _BLOCK_BYTES for entry in given.values())
    too_full = f"commit {commit} has {len(given)} files of {bytes_needed >> 20} MiB: more than the workspace holds; raise workspace_mib"
    with _empty_directory(into, owner) as root:
        room = os.fstatvfs(root)
        if bytes_needed > room.f_bavail * room.f_frsize or (room.f_files and len(given) > room.f_favail):
            raise RejectedTree(too_full)
        writer = _Writer(root, owner)
        try:
            with writer:
                bytes_written = _write_files(writer, git, given, targets)
                writer.make_directories(submodules)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise RejectedTree(too_full) from error
            if error.errno in {errno.EEXIST, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}:
                raise RejectedTree(f"commit {commit} holds paths that cannot be on one disk: {error.strerror}") from error
            raise InfrastructureError(f"the workspace {into} cannot be written: {error.strerror}") from error
    named = tuple(Withheld(path=shown(path), reason=reason) for path, reason in list(reasons.items())[:WITHHELD_NAMED_MAX])
    return Manifest(commit=commit, files=len(given), bytes_written=bytes_written, withheld=named, withheld_count=len(reasons))


def _write_files(writer: "_Writer", git: Git, given: Mapping[str, Entry], targets: Mapping[str, bytes]) -> int:
    """Write files and links in git's order and return the number of bytes."""
    bytes_written = 0
    files = {path: entry for path, entry in given.items() if entry.mode != "120000"}
    with objects_stream(git, [entry.sha for entry in files.values()]) as objects:
        for (path, entry), size_bytes in zip(files.items(), objects, strict=True):
            # Old trees hold other bits than 0644 and 0755; git itself only looks at the owner's exec bit.
            writer.file(path, 0o755 if int(entry.mode, 8) & 0o100 else 0o644, objects.chunks())
            bytes_written += size_bytes
    for path in given:
        if path in targets:
            writer.link(path, targets[path])
            bytes_written += len(targets[path])
    return bytes_written


@contextmanager
def _empty_directory(path: Path, owner: tuple[int, int]) -> Iterator[int]:
    """Open `path`, which is an empty directory and no link, and give it to its owner."""
    try:
        root = os.open(path, _OPEN_DIRECTORY)
    except OSError as error:
        raise InfrastructureError(f"the workspace {path} cannot be opened: {error.strerror}") from error
    try:
        with os.scandir(root) as entries:
            if next(entries, None) is not None:
                raise InfrastructureError(f"the workspace {path} is not empty")
        found = os.fstat(root)
        if (found.st_uid, found.st_gid) != owner:
            os.fchown(root, *owner)
        yield root
    finally:
        os.close(root)


class _Writer:
    """Writes paths below one open directory; every step is relative to an open parent and follows no link."""

    def __init__(self, root: int, owner: tuple[int, int]) -> None:
        self._root, self._owner = root, owner
        self._must_chown = owner != (os.geteuid(), os.getegid())
        self._open: list[tuple[str, int]] = []
        """The directories of the last path, from the top: git lists a directory's paths one after another."""

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._close_below(0)

    def file(self, path: str, mode: int, chunks: Iterator[bytes]) -> None:
        """Make a file that does not exist yet."""
        directory, name = self._parent(path)
        handle = os.open(name, _NEW_FILE, 0o600, dir_fd=directory)
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(handle, view) :]
            if self._must_chown:
                os.fchown(handle, *self._owner)
            os.fchmod(handle, mode)
        finally:
            os.close(handle)

    def link(self, path: str, target: bytes) -> None:
        """Make a symbolic link that does not exist yet."""
        directory, name = self._parent(path)
        os.symlink(target, os.fsencode(name), dir_fd=directory)
        if self._must_chown:
            os.chown(name, *self._owner, dir_fd=directory, follow_symlinks=False)

    def make_directories(self, paths: Collection[str]) -> None:
        """Make empty directories."""
        for path in paths:
            self._parent(f"{path}/-")

    def _parent(self, path: str) -> tuple[int, str]:
        """Return the open directory a path is in, made if need be, and the path's last component."""
        *parents, name = path.split("/")
        shared = 0
        while shared < min(len(parents), len(self._open)) and self._open[shared][0] == parents[shared]:
            shared += 1
        self._close_below(shared)
        for part in parents[shared:]:
            above = self._open[-1][1] if self._open else self._root
            self._open.append((part, self._directory(part, above)))
        return (self._open[-1][1] if self._open else self._root), name

    def _directory(self, name: str, above: int) -> int:
        try:
            os.mkdir(name, 0o755, dir_fd=above)
        except FileExistsError:
            return os.open(name, _OPEN_DIRECTORY, dir_fd=above)
        made = os.open(name, _OPEN_DIRECTORY, dir_fd=above)
        if self._must_chown:
            os.fchown(made, *self._owner)
        os.fchmod(made, 0o755)
        return made

    def _close_below(self, depth: int) -> None:
        while len(self._open) > depth:
            os.close(self._open.pop()[1])
