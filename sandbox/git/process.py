"""Run git: fixed environment, list argv, allow-listed verbs, every wait and output bounded.

Git is never pointed at a tree an agent wrote, never runs hooks, filters, drivers, pagers or transports, and never reads
the caller's environment or configuration (SANDBOX.md §5). Not responsible for what the objects mean: `mirror` and
`quarantine` are. All functions here block; async callers use `in_thread`.
"""

import contextlib
import fcntl
import functools
import os
import re
import resource
import signal
import subprocess
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from sandbox.contract.errors import GitError
from sandbox.git.formats import ANDON, identity_variables, quoted

VERSION_REQUIRED = (2, 39, 4)
VERSION_RECOMMENDED = (2, 46, 0)
"""From here on git itself checks objects that arrive in bundles."""

TIMEOUT_S = 60.0
OUTPUT_BYTES_MAX = 64 << 20
PIPE_BYTES = 1 << 20
_KEPT_MEMORY_BYTES_MAX = 64 << 20
"""What one git may keep for its next object instead of giving it back."""

_PROGRAM = "git"  # found in the PATH of `environment`, never the caller's

_VERBS = frozenset(
    {
        "cat-file", "commit-tree", "config", "diff-tree", "fast-import", "for-each-ref", "index-pack", "init", "ls-files",
        "ls-tree", "pack-objects", "read-tree", "repack", "rev-list", "rev-parse", "symbolic-ref", "update-ref", "version",
    }
)  # fmt: skip
"""Nothing that writes a work tree, reads attributes into content, or talks to another repository."""

_READ_ONLY_FORMS = {"config": "--get-regexp", "symbolic-ref": "--quiet"}
"""Verbs that could write: the option that goes with reading has to be there."""

_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "core.symlinks": "false",
    "core.logAllRefUpdates": "false",
    "core.commitGraph": "false",
    # Blobs above this are streamed, not held: a compressed gigabyte is seen by its size before it fills memory.
    "core.bigFileThreshold": "16m",
    # Packs are mapped in small windows, so that a bound on the address space is one on memory, not on the repository.
    "core.packedGitWindowSize": "32m",
    "core.packedGitLimit": "512m",
    # Packs travel once and stay on this machine: a quarter less time for 5 % more bytes (8 MB of source code).
    "pack.compression": "1",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
    "diff.ignoreSubmodules": "none",
    "commit.gpgSign": "false",
    "log.showSignature": "false",
    "safe.bareRepository": "explicit",
}


@dataclass(frozen=True)
class Owner:
    """The user a repository belongs to; as root, git runs as this user in it."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Git:
    """A git directory and how git runs there.

    Attributes:
        git_dir: Explicit, never discovered by git.
        run_as: The user git runs as; None: the caller's.
        objects: Write new objects here instead (a quarantine).
        alternates: Also read objects from here.
        home: Where global configuration is read from; None: there is none.
    """

    git_dir: Path
    run_as: Owner | None = None
    objects: Path | None = None
    alternates: Path | None = None
    home: Path | None = None

    def run(
        self,
        verb: str,
        *args: str,
        stdin: bytes | IO[bytes] = b"",
        output_bytes_max: int = OUTPUT_BYTES_MAX,
        truncate: bool = False,
        timeout_s: float = TIMEOUT_S,
        memory_bytes_max: int | None = None,
        ok_codes: Collection[int] = (0,),
        env: Mapping[str, str] | None = None,
    ) -> bytes:
        """Run one command and return its standard output.

        Args:
            verb: One of the allowed verbs.
            args: Options, then `--end-of-options`, then everything that is not ours.
            stdin: Bytes or a file to read.
            output_bytes_max: More output kills the command.
            truncate: Return the first `output_bytes_max` bytes instead of an error.
            timeout_s: Seconds until it is killed.
            memory_bytes_max: Address space it may use; None: unlimited.
            ok_codes: Exit codes that are no failure, where a verb answers by them.
            env: Additional variables, e.g. the identity of a commit.

        Raises:
            GitError: It failed, took too long or said too much; the message holds git's last lines.
        """
        with _as_file(stdin) as source, self._process(verb, args, source, timeout_s, env) as process:
            if memory_bytes_max is not None:
                process.limit_memory(memory_bytes_max)
            output = _read_up_to(process.stdout, output_bytes_max + 1)
            if len(output) > output_bytes_max:
                if truncate:
                    return output[:output_bytes_max]
                raise GitOutputTooLarge(f"git {verb} gave more than {output_bytes_max} bytes")
            process.wait(ok_codes)
            return output

    def text(self, verb: str, *args: str, stdin: bytes = b"") -> str:
        """Run one command and return its output as text without the final newline (UTF-8, surrogateescape).

        Raises:
            GitError: It failed.
        """
        return self.run(verb, *args, stdin=stdin).decode("utf-8", "surrogateescape").removesuffix("\n")

    @contextmanager
    def running(self, verb: str, *args: str, timeout_s: float, stdin: IO[bytes] | None = None) -> Iterator["RunningGit"]:
        """Hold one command open; `timeout_s` bounds the whole of its use.

        Args:
            verb: One of the allowed verbs.
            args: As for `run`.
            timeout_s: Seconds until it is killed.
            stdin: A file to read; None: what `RunningGit.send` writes.

        Raises:
            GitError: It could not be started.
        """
        with self._process(verb, args, stdin or subprocess.PIPE, timeout_s, None) as process:
            yield process

    def environment(self) -> dict[str, str]:
        """Return the whole environment of git, built from empty (SANDBOX.md §5)."""
        values = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.home) if self.home else "/nonexistent",
            "LC_ALL": "C.UTF-8",
            "GIT_DIR": str(self.git_dir),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_ALLOW_PROTOCOL": "",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_PAGER": "cat",
            "GIT_EDITOR": ":",
            "GIT_ASKPASS": "/bin/false",
            "GIT_CONFIG_COUNT": str(len(_CONFIG)),
            # Git compresses each object with a fresh buffer of 256 KiB. The C library gives it back to the kernel every time, which
            # takes three times as long as the work itself (5,000 files: 0.44 s, so 0.10 s); bounded all the same.
            "MALLOC_TRIM_THRESHOLD_": str(_KEPT_MEMORY_BYTES_MAX),
            **identity_variables("AUTHOR", ANDON, 0),
            **identity_variables("COMMITTER", ANDON, 0),
        }
        if self.home is None:
            values["GIT_CONFIG_GLOBAL"] = "/dev/null"
        for number, (key, value) in enumerate(_CONFIG.items()):
            values[f"GIT_CONFIG_KEY_{number}"] = key
            values[f"GIT_CONFIG_VALUE_{number}"] = value
        if self.objects is not None:
            values["GIT_OBJECT_DIRECTORY"] = str(self.objects)
        if self.alternates is not None:
            values["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = quoted(str(self.alternates)).decode("utf-8", "surrogateescape")
        return values

    @contextmanager
    def _process(
        self, verb: str, args: Sequence[str], stdin: IO[bytes] | int, timeout_s: float, env: Mapping[str, str] | None
    ) -> Iterator["RunningGit"]:
        if verb not in _VERBS or (verb in _READ_ONLY_FORMS and _READ_ONLY_FORMS[verb] not in args):
            raise AssertionError(f"git {verb} is not one of the commands the host may run")
        owner = self.run_as
        with tempfile.TemporaryFile() as errors:
            try:
                child = subprocess.Popen(
                    [_PROGRAM, verb, *args],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd="/",
                    env={**self.environment(), **(env or {})},
                    start_new_session=True,
                    umask=0o022,
                    user=owner.uid if owner else None,
                    group=owner.gid if owner else None,
                    extra_groups=[] if owner else None,
                )
            except OSError as error:
                raise GitError(f"cannot start git: {error.strerror}; install git >= {dotted(VERSION_REQUIRED)}") from error
            process = RunningGit(verb, child, errors, timeout_s)
            try:
                yield process
            finally:
                process.close()


class GitOutputTooLarge(GitError):
    """A command said more than its caller is willing to read."""


class RunningGit:
    """One running git with its deadline; made and reaped by `Git`."""

    def __init__(self, verb: str, child: "subprocess.Popen[bytes]", errors: IO[bytes], timeout_s: float) -> None:
        self.stdout = cast(IO[bytes], child.stdout)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # only faster: fewer turns between the two processes
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._verb, self._child, self._errors, self._timeout_s = verb, child, errors, timeout_s
        self._expired = False
        self._timer = threading.Timer(timeout_s, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def send(self, data: bytes | bytearray) -> None:
        """Write to its standard input.

        Raises:
            GitError: It does not read any more.
        """
        stdin = cast(IO[bytes], self._child.stdin)
        try:
            stdin.write(data)
            stdin.flush()
        except BrokenPipeError as error:
            raise self.failure() from error

    def wait(self, ok_codes: Collection[int] = (0,)) -> None:
        """Wait for its end, which the deadline bounds.

        Raises:
            GitError: It did not end well.
        """
        code = self._child.wait()
        self._stop_timer()
        if code not in ok_codes:
            raise self.failure(code)

    def failure(self, code: int | None = None) -> GitError:
        """Return the error to raise when the command broke off."""
        if code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its last words are on their way
                self._child.wait(1)
        if self._expired:
            return GitError(f"git {self._verb} took longer than {self._timeout_s:g} s")
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4_096))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        said = "; ".join("".join(char for char in line if char.isprintable()) for line in lines[-3:])
        ended = "broke off" if code is None else f"failed ({code})"
        return GitError(f"git {self._verb} {ended}: {said or 'it said nothing'}"[:1_000])

    def limit_memory(self, bytes_max: int) -> None:
        """Bound the address space of the process from now on; not if it runs as another user and this host forbids it."""
        # It may have ended. Another user's repository only ever gets what our own mirror made.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            resource.prlimit(self._child.pid, resource.RLIMIT_AS, (bytes_max, bytes_max))

    def close(self) -> None:
        """Kill it if it still runs, and reap it."""
        self._stop_timer()
        if self._child.returncode is None:
            self._kill()
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # what was still buffered has no reader any more
                self._child.stdin.close()
        self.stdout.close()
        self._child.wait()

    def _expire(self) -> None:
        self._expired = True
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(self._child.pid, signal.SIGKILL)

    def _stop_timer(self) -> None:
        self._timer.cancel()
        self._timer.join()


def version() -> tuple[int, int, int]:
    """Return the version of the git on this host.

    Raises:
        GitError: There is none.
    """
    said = Git(Path("/nonexistent")).text("version")
    found = re.match(r"git version (\d+)\.(\d+)(?:\.(\d+))?", said)
    if found is None:
        raise GitError(f"git says {said[:80]!r} when asked for its version")
    return int(found[1]), int(found[2]), int(found[3] or 0)


@functools.cache
def require_version() -> None:
    """Check, once, that git is recent enough.

    Raises:
        GitError: It is older than `VERSION_REQUIRED`, whose fixes we rely on.
    """
    found = version()
    if found < VERSION_REQUIRED:
        raise GitError(f"git {dotted(found)} is too old: install git >= {dotted(VERSION_REQUIRED)}")


def dotted(number: tuple[int, int, int]) -> str:
    """Return a version as people write it."""
    return ".".join(str(part) for part in number)


@contextmanager
def _as_file(stdin: bytes | IO[bytes]) -> Iterator[IO[bytes] | int]:
    """Hand input over as a file: a pipe would need a second thread to be fed without a deadlock."""
    if not isinstance(stdin, bytes):
        yield stdin
    elif not stdin:
        yield subprocess.DEVNULL
    else:
        with tempfile.TemporaryFile() as source:
            source.write(stdin)
            source.seek(0)
            yield source


def _read_up_to(stream: IO[bytes], bytes_max: int) -> bytes:
    chunks: list[bytes] = []
    left = bytes_max
    while left > 0 and (chunk := stream.read(min(left, 1 << 20))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)
