"""A new commit into a store by one `git fast-import`, which works while its files become known; not what is in them."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from sandbox.contract.errors import GitError
from sandbox.git.formats import Identity, clean_message, is_sha, quoted
from sandbox.git.process import Git, Owner, RunningGit

NO_OBJECT = "0" * 40
TIMEOUT_S = 300.0
"""From the first bytes to the commit."""
ABANDONED_S = 3_600.0
"""Age at which what an import left behind belongs to nobody: far above `TIMEOUT_S`."""

_PREFIX = "tmp_objdir-andon-"  # in `objects`, named as git names its own: every git passes over it
_BUFFER_BYTES = 256 << 10
_ANSWER_BYTES_MAX = 4_096
_LAST_OF_A_PACK = (".pack", ".rev", ".idx")


@dataclass
class ImportStream:
    """What becomes one commit of `git`'s store; use it in a `with`.

    Git writes into a directory of its own beside the store's objects. Only `commit` gives them to the store: of a stream that
    ends before, whatever the reason, no object stays and no process lives.
    """

    git: Git
    timeout_s: float = TIMEOUT_S
    _buffer: bytearray = field(default_factory=bytearray)
    _marks: int = 0
    _process: RunningGit | None = None
    _made: Path = Path("/nonexistent")
    _lifetime: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lifetime.close()

    def blob(self, data: bytes) -> str:
        """Add a file's bytes and return the reference for `commit`; waits while git is behind.

        Raises:
            GitError: Git broke off.
        """
        self._marks += 1
        if len(data) < _BUFFER_BYTES:
            self._write(b"blob\nmark :%d\ndata %d\n%b\n" % (self._marks, len(data), data))
        else:  # not copied once more
            self._write(b"blob\nmark :%d\ndata %d\n" % (self._marks, len(data)))
            self._sent().send(data)
            self._write(b"\n")
        return f":{self._marks}"

    def commit(
        self,
        *,
        parent: str,
        deleted: Iterable[str],
        written: Iterable[tuple[str, str, str]],
        message: str,
        author: Identity,
        committer: Identity,
        at: int,
    ) -> str:
        """Make a commit of the parent's tree with edits and return its id; no ref is left behind. Ends the stream.

        Args:
            parent: The only parent.
            deleted: Paths taken out, before anything is written.
            written: (mode, reference from `blob` or a blob's sha, path).
            message: The commit's message.
            author: Who wrote it.
            committer: Who recorded it.
            at: Seconds since 1970, for both.

        Raises:
            GitError: Git failed.
        """
        ref = f"refs/andon/tmp/{os.urandom(8).hex()}"
        text = clean_message(message)
        self._write(b"commit %s\nmark :%d\n" % (ref.encode(), self._marks + 1))
        self._write(f"author {author.name} <{author.email}> {at} +0000\n".encode())
        self._write(f"committer {committer.name} <{committer.email}> {at} +0000\n".encode())
        self._write(b"data %d\n%s\nfrom %s\n" % (len(text), text, parent.encode()))
        for path in deleted:
            self._write(b"D %s\n" % quoted(path))
        for mode, reference, path in written:
            self._write(b"M %s %s %s\n" % (mode.encode(), reference.encode(), quoted(path)))
        self._write(b"\nget-mark :%d\nreset %s\nfrom %s\n\ndone\n" % (self._marks + 1, ref.encode(), NO_OBJECT.encode()))
        process = self._sent()
        answer = process.stdout.read(_ANSWER_BYTES_MAX).decode("utf-8", "replace").strip()
        process.wait()
        if not is_sha(answer):
            raise GitError("git fast-import gave no commit")
        try:
            hand_over(self._made, self.git.git_dir / "objects")
        except OSError as error:
            raise GitError(f"commit {answer} cannot be moved to {self.git.git_dir}: {error.strerror}") from error
        return answer

    def _write(self, data: bytes) -> None:
        if len(self._buffer) + len(data) > _BUFFER_BYTES:
            self._sent()
        self._buffer += data

    def _sent(self) -> RunningGit:
        """Hand what is buffered to git."""
        process = self._running()
        process.send(self._buffer)
        self._buffer.clear()
        return process

    def _running(self) -> RunningGit:
        """Return git, started when it first has something to do."""
        if self._process is None:
            objects = self.git.git_dir / "objects"
            self._made = self._lifetime.enter_context(_directory_in(objects, self.git.run_as))
            beside = replace(self.git, objects=self._made, alternates=objects)
            # No deltas: each file would be compared with the one before it, which takes 40 % of the time and saves nothing.
            options = ("--quiet", "--done", "--date-format=raw", "--depth=0")
            self._process = self._lifetime.enter_context(beside.running("fast-import", *options, timeout_s=self.timeout_s))
        return self._process


@contextmanager
def _directory_in(objects: Path, owner: Owner | None) -> Iterator[Path]:
    try:
        made = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=objects, ignore_cleanup_errors=True)
        if owner is not None:
            os.chown(made.name, owner.uid, owner.gid)
    except OSError as error:
        raise GitError(f"nothing can be written to {objects}: {error.strerror}") from error
    with made as name:
        yield Path(name)


def remove_abandoned_imports(git_dir: Path) -> None:
    """Remove what killed imports left, and git's reports of those that failed, once it is `ABANDONED_S` old."""
    for path in (*(git_dir / "objects").glob(f"{_PREFIX}*"), *git_dir.glob("fast_import_crash_*")):
        with suppress(FileNotFoundError):  # its import has just ended
            if time.time() - path.lstat().st_mtime <= ABANDONED_S:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def hand_over(made: Path, objects: Path) -> None:
    """Move what git made into a store on the same file system; what the store has already stays as it is.

    Packs come last and their indexes after them, as in git: who finds an index finds its pack, and who finds a tree its files.
    """
    for directory in sorted(made.iterdir(), key=lambda path: path.name == "pack"):
        into = objects / directory.name
        into.mkdir(exist_ok=True)
        for path in sorted(directory.iterdir(), key=_turn):
            if not (into / path.name).exists():
                path.rename(into / path.name)


def _turn(path: Path) -> int:
    return _LAST_OF_A_PACK.index(path.suffix) if path.suffix in _LAST_OF_A_PACK else -1
