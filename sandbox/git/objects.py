"""Objects of a store: listings, contents, sizes, a commit of a tree; not how git is run (`process`)."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sandbox.contract.errors import GitError
from sandbox.contract.tree import Entry
from sandbox.git.formats import Identity, checked_sha, clean_message, identity_variables
from sandbox.git.process import Git, RunningGit

LISTING_BYTES_MAX = 128 << 20
"""A listing of 250,000 paths of 400 bytes."""


@contextmanager
def objects_reader(git: Git, timeout_s: float = 600.0) -> Iterator["ObjectReader"]:
    """Hold one `cat-file` open that is asked for one object after another; `timeout_s` bounds the whole of its use."""
    with git.running("cat-file", "--batch", timeout_s=timeout_s) as process:
        yield ObjectReader(process)


@contextmanager
def objects_stream(git: Git, shas: Sequence[str], timeout_s: float = 600.0) -> Iterator["ObjectStream"]:
    """Read many objects that are known beforehand; `timeout_s` bounds the whole of it."""
    with tempfile.TemporaryFile() as requests:
        requests.write("".join(f"{checked_sha(sha)}\n" for sha in shas).encode("ascii"))
        requests.seek(0)
        # Buffered: one write of git's for 40 small files instead of three for each.
        with git.running("cat-file", "--batch", "--buffer", stdin=requests, timeout_s=timeout_s) as process:
            yield ObjectStream(process, shas)


def list_tree(git: Git, commit: str, *, output_bytes_max: int = LISTING_BYTES_MAX) -> dict[str, Entry]:
    """Return every leaf of a commit's tree by path (UTF-8, surrogateescape), in git's order.

    Raises:
        GitError: No such commit.
        GitOutputTooLarge: The listing is longer than `output_bytes_max`.
    """
    output = git.run("ls-tree", "-r", "-z", "-l", "--full-tree", "--end-of-options", checked_sha(commit), output_bytes_max=output_bytes_max)
    entries: dict[str, Entry] = {}
    for line in output.decode("utf-8", "surrogateescape").split("\0")[:-1]:
        meta, _, path = line.partition("\t")
        mode, _, sha, size = meta.split()
        entries[path] = Entry(mode, sha, None if size == "-" else int(size))
    return entries


def sizes(git: Git, shas: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return (type, size in bytes) of each object that exists."""
    output = git.run("cat-file", "--batch-check", stdin="".join(f"{checked_sha(sha)}\n" for sha in shas).encode())
    found: dict[str, tuple[str, int]] = {}
    for line in output.decode().splitlines():
        parts = line.split()
        if len(parts) == 3:
            found[parts[0]] = (parts[1], int(parts[2]))
    return found


def commit_tree(git: Git, tree: str, parents: Sequence[str], *, message: str, author: Identity, committer: Identity, at: int) -> str:
    """Record a tree as a commit and return its id.

    Raises:
        GitError: The tree or a parent does not exist.
    """
    options = [option for parent in parents for option in ("-p", checked_sha(parent))]
    env = {**identity_variables("AUTHOR", author, at), **identity_variables("COMMITTER", committer, at)}
    return git.run("commit-tree", *options, "--end-of-options", checked_sha(tree), stdin=clean_message(message), env=env).decode().strip()


class _Batch:
    """The answers of one `cat-file --batch`."""

    def __init__(self, process: RunningGit) -> None:
        self._process = process
        self._left_bytes = 0

    def read(self) -> bytes:
        """Return the rest of the current object, whose size the caller has seen."""
        return b"".join(self.chunks(self._left_bytes))

    def chunks(self, chunk_bytes: int = 1 << 20) -> Iterator[bytes]:
        """Yield the rest of the current object."""
        while self._left_bytes:
            is_last = self._left_bytes <= chunk_bytes
            wanted = self._left_bytes + 1 if is_last else chunk_bytes  # with the newline after an object
            data = self._process.stdout.read(wanted)
            if len(data) < wanted:
                raise self._process.failure()
            self._left_bytes = 0 if is_last else self._left_bytes - chunk_bytes
            yield data[:-1] if is_last else data

    def _next_header(self, sha: str) -> int:
        line = self._process.stdout.readline(200)
        found = re.fullmatch(rb"[0-9a-f]{40} (?:blob|tree|commit|tag) ([0-9]+)\n", line)
        if found is None:
            if line.endswith(b" missing\n"):
                raise GitError(f"object {sha} is not in this repository")
            raise self._process.failure()
        self._left_bytes = int(found[1])
        if not self._left_bytes:
            self._process.stdout.read(1)
        return int(found[1])


class ObjectReader(_Batch):
    """Objects one after another, each asked for when it is needed."""

    def one(self, sha: str) -> bytes:
        """Return one object's bytes.

        Raises:
            GitError: It is missing or git broke off.
        """
        self._process.send(f"{checked_sha(sha)}\n".encode("ascii"))
        self._next_header(sha)
        return self.read()


class ObjectStream(_Batch):
    """Objects in the order that was asked for: iterate, and take each with `read` or `chunks`, else it is skipped."""

    def __init__(self, process: RunningGit, shas: Sequence[str]) -> None:
        super().__init__(process)
        self._shas = shas

    def __iter__(self) -> Iterator[int]:
        """Yield the size in bytes of each object; a missing one or a git that broke off is a GitError."""
        for sha in self._shas:
            yield self._next_header(sha)
            for _ in self.chunks():
                pass  # whatever the caller left
