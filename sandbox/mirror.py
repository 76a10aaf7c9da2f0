"""Bare repositories we own: base commits in, results in and out, new commits, refs; never the user's repository.

A base commit arrives without its history (DECISIONS D1) and is listed in the mirror's `shallow` file. Nothing here runs a
hook, reads a work tree or collects garbage, so an object that was written stays. Not responsible for judging what
arrives (`quarantine`) nor for what may land (`supervisor/gates`).
"""

import fcntl
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from sandbox.contract.errors import ConflictError, GitError, Rejected
from sandbox.contract.scope import checked_path
from sandbox.contract.tree import Change, Entry
from sandbox.contract.tree_rules import TreeLimits, collision
from sandbox.git import (
    ANDON,
    NO_OBJECT,
    Git,
    Identity,
    ImportStream,
    ObjectReader,
    checked_sha,
    commit_tree,
    in_thread,
    list_tree,
    objects_reader,
    remove_abandoned_imports,
    require_version,
    sizes,
)
from sandbox.quarantine import BUNDLE_HEADER, RESULT_REF, changes_between, receive

PACK_BYTES_MAX = 1 << 30
"""A base commit's files, compressed."""
REF_CHARS_MAX = 240

_REF = re.compile(r"refs/(?:andon|heads)(?:/[^\x00-\x20\x7f~^:?*\[\\/@.-](?:[^\x00-\x20\x7f~^:?*\[\\/@.]|\.(?!\.|/|$|lock(?:/|$)))*)*")
"""Git's rules for ref names (git-check-ref-format), somewhat narrower: no `@`, no component that begins with `-`."""

_T = TypeVar("_T")


class Mirror:
    """A bare repository; `await Mirror.open(path)`. Methods may be used concurrently, also by several processes.

    Every method raises `GitError` when git itself fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.git = Git(path)

    @classmethod
    async def open(cls, path: Path) -> "Mirror":
        """Open the mirror at `path`, made if it is absent (its parent directory exists)."""
        mirror = cls(path)
        await in_thread(mirror._create)
        return mirror

    async def import_base(self, commit: str, pack: bytes) -> None:
        """Take in one commit without its history; a commit that was imported before is left as it is.

        It is kept by `refs/andon/base/<sha>`.

        Raises:
            GitError: The pack is broken or does not hold the commit.
        """
        await in_thread(self._import_base, checked_sha(commit), pack)

    async def pack_of(self, commit: str) -> bytes:
        """Return one commit and its tree without history, as `import_base` takes it."""
        return await in_thread(pack_of, self.git, commit)

    async def inspect(self, commits: Sequence[str], fn: Callable[..., _T]) -> _T:
        """Call `fn(*trees)`, one `Tree` for each commit, in a thread; the trees are good only during the call."""
        return await in_thread(self._inspect, commits, fn)

    async def changes(self, base: str, commit: str) -> list[Change]:
        """Return what differs between two commits, sorted by path; renames are a deletion and an addition."""
        return await in_thread(changes_between, self.git, base, commit)

    async def patch(self, base: str, commit: str, bytes_max: int) -> str:
        """Return the textual difference, at most `bytes_max` bytes; a longer one ends with a line that says so."""
        return await in_thread(self._patch, base, commit, bytes_max)

    async def commit_like(self, tree_of: str, parent: str, *, message: str, author: Identity, committer: Identity, at: int) -> str:
        """Record the tree of commit `tree_of` as a new commit on `parent` and return its id.

        Args:
            tree_of: The commit whose tree is taken.
            parent: The new commit's only parent.
            message: Its message.
            author: Who wrote it.
            committer: Who recorded it.
            at: Seconds since 1970; the same arguments give the same id.
        """
        return await in_thread(self._commit_like, tree_of, parent, message=message, author=author, committer=committer, at=at)

    async def commit_files(
        self, parent: str, files: Mapping[str, bytes | None], *, message: str, author: Identity, committer: Identity, at: int
    ) -> str:
        """Record the tree of `parent` with files written (bytes) or deleted (None) and return the new commit's id.

        A file keeps its exec bit; a new one has none.

        Raises:
            UnsafePath: A path is absolute, climbs, or touches `.git`.
        """
        return await in_thread(self._commit_files, parent, files, message=message, author=author, committer=committer, at=at)

    async def join(self, base: str, commits: Sequence[str], *, at: int) -> str:
        """Return one commit on `base` with the changes of all `commits`, which must be disjoint (DECISIONS G24).

        Two commits that make the very same change do not conflict.

        Raises:
            ConflictError: Two of them change the same path in different ways, or paths that cannot be together.
        """
        return await in_thread(self._join, base, commits, at)

    async def receive(self, bundle: bytes, base: str, limits: TreeLimits) -> str:
        """Take in an executor's git bundle through quarantine and return the one commit it holds, on top of `base`.

        Raises:
            RejectedBundle: It breaks a rule; nothing of it is in the mirror.
        """
        return await in_thread(receive, self.git, bundle, base, limits)

    async def bundle_of(self, commit: str, base: str) -> bytes:
        """Return a git bundle (v2) with `commit` as its one ref `refs/andon/result` and `base` as prerequisite."""
        return await in_thread(self._bundle_of, commit, base)

    async def update_ref(self, ref: str, new: str, old: str | None) -> None:
        """Move a ref of `refs/andon/` or `refs/heads/` from `old` to `new`, or make it if `old` is None.

        Raises:
            ConflictError: The ref is not at `old`, exists although `old` is None, or another ref is in its way.
        """
        await in_thread(update_ref, self.git, ref, new, old)

    async def read_ref(self, ref: str) -> str | None:
        """Return the commit a ref points at, or None."""
        return await in_thread(read_ref, self.git, ref)

    async def list_refs(self, prefix: str) -> dict[str, str]:
        """Return the refs at or below `prefix` (whole components) with their commits."""
        return await in_thread(list_refs, self.git, prefix)

    def _create(self) -> None:
        require_version()
        with self._locked():
            self.git.run("init", "--quiet", "--bare", "--template=", "--initial-branch=main")
            remove_abandoned_imports(self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the mirror's own lock, which git does not know, against our other processes."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.path / "andon.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _import_base(self, commit: str, pack: bytes) -> None:
        ref = f"refs/andon/base/{commit}"
        if read_ref(self.git, ref) is not None:
            return
        self.git.run("index-pack", "--stdin", f"--max-input-size={PACK_BYTES_MAX}", stdin=pack, timeout_s=600)
        with self._locked():
            shallow = self.path / "shallow"
            listed = shallow.read_text().split() if shallow.exists() else []
            if commit not in listed:
                fresh = self.path / "shallow.andon"
                fresh.write_text("".join(f"{sha}\n" for sha in [*listed, commit]))
                fresh.replace(shallow)
        if sizes(self.git, [commit]).get(commit, ("", 0))[0] != "commit":
            raise GitError(f"the pack does not hold commit {commit}")
        # The ref comes last: a crash before it makes the next import do all of this again.
        self.git.run("update-ref", "--no-deref", "--end-of-options", ref, commit)

    def _inspect(self, commits: Sequence[str], fn: Callable[..., _T]) -> _T:
        with ExitStack() as stack:
            reader = stack.enter_context(objects_reader(self.git))
            return fn(*(_GitTree(self.git, reader, commit) for commit in commits))

    def _patch(self, base: str, commit: str, bytes_max: int) -> str:
        options = ("-p", "--text", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--ignore-submodules=none")
        shas = (checked_sha(base), checked_sha(commit))
        output = self.git.run("diff-tree", "-r", *options, "--end-of-options", *shas, output_bytes_max=bytes_max + 1, truncate=True)
        text = output[:bytes_max].decode("utf-8", "replace")
        return text if len(output) <= bytes_max else f"{text}\n[the difference is longer than {bytes_max} bytes and was cut here]\n"

    def _commit_like(self, tree_of: str, parent: str, *, message: str, author: Identity, committer: Identity, at: int) -> str:
        tree = self.git.text("rev-parse", "--verify", "--end-of-options", f"{checked_sha(tree_of)}^{{tree}}")
        return commit_tree(self.git, tree, [parent], message=message, author=author, committer=committer, at=at)

    def _commit_files(
        self, parent: str, files: Mapping[str, bytes | None], *, message: str, author: Identity, committer: Identity, at: int
    ) -> str:
        before = list_tree(self.git, parent)
        with ImportStream(self.git) as stream:
            written = []
            for path, data in files.items():
                checked_path(path)
                if data is not None:
                    mode = "100755" if path in before and before[path].mode == "100755" else "100644"
                    written.append((mode, stream.blob(data), path))
            deleted = [path for path, data in files.items() if data is None]
            return stream.commit(
                parent=parent, deleted=deleted, written=written, message=message, author=author, committer=committer, at=at
            )

    def _join(self, base: str, commits: Sequence[str], at: int) -> str:
        union: dict[str, Change] = {}
        clashing: set[str] = set()
        for commit in commits:
            for change in changes_between(self.git, base, commit):
                if union.setdefault(change.path, change) != change:
                    clashing.add(change.path)
        clashing |= _paths_in_the_way(list_tree(self.git, base), union)
        if clashing:
            named = ", ".join(sorted(clashing)[:10])
            raise ConflictError(f"parallel stages changed the same {len(clashing)} path(s): {named}")
        with ImportStream(self.git) as stream:
            return stream.commit(
                parent=base,
                deleted=[path for path, change in union.items() if change.new is None],
                written=[(change.new.mode, change.new.sha, path) for path, change in union.items() if change.new is not None],
                message="join",
                author=ANDON,
                committer=ANDON,
                at=at,
            )

    def _bundle_of(self, commit: str, base: str) -> bytes:
        revisions = f"{checked_sha(commit)}\n^{checked_sha(base)}\n".encode()
        options = ("--revs", "--thin", "--stdout", "--quiet", "--delta-base-offset")
        pack = self.git.run("pack-objects", *options, stdin=revisions, output_bytes_max=PACK_BYTES_MAX, timeout_s=300)
        return BUNDLE_HEADER + f"-{base}\n{commit} {RESULT_REF}\n\n".encode() + pack


class _GitTree:
    """A commit's tree (`contract.tree.Tree`) read through an open `cat-file`."""

    def __init__(self, git: Git, reader: ObjectReader, commit: str) -> None:
        self._git, self._reader, self._commit = git, reader, checked_sha(commit)
        self._entries: dict[str, Entry] | None = None

    @property
    def commit(self) -> str:
        return self._commit

    def entries(self) -> Mapping[str, Entry]:
        if self._entries is None:
            self._entries = list_tree(self._git, self._commit)
        return self._entries

    def read(self, path: str, bytes_max: int = 1 << 20) -> bytes:
        entry = self.entries()[path]
        if not entry.mode.startswith("100"):
            raise KeyError(path)
        if (entry.size_bytes or 0) > bytes_max:
            raise Rejected(f"{path} has {entry.size_bytes} bytes; at most {bytes_max} are read")
        return self._reader.one(entry.sha)


def pack_of(git: Git, commit: str) -> bytes:
    """Return one commit and its tree without history, as a pack (DECISIONS D1); of any repository.

    Raises:
        GitError: No such commit, or the pack is larger than `PACK_BYTES_MAX`.
    """
    listing = git.run("rev-list", "--objects", "--no-walk", "--end-of-options", checked_sha(commit))
    return git.run(
        "pack-objects", "--stdout", "--quiet", "--delta-base-offset", stdin=listing, output_bytes_max=PACK_BYTES_MAX, timeout_s=600
    )


def update_ref(git: Git, ref: str, new: str, old: str | None) -> None:
    """Move a ref by compare-and-swap, without following it and without a reflog; see `Mirror.update_ref`.

    Raises:
        ConflictError: The ref is not at `old`, exists although `old` is None, or another ref is in its way.
        GitError: The name is not one of ours, or git failed.
    """
    _checked_ref(ref)
    expected = checked_sha(old) if old is not None else NO_OBJECT
    try:
        git.run("update-ref", "--no-deref", "--end-of-options", ref, checked_sha(new), expected)
    except GitError as error:
        if "cannot lock ref" not in str(error):
            raise
        found = read_ref(git, ref)
        if found == old:
            raise ConflictError(f"{ref} cannot be written: another ref or a lock is in its way ({error})") from error
        raise ConflictError(f"{ref} is at {found or 'nothing'}, not at {old or 'nothing'}") from error


def read_ref(git: Git, ref: str) -> str | None:
    """Return the object a ref points at, or None if there is no such ref."""
    return list_refs(git, ref).get(ref)


def list_refs(git: Git, prefix: str) -> dict[str, str]:
    """Return the refs at or below `prefix` with the objects they point at."""
    _checked_ref(prefix.rstrip("/"))
    lines = git.text("for-each-ref", "--format=%(objectname) %(refname)", "--end-of-options", prefix.rstrip("/")).splitlines()
    return {ref: sha for sha, _, ref in (line.partition(" ") for line in lines)}


def _checked_ref(ref: str) -> str:
    if len(ref) > REF_CHARS_MAX or not _REF.fullmatch(ref):
        raise GitError(f"{ref[:100]!r} is not a ref we touch")
    return ref


def _paths_in_the_way(base: Mapping[str, Entry], union: Mapping[str, Change]) -> set[str]:
    """Return paths of the union that need a directory where another leaf is, or differ from another only by case."""
    final = {path for path in base if path not in union} | {path for path, change in union.items() if change.new is not None}
    written = {path for path, change in union.items() if change.new is not None}
    in_the_way = {path for path in written if any(path[:at] in final for at, char in enumerate(path) if char == "/")}
    pair = collision(final, {path for path in written if path not in base})
    return in_the_way | set(pair or ())


__all__ = ["PACK_BYTES_MAX", "Mirror", "list_refs", "pack_of", "read_ref", "update_ref"]
