"""The user's own repository: read once at the start, given one new branch at the end; nothing else in it is touched.

Both ends are explicit about the git directory and the environment (DECISIONS D1): no hook or filter runs; index, work
tree, HEAD and configuration are not written; there is no reflog entry. As root, git runs as the repository's owner.
Not responsible for what lands: the supervisor's mirror is the truth, this is its last copy.
"""

import hashlib
import os
import pwd
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from sandbox.contract.errors import ConflictError, GitError, RejectedBundle, UsageError
from sandbox.contract.ids import Sha
from sandbox.contract.model import Frozen
from sandbox.contract.tree import Entry
from sandbox.contract.tree_rules import LINK_TARGET_BYTES_MAX, TreeLimits, shown, withheld
from sandbox.git import Git, Owner, blob_sha, checked_sha, in_thread, list_tree, objects_reader, require_version, sizes
from sandbox.mirror import list_refs, pack_of, read_ref, update_ref
from sandbox.quarantine import parse_bundle, receive

DOCKERFILE = ".andon/Dockerfile"
DOCKERFILE_BYTES_MAX = 256 << 10
INDEX_ENTRIES_MAX = 100_000
"""Uncommitted changes are looked for in indexes up to this size."""
HASHED_BYTES_MAX = 16 << 20
"""A touched file larger than this counts as changed without being read."""

_ATTRIBUTES_FILES_MAX = 50
_ATTRIBUTES_BYTES_MAX = 64 << 10
_POINTER_BYTES_MAX = 4_096
_PARENTS_MAX = 64
_SETTINGS = r"^(user\.(name|email)|core\.(bare|worktree)|extensions\.partialclone|remote\..*\.promisor)$"
_INDEX_ENTRY = re.compile(
    r"(?P<mode>\d{6}) (?P<sha>[0-9a-f]{40}) (?P<stage>\d)\t(?P<path>[^\0]*)\0"
    r"  ctime: [^\n]*\n  mtime: (?P<seconds>\d+):(?P<nanoseconds>\d+)\n[^\n]*\n[^\n]*\n  size: (?P<size>\d+)\tflags: (?P<flags>[0-9a-f]+)\n"
)
_SKIP_WORKTREE = 1 << 30


class Snapshot(Frozen):
    """The base commit of a run and what the repository says about itself."""

    commit: Sha
    base_name: str
    """What the person asked for: the revision, else the current branch, else HEAD."""
    pack: bytes = Field(repr=False)
    """The commit without history, as `Mirror.import_base` takes it."""
    author_name: str = ""
    author_email: str = ""
    """What git itself would put into a commit here; empty if nobody said."""
    branches: tuple[str, ...] = ()
    """`andon` and `andon/*`."""
    dirty: bool = False
    """Tracked files differ from HEAD; they are not part of the base (DECISIONS D16)."""
    dockerfile: bytes | None = Field(None, repr=False)
    """`.andon/Dockerfile` of the base commit."""
    notices: tuple[str, ...] = ()
    """One line each, for the person."""

    @property
    def dockerfile_sha256(self) -> str | None:
        """Return what a person consents to (DECISIONS D11)."""
        return None if self.dockerfile is None else hashlib.sha256(self.dockerfile).hexdigest()


async def snapshot(repository: Path, rev: str | None, *, home: Path | None = None) -> Snapshot:
    """Read the commit a run starts from; nothing in the repository is written.

    Args:
        repository: A work tree (linked ones too), a directory in one, or a bare repository.
        rev: Any revision git understands; None: HEAD.
        home: Where the person's own git configuration is, for the author; None: the owner's home directory.

    Raises:
        UsageError: Not a repository, no commit, no such revision, a partial clone, or not SHA-1.
        GitError: Git failed.
    """
    return await in_thread(_snapshot, repository, rev, home)


async def deliver(repository: Path, branch: str, commit: str, base: str, git_bundle: bytes) -> None:
    """Make `branch` at `commit`, which comes in `git_bundle` on top of `base`; if it is there already, do nothing.

    Raises:
        ConflictError: The branch exists elsewhere, a name is in its way, or the base commit is gone.
        RejectedBundle: The git bundle is not that commit.
        UsageError: Not a repository.
        GitError: Git failed, e.g. the repository cannot be written.
    """
    await in_thread(_deliver, repository, f"refs/heads/{branch}", checked_sha(commit), checked_sha(base), git_bundle)


@dataclass(frozen=True)
class _Located:
    """Where the parts of the user's repository are."""

    git_dir: Path
    """With the HEAD and index of this work tree."""
    common_dir: Path
    """With objects and refs."""
    work_tree: Path | None
    owner: Owner | None
    """Set if we are root and the repository is not root's."""

    @property
    def git(self) -> Git:
        return Git(self.git_dir, run_as=self.owner)


def _snapshot(repository: Path, rev: str | None, home: Path | None) -> Snapshot:
    require_version()
    located = _locate(repository)
    git = located.git
    _require_sha1(git, repository)
    settings = _settings(replace(git, home=home or _home_of(located.owner)))
    if any(key == "extensions.partialclone" or key.endswith(".promisor") for key in settings):
        raise UsageError(
            f"{repository} is a partial clone: some files are not in it; make a full clone, or fetch with --refetch --no-filter"
        )
    commit = _commit_of(git, rev, repository)
    entries = list_tree(git, commit)
    dirty = located.work_tree is not None and "core.worktree" not in settings and _is_dirty(git, located.git_dir, located.work_tree)
    branches = tuple(ref.removeprefix("refs/heads/") for ref in list_refs(git, "refs/heads/andon"))
    with objects_reader(git) as reader:
        dockerfile = None
        if DOCKERFILE in entries and entries[DOCKERFILE].mode.startswith("100"):
            if (entries[DOCKERFILE].size_bytes or 0) > DOCKERFILE_BYTES_MAX:
                raise UsageError(f"{DOCKERFILE} of {commit} has more than {DOCKERFILE_BYTES_MAX} bytes")
            dockerfile = reader.one(entries[DOCKERFILE].sha)
        targets = {
            path: reader.one(entry.sha)
            for path, entry in entries.items()
            if entry.mode == "120000" and (entry.size_bytes or 0) <= LINK_TARGET_BYTES_MAX
        }
        attributes = [reader.one(entry.sha) for entry in _attribute_files(entries)]
    return Snapshot(
        commit=commit,
        base_name=rev or _branch_of(git) or "HEAD",
        pack=pack_of(git, commit),
        author_name=settings.get("user.name", ""),
        author_email=settings.get("user.email", ""),
        branches=branches,
        dirty=dirty,
        dockerfile=dockerfile,
        notices=tuple(_notices(located, entries, targets, attributes, dirty)),
    )


def _deliver(repository: Path, ref: str, commit: str, base: str, git_bundle: bytes) -> None:
    located = _locate(repository)
    git = Git(located.common_dir, run_as=located.owner)
    found = read_ref(git, ref)
    if found == commit:
        return
    if found is not None:
        raise ConflictError(f"branch {ref.removeprefix('refs/heads/')} of {repository} exists already, at {found}")
    if sizes(git, [base]).get(base, ("", 0))[0] != "commit":
        raise ConflictError(f"the base commit {base} is no longer in {repository}; the result stays in Andon's mirror")
    if parse_bundle(git_bundle, base)[0] != commit:
        raise RejectedBundle(f"the git bundle does not hold {commit}")
    receive(git, git_bundle, base, TreeLimits())
    update_ref(git, ref, commit, None)


def _locate(repository: Path) -> _Located:
    """Find the git directory as git does, from `repository` upwards, without asking git, which would read more than that."""
    start = repository.absolute()
    if not start.is_dir():
        raise UsageError(f"{repository} is not a directory")
    for directory in [start, *start.parents][:_PARENTS_MAX]:
        dot_git = directory / ".git"
        if dot_git.is_dir() and _is_git_dir(dot_git):
            return _located(dot_git, directory)
        if dot_git.is_file():
            pointed_at = directory / _pointer(dot_git, "gitdir: ")
            if not _is_git_dir(pointed_at):
                raise UsageError(f"{dot_git} points at {pointed_at}, which is not a git directory; try `git worktree repair`")
            return _located(pointed_at, directory)
        if _is_git_dir(directory):
            return _located(directory, None)
    raise UsageError(f"{repository} is not a git repository; run `git init` and commit there, or name another one")


def _located(git_dir: Path, work_tree: Path | None) -> _Located:
    shared = git_dir / "commondir"
    common_dir = git_dir / _pointer(shared, "") if shared.is_file() else git_dir
    common_dir = common_dir.resolve()
    found = common_dir.stat()
    owner = Owner(found.st_uid, found.st_gid) if os.geteuid() == 0 and found.st_uid != 0 else None
    return _Located(git_dir=git_dir.resolve(), common_dir=common_dir, work_tree=work_tree, owner=owner)


def _is_git_dir(path: Path) -> bool:
    has_objects = (path / "objects").is_dir() or (path / "commondir").is_file()
    return has_objects and ((path / "refs").is_dir() or (path / "commondir").is_file()) and (path / "HEAD").is_file()


def _pointer(path: Path, prefix: str) -> str:
    """Return what a one-line file of git's points at."""
    with path.open("rb") as pointer:
        line = os.fsdecode(pointer.read(_POINTER_BYTES_MAX)).rstrip("\r\n")
    if not line.startswith(prefix):
        raise UsageError(f"{path} is not a file git wrote")
    return line.removeprefix(prefix)


def _require_sha1(git: Git, repository: Path) -> None:
    try:
        object_format = git.text("rev-parse", "--show-object-format")
    except GitError as error:
        raise UsageError(f"git cannot read {repository}: {error}") from error
    if object_format != "sha1":
        raise UsageError(f"{repository} is a {object_format} repository; only SHA-1 ones are supported")


def _settings(git: Git) -> dict[str, str]:
    """Return the settings we need, the last value of each."""
    # Exit code 1 means that none is set.
    output = git.run("config", "-z", "--get-regexp", "--end-of-options", _SETTINGS, ok_codes=(0, 1)).decode("utf-8", "replace")
    return {key: value for key, _, value in (line.partition("\n") for line in output.split("\0")[:-1])}


def _home_of(owner: Owner | None) -> Path | None:
    try:
        return Path(pwd.getpwuid(owner.uid if owner else os.geteuid()).pw_dir)
    except KeyError:  # a user without an account, as in containers
        return None


def _commit_of(git: Git, rev: str | None, repository: Path) -> str:
    wanted = f"{'HEAD' if rev is None else rev}^{{commit}}"
    answer = git.run("rev-parse", "--verify", "--quiet", "--end-of-options", wanted, ok_codes=(0, 1, 128)).decode().strip()
    if answer:
        return checked_sha(answer)
    if rev is None:
        raise UsageError(f"{repository} has no commits on its current branch; commit something first, or use --base")
    raise UsageError(f"{repository} has no commit {rev!r}")


def _branch_of(git: Git) -> str:
    return git.run("symbolic-ref", "--quiet", "--short", "HEAD", ok_codes=(0, 1)).decode("utf-8", "replace").strip()


def _attribute_files(entries: Mapping[str, Entry]) -> list[Entry]:
    found = [entry for path, entry in entries.items() if path.rpartition("/")[2] == ".gitattributes" and entry.mode.startswith("100")]
    return [entry for entry in found if (entry.size_bytes or 0) <= _ATTRIBUTES_BYTES_MAX][:_ATTRIBUTES_FILES_MAX]


def _notices(
    located: _Located, entries: Mapping[str, Entry], targets: Mapping[str, bytes], attributes: list[bytes], dirty: bool
) -> Iterator[str]:
    if dirty:
        yield "uncommitted changes are not part of the run; commit them first if they should be"
    if any(b"filter=lfs" in data for data in attributes):
        yield "files kept by Git LFS are pointers in the sandbox"
    submodules = [path for path, entry in entries.items() if entry.mode == "160000"]
    if submodules:
        yield f"{len(submodules)} submodule(s) stay as they are and are empty in the sandbox: {_some(submodules)}"
    limits = TreeLimits()
    others = [
        path
        for path, entry in entries.items()
        if entry.mode != "160000" and withheld(path, entry, targets.get(path, b"/"), limits) is not None
    ]
    if others:
        yield f"{len(others)} file(s) stay as they are and are not given to agents: {_some(others)}"
    if located.owner is None and not os.access(located.common_dir / "objects", os.W_OK):
        yield f"{located.common_dir} cannot be written by you: the result will stay in Andon's mirror"


def _some(paths: list[str]) -> str:
    return ", ".join(shown(path) for path in paths[:5]) + (", …" if len(paths) > 5 else "")


def _is_dirty(git: Git, git_dir: Path, work_tree: Path) -> bool:
    """Return whether tracked files differ from HEAD, in the index or on disk.

    `git status` would run the user's filters and rewrite the index; so the index is listed by git, and the files are
    compared here: by size and time, else by content. A line-ending or filter conversion looks like a change to a file
    that was touched; untracked files are not looked for.
    """
    if not (git_dir / "index").is_file():
        return False
    listing = git.run("ls-files", "--stage", "--debug", "-z").decode("utf-8", "surrogateescape")
    index = [found.groupdict() for found in _INDEX_ENTRY.finditer(listing)]
    if len(index) > INDEX_ENTRIES_MAX:
        return False
    head = git.run("rev-parse", "--verify", "--quiet", "--end-of-options", "HEAD^{commit}", ok_codes=(0, 1)).decode().strip()
    committed = {path: (entry.mode, entry.sha) for path, entry in list_tree(git, head).items()} if head else {}
    staged = {entry["path"]: (entry["mode"], entry["sha"]) for entry in index}
    return staged != committed or any(entry["stage"] != "0" or _is_modified(work_tree, entry) for entry in index)


def _is_modified(work_tree: Path, entry: Mapping[str, str]) -> bool:
    if entry["mode"] == "160000" or int(entry["flags"], 16) & _SKIP_WORKTREE:
        return False
    path = work_tree / entry["path"]
    try:
        found = path.lstat()
    except OSError:
        return True
    if stat.S_ISLNK(found.st_mode):
        return entry["mode"] != "120000" or blob_sha(os.fsencode(path.readlink())) != entry["sha"]
    if not stat.S_ISREG(found.st_mode) or entry["mode"] == "120000":
        return True
    recorded_ns = int(entry["seconds"]) * 10**9 + int(entry["nanoseconds"])
    if found.st_size == int(entry["size"]) and found.st_mtime_ns == recorded_ns:
        return False
    if found.st_size > HASHED_BYTES_MAX:
        return True
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        return blob_sha(file.read(HASHED_BYTES_MAX + 1)) != entry["sha"]
