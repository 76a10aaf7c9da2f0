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
from sandbox.contract.result import Dropped
from sandbox.contract.tree import Change, Entry
from sandbox.contract.tree_rules import TreeLimits, collision, is_private, shown, unsafe_link, unsafe_path
from sandbox.git import ANDON, Git, ImportStream, blob_sha, in_thread, objects_reader
from sandbox.mirror import Mirror
from sandbox.quarantine import NO_MODE, differences
from sandbox.workspace.litter import IGNORE_FILE_BYTES_MAX, IGNORE_FILES_MAX, Litter
from sandbox.workspace.provision import Manifest, base_tree

DROPPED_NAMED_MAX = 20

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Sealed:
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
    with ImportStream(git) as stream:
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
        commit = stream.commit(parent=base, deleted=deleted, written=walk.written, message=message, author=ANDON, committer=ANDON, at=at)
    return Sealed(commit=commit, changes=_judged(git, base, commit, entries, walk, deleted), dropped=dropped)


def _judged(git: Git, base: str, commit: str, entries: Mapping[str, Entry], walk: "_Walk", deleted: list[str]) -> tuple[Change, ...]:
    """Return what git says the commit changes; it is an error if that is not exactly what the walk found."""
    found = differences(git, base, commit)
    expected = {path: mode for mode, _, path in walk.written} | dict.fromkeys(deleted, NO_MODE)
    if {each.path: each.new_mode for each in found} != expected:
        raise GitError(f"commit {commit} does not hold exactly what was found in the workspace")
    return tuple(
        Change(
            each.path,
            entries.get(each.path),
            Entry(each.new_mode, each.new_sha, walk.sizes[each.path]) if each.path in walk.sizes else None,
        )
        for each in found
    )


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
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of what was added or changed, by path."""
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
        open_directories: list[tuple[int, str, Iterator[os.DirEntry[str]]]] = [(root, "", iter(()))]
        try:
            open_directories[0] = (root, "", iter(self._listed(root)))
            while open_directories:
                directory, prefix, listed = open_directories[-1]
                entry = next(listed, None)
                if entry is None:
                    os.close(open_directories.pop()[0])
                    continue
                path = prefix + entry.name
                is_directory = entry.is_dir(follow_symlinks=False)
                if self._is_skipped(path, is_directory):
                    continue
                self._require_name(path)
                if is_directory:
                    # Owned by the list before anything can fail.
                    open_directories.append((self._opened_directory(directory, entry.name, path), "", iter(())))
                    open_directories[-1] = (open_directories[-1][0], f"{path}/", iter(self._listed(open_directories[-1][0])))
                elif entry.is_file(follow_symlinks=False):
                    self._take_file(directory, entry.name, path)
                else:
                    self._take_link(directory, entry.name, path)
        finally:
            for directory, _, _ in open_directories:
                os.close(directory)

    def _listed(self, directory: int) -> list[os.DirEntry[str]]:
        """Return what is in a directory, sorted by name; refuses the tree as soon as it is too much."""
        listed = []
        with os.scandir(directory) as entries:
            for entry in entries:
                self._entries += 1
                if self._entries > self.limits.entries_max:
                    raise RejectedTree(f"more than {self.limits.entries_max} files and directories")
                listed.append(entry)
        return sorted(listed, key=_name)

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

    def _require_name(self, path: str) -> None:
        reason = None if path in self.base else unsafe_path(path, self.limits)
        if reason:
            raise RejectedTree(f"{shown(path)} {reason}")

    def _require_shape(self, path: str, found: os.stat_result) -> None:
        """Refuse what no tree may hold beside directories, whether it is new or not."""
        kind = stat.S_IFMT(found.st_mode)
        reason = None
        if kind not in {stat.S_IFREG, stat.S_IFLNK}:
            reason = f"is a {_KINDS.get(kind, 'special file')}; only files, directories and links are taken"
        elif found.st_nlink != 1:
            reason = "has several names (hard links); make it a copy"
        elif kind == stat.S_IFREG and found.st_mode & 0o7000:
            reason = f"has special permission bits ({stat.S_IMODE(found.st_mode):04o}); use 0644 or 0755"
        elif self.withheld:
            kept = next((part for part in (path, *_parents(path)) if part in self.withheld), None)
            if kept is not None:
                reason = f"is where {shown(kept)} of the base commit is, which was not given to the agent and is kept as it is"
        if reason:
            raise RejectedTree(f"{shown(path)} {reason}")

    def _opened_directory(self, above: int, name: str, path: str) -> int:
        handle = _opened(above, name, path, _OPEN_DIRECTORY)
        if os.fstat(handle).st_dev != self._device:
            os.close(handle)
            raise RejectedTree(f"{shown(path)} is on another file system")
        return handle

    def _take_file(self, directory: int, name: str, path: str) -> None:
        """Add a file to the stream, unless the base has the very same.

        Nothing is believed of the listing that called it a file: what was opened is judged and read, whatever its name means by now.
        """
        handle = _opened(directory, name, path, _OPEN_FILE)
        try:
            found = os.fstat(handle)
            self._require_shape(path, found)
            size_bytes, mode = found.st_size, "100755" if found.st_mode & 0o100 else "100644"
            # What is larger than a changed file may be is only compared, in pieces.
            data = _content(handle, path, size_bytes) if size_bytes <= self.limits.file_bytes_max else None
            before = self._before(path)
            if before is not None and _is_same(before, handle, path, size_bytes, data):
                # Old trees hold modes like 100664: the same bytes and exec bit are the same entry, carried over as it is.
                if bool(int(before.mode, 8) & 0o100) != (mode == "100755"):
                    self._change(path, mode, size_bytes, before.sha)
                return
            if data is None:
                raise RejectedTree(f"{shown(path)} has {size_bytes} bytes; at most {self.limits.file_bytes_max}")
            self._change(path, mode, size_bytes, None, data)
        finally:
            os.close(handle)

    def _take_link(self, directory: int, name: str, path: str) -> None:
        """Add a link to the stream, unless the base has the very same; refuse whatever else is neither file nor directory."""
        try:
            self._require_shape(path, os.stat(name, dir_fd=directory, follow_symlinks=False))
            target = os.fsencode(os.readlink(name, dir_fd=directory))
        except OSError as error:
            raise RejectedTree(f"{shown(path)} changed while it was read") from error
        before = self._before(path)
        if before is not None and before.mode == "120000" and before.sha == blob_sha(target):
            return
        reason = unsafe_link(path, target)
        if reason:
            raise RejectedTree(f"{shown(path)} {reason}")
        self._change(path, "120000", len(target), None, target)

    def _before(self, path: str) -> Entry | None:
        before = self.base.get(path)
        if before is not None:
            self.present.add(path)
        return before

    def _change(self, path: str, mode: str, size_bytes: int, same_blob: str | None, data: bytes = b"") -> None:
        self._changed_bytes += size_bytes
        if self._changed_bytes > self.limits.changed_bytes_max:
            raise RejectedTree(f"more than {self.limits.changed_bytes_max} bytes of changed files")
        if len(self.written) >= self.limits.changed_files_max:
            raise RejectedTree(f"more than {self.limits.changed_files_max} changed files")
        self.written.append((mode, same_blob or self.stream.blob(data), path))
        self.sizes[path] = size_bytes


_KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _opened(directory: int, name: str, path: str, flags: int) -> int:
    """Open a name in an open directory; never through a link, never waiting for a FIFO's other end."""
    try:
        return os.open(name, flags, dir_fd=directory)
    except OSError as error:
        raise RejectedTree(f"{shown(path)} cannot be read: {error.strerror}") from error


def _is_same(before: Entry, handle: int, path: str, size_bytes: int, data: bytes | None) -> bool:
    """Return whether a file has the bytes of an entry; it is read only if `data` is None and the size is the same."""
    if not before.mode.startswith("100") or before.size_bytes != size_bytes:
        return False
    return before.sha == (_sha_of(handle, path, size_bytes) if data is None else blob_sha(data))


def _content(handle: int, path: str, size_bytes: int) -> bytes:
    return b"".join(chunks(handle, path, size_bytes))


def _sha_of(handle: int, path: str, size_bytes: int) -> str:
    """Return the object name git gives to a file, without holding the file."""
    digest = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    for chunk in chunks(handle, path, size_bytes):
        digest.update(chunk)
    return digest.hexdigest()


def chunks(handle: int, path: str, size_bytes: int) -> Iterator[bytes]:
    """Yield a file's bytes; refuses a file that is shorter or longer by now."""
    left = size_bytes
    while True:
        # One byte more than there should be: a read that stops short of it has seen the end.
        asked = min(left + 1, _CHUNK_BYTES)
        chunk = os.read(handle, asked)
        left -= len(chunk)
        if left < 0 or (left and not chunk):
            raise RejectedTree(f"{shown(path)} changed while it was read")
        yield chunk
        if not left and len(chunk) < asked:
            return


def _parents(path: str) -> Iterator[str]:
    """Yield the directories above a path, the nearest first."""
    at = path.rfind("/")
    while at > 0:
        yield path[:at]
        at = path.rfind("/", 0, at)
