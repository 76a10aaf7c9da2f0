"""Turn a workspace an agent wrote into a commit, after its container is dead: our own walk, then `git fast-import`.

The walk opens nothing by a path the agent could have changed the meaning of: every step is relative to an open
directory, follows no link, never blocks, and is bounded by `TreeLimits`. Git never sees the workspace, so no hook,
filter, attribute, ignore file or index of the agent's has a say. Not responsible for write scopes (`contract.scope`).
"""

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.contract.errors import GitError, InfrastructureError, RejectedTree
from sandbox.contract.model import Frozen
from sandbox.contract.result import Dropped
from sandbox.contract.tree import Change, Entry
from sandbox.contract.tree_rules import TreeLimits, collision, is_private, shown, unsafe_link, unsafe_path
from sandbox.git import ANDON, Git, ImportStream, blob_sha, in_thread, objects_reader
from sandbox.mirror import Mirror
from sandbox.quarantine import changes_between
from sandbox.workspace.litter import IGNORE_FILE_BYTES_MAX, IGNORE_FILES_MAX, Litter
from sandbox.workspace.provision import Manifest, base_tree

DROPPED_NAMED_MAX = 20

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK_BYTES = 1 << 20


class Sealed(Frozen):
    """What an agent left in its workspace."""

    commit: str | None
    """On top of the manifest's commit; None: nothing changed."""
    changes: tuple[Change, ...]
    dropped: Dropped


async def seal(
    mirror: Mirror, manifest: Manifest, workspace: Path, *, message: str, limits: TreeLimits | None = None, at: int | None = None
) -> Sealed:
    """Record what changed in `workspace` since it was provisioned as one commit in the mirror.

    Files are taken byte for byte, with the owner's exec bit; links as links; empty directories not at all. `.git` in the
    root is the agent's own and is not looked at (DECISIONS D17). Litter (DECISIONS G2) and `.env` files are dropped and
    counted. What was withheld, or is identical to the base, is carried over unjudged (DECISIONS G1).

    Args:
        mirror: It holds the manifest's commit.
        manifest: What `provision` returned.
        workspace: The directory it wrote to; nothing writes to it any more.
        message: The commit's message.
        limits: The same as at `provision`.
        at: Seconds since 1970 for the commit; None: now.

    Raises:
        RejectedTree: Something in it breaks a rule; the message names the path and the rule.
        InfrastructureError: The directory cannot be read.
        GitError: Git failed.
    """
    moment = int(time.time()) if at is None else at
    return await in_thread(_seal, mirror.git, manifest.commit, workspace, message, limits or TreeLimits(), moment)


def _seal(git: Git, base: str, workspace: Path, message: str, limits: TreeLimits, at: int) -> Sealed:
    entries, reasons, _ = base_tree(git, base, limits)
    with ImportStream() as stream:
        walk = _Walk(entries, frozenset(reasons), Litter(_ignore_files(git, entries, reasons)), limits, stream)
        try:
            walk.run(workspace)
        except OSError as error:
            raise InfrastructureError(f"the workspace {workspace} cannot be read: {error.strerror}") from error
        deleted = [path for path in entries if path not in walk.present and path not in reasons]
        dropped = Dropped(count=walk.dropped_count, examples=tuple(walk.dropped))
        if not walk.written and not deleted:
            return Sealed(commit=None, changes=(), dropped=dropped)
        _require_unique_names(entries, walk, deleted)
        commit = stream.commit(
            git, parent=base, deleted=deleted, written=walk.written, message=message, author=ANDON, committer=ANDON, at=at
        )
    changes = changes_between(git, base, commit)
    if {change.path for change in changes} != {path for _, _, path in walk.written}.union(deleted):
        raise GitError(f"commit {commit} does not hold exactly what was found in {workspace}")
    return Sealed(commit=commit, changes=tuple(changes), dropped=dropped)


def _ignore_files(git: Git, entries: Mapping[str, Entry], reasons: Mapping[str, str]) -> dict[str, bytes]:
    """Return the base commit's own `.gitignore` files; the workspace's may have been changed by the agent."""
    named = [
        (path, entry.sha)
        for path, entry in entries.items()
        if path.rpartition("/")[2] == ".gitignore"
        and path not in reasons
        and entry.mode.startswith("100")
        and (entry.size_bytes or 0) <= IGNORE_FILE_BYTES_MAX
    ][:IGNORE_FILES_MAX]
    if not named:
        return {}
    with objects_reader(git) as reader:
        return {path: reader.one(sha) for path, sha in named}


def _require_unique_names(entries: Mapping[str, Entry], walk: "_Walk", deleted: list[str]) -> None:
    """Refuse new names that another platform takes for existing ones, and files where a carried-over entry's directory is."""
    added = {path for _, _, path in walk.written if path not in entries}
    final = (entries.keys() - set(deleted)) | added
    pair = collision(final, added)
    if pair:
        raise RejectedTree(f"{shown(pair[0])} and {shown(pair[1])} differ only in case or Unicode form; rename one")
    for path in walk.withheld:
        for parent in _parents(path):
            if parent in added:
                raise RejectedTree(f"{shown(parent)} is a file where {shown(path)} of the base commit is kept; rename it")


@dataclass
class _Walk:
    """One pass over a workspace, without recursion; at most `depth_max` + 2 descriptors are open."""

    base: Mapping[str, Entry]
    withheld: frozenset[str]
    litter: Litter
    limits: TreeLimits
    stream: ImportStream
    present: set[str] = field(default_factory=set)
    """Base paths that are still there, changed or not."""
    written: list[tuple[str, str, str]] = field(default_factory=list)
    """(mode, reference, path) of what was added or changed."""
    dropped: list[str] = field(default_factory=list)
    dropped_count: int = 0
    _entries: int = 0
    _changed_bytes: int = 0
    _base_directories: set[str] = field(default_factory=set)
    _device: int = 0

    def __post_init__(self) -> None:
        self._base_directories = {parent for path in self.base for parent in _parents(path)}

    def run(self, workspace: Path) -> None:
        """Visit everything; fills `present`, `written` and `dropped`."""
        root = os.open(workspace, _OPEN_DIRECTORY)
        self._device = os.fstat(root).st_dev
        open_directories: list[tuple[int, str, Iterator[str]]] = [(root, "", iter(()))]
        try:
            open_directories[0] = (root, "", iter(self._names(root)))
            while open_directories:
                directory, prefix, names = open_directories[-1]
                name = next(names, None)
                if name is None:
                    os.close(open_directories.pop()[0])
                    continue
                path = prefix + name
                found = _looked_at(directory, name, path)
                if self._is_skipped(path, stat.S_ISDIR(found.st_mode)):
                    continue
                self._require_shape(path, found)
                if not stat.S_ISDIR(found.st_mode):
                    self._take(directory, name, path, found)
                    continue
                child = self._open(directory, name, path, found, _OPEN_DIRECTORY)
                open_directories.append((child, "", iter(())))  # owned by the list before anything can fail
                open_directories[-1] = (child, f"{path}/", iter(self._names(child)))
        finally:
            for directory, _, _ in open_directories:
                os.close(directory)

    def _names(self, directory: int) -> list[str]:
        """Return a directory's names, sorted; refuses the tree as soon as they are too many."""
        names = []
        with os.scandir(directory) as entries:
            for entry in entries:
                self._entries += 1
                if self._entries > self.limits.entries_max:
                    raise RejectedTree(f"more than {self.limits.entries_max} files and directories")
                names.append(entry.name)
        return sorted(names)

    def _is_skipped(self, path: str, is_directory: bool) -> bool:
        """Return whether nothing of a path is taken: the agent's own `.git`, litter, `.env` files."""
        if path == ".git":
            return True
        if path in self.base and path not in self.withheld:
            return False
        is_known_directory = is_directory and path in self._base_directories
        if is_private(path) or (not is_known_directory and path not in self.base and self.litter.drops(path, is_directory=is_directory)):
            self.dropped_count += 1
            if len(self.dropped) < DROPPED_NAMED_MAX:
                self.dropped.append(shown(f"{path}/" if is_directory else path))
            return True
        return False

    def _require_shape(self, path: str, found: os.stat_result) -> None:
        """Refuse what no tree may hold, whether it is new or not."""
        reason = None if path in self.base else unsafe_path(path, self.limits)
        kind = stat.S_IFMT(found.st_mode)
        if reason is None and kind not in {stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR}:
            reason = f"is a {_KINDS.get(kind, 'special file')}; only files, directories and links are taken"
        elif reason is None and kind != stat.S_IFDIR and found.st_nlink != 1:
            reason = "has several names (hard links); make it a copy"
        elif reason is None and kind == stat.S_IFREG and found.st_mode & 0o7000:
            reason = f"has special permission bits ({stat.S_IMODE(found.st_mode):04o}); use 0644 or 0755"
        elif reason is None and kind == stat.S_IFDIR and found.st_dev != self._device:
            reason = "is on another file system"
        if reason is None and kind != stat.S_IFDIR:
            kept = next((part for part in (path, *_parents(path)) if part in self.withheld), None)
            if kept is not None:
                reason = f"is where {shown(kept)} of the base commit is, which was not given to the agent and is kept as it is"
        if reason:
            raise RejectedTree(f"{shown(path)} {reason}")

    def _take(self, directory: int, name: str, path: str, found: os.stat_result) -> None:
        """Add a file or link to the stream, unless the base has the very same."""
        before = self.base.get(path)
        if before is not None:
            self.present.add(path)
        if stat.S_ISLNK(found.st_mode):
            self._take_link(directory, name, path, before)
            return
        is_executable = bool(found.st_mode & 0o100)
        if found.st_size > self.limits.file_bytes_max and (before is None or before.size_bytes != found.st_size):
            raise RejectedTree(f"{shown(path)} has {found.st_size} bytes; at most {self.limits.file_bytes_max}")
        sha, data = self._read(directory, name, path, found)
        # Old trees hold modes like 100664: the same bytes and the same exec bit are the same entry, carried over as it is.
        if before is not None and before.sha == sha and before.mode.startswith("100"):
            if bool(int(before.mode, 8) & 0o100) == is_executable:
                return
            self._change(path, "100755" if is_executable else "100644", found.st_size, before.sha)
            return
        if data is None:
            raise RejectedTree(f"{shown(path)} has {found.st_size} bytes; at most {self.limits.file_bytes_max}")
        self._change(path, "100755" if is_executable else "100644", found.st_size, None, data)

    def _take_link(self, directory: int, name: str, path: str, before: Entry | None) -> None:
        try:
            target = os.fsencode(os.readlink(name, dir_fd=directory))
        except OSError as error:
            raise RejectedTree(f"{shown(path)} changed while it was read") from error
        if before is not None and before.mode == "120000" and before.sha == blob_sha(target):
            return
        reason = unsafe_link(path, target)
        if reason:
            raise RejectedTree(f"{shown(path)} {reason}")
        self._change(path, "120000", len(target), None, target)

    def _change(self, path: str, mode: str, size_bytes: int, same_blob: str | None, data: bytes = b"") -> None:
        self._changed_bytes += size_bytes
        if self._changed_bytes > self.limits.changed_bytes_max:
            raise RejectedTree(f"more than {self.limits.changed_bytes_max} bytes of changed files")
        if len(self.written) >= self.limits.changed_files_max:
            raise RejectedTree(f"more than {self.limits.changed_files_max} changed files")
        self.written.append((mode, same_blob or self.stream.blob(data), path))

    def _read(self, directory: int, name: str, path: str, found: os.stat_result) -> tuple[str, bytes | None]:
        """Return a file's blob id and its bytes; no bytes if it is larger than a changed file may be."""
        handle = self._open(directory, name, path, found, _OPEN_FILE)
        digest = hashlib.sha1(b"blob %d\0" % found.st_size, usedforsecurity=False)
        kept: list[bytes] = []
        left = found.st_size
        try:
            while left and (chunk := os.read(handle, min(left, _CHUNK_BYTES))):
                left -= len(chunk)
                digest.update(chunk)
                if found.st_size <= self.limits.file_bytes_max:
                    kept.append(chunk)
            if left or os.read(handle, 1):
                raise RejectedTree(f"{shown(path)} changed while it was read")
        finally:
            os.close(handle)
        return digest.hexdigest(), b"".join(kept) if found.st_size <= self.limits.file_bytes_max else None

    def _open(self, directory: int, name: str, path: str, found: os.stat_result, flags: int) -> int:
        """Open what `lstat` saw and nothing else."""
        try:
            handle = os.open(name, flags, dir_fd=directory)
        except OSError as error:
            raise RejectedTree(f"{shown(path)} cannot be read: {error.strerror}") from error
        opened = os.fstat(handle)
        same = (opened.st_dev, opened.st_ino, opened.st_mode, opened.st_size) == (found.st_dev, found.st_ino, found.st_mode, found.st_size)
        if not same:
            os.close(handle)
            raise RejectedTree(f"{shown(path)} changed while it was read")
        return handle


_KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


def _looked_at(directory: int, name: str, path: str) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError as error:
        raise RejectedTree(f"{shown(path)} changed while it was read") from error


def _parents(path: str) -> Iterator[str]:
    """Yield the directories above a path, the nearest first."""
    at = path.rfind("/")
    while at > 0:
        yield path[:at]
        at = path.rfind("/", 0, at)
