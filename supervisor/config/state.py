"""Where state lies on disk (DECISIONS G10): the layout and its version; not what is in the files."""

import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox.contract.ids import RUN_ID_CHARS
from supervisor.errors import NewerState, UsageError

STATE_VERSION = 1

_RUN_ID = re.compile(rf"[0-9a-hjkmnp-tv-z]{{{RUN_ID_CHARS}}}")

Migration = Callable[[Path], None]
_MIGRATIONS: dict[int, Migration] = {}
"""By the version it starts from; each leaves the next one."""


@dataclass(frozen=True)
class StateDirectory:
    """The layout of the state directory: paths only, until `open` makes it."""

    root: Path

    @classmethod
    def open(cls, root: Path, *, version: int = STATE_VERSION, migrations: Mapping[int, Migration] | None = None) -> "StateDirectory":
        """Make the directory (0700) or bring an older one up to date; safe against a second process doing the same.

        Raises:
            NewerState: A newer release wrote it.
            UsageError: It is not this user's own directory, or cannot be made.
        """
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if root.stat().st_uid != os.geteuid():
                raise UsageError(f"state directory {root} belongs to another user; set ANDON_STATE_DIRECTORY to one of your own")
            with _locked(root / "VERSION.lock"):
                _bring_up_to_date(root, version, _MIGRATIONS if migrations is None else migrations)
        except OSError as error:
            raise UsageError(f"state directory {root} cannot be used: {error.strerror}; set ANDON_STATE_DIRECTORY") from error
        return cls(root)

    @classmethod
    def reading(cls, root: Path) -> "StateDirectory":
        """Return the layout for a verb that only reads: nothing is made or migrated.

        Raises:
            NewerState: A newer release wrote it.
        """
        found = _version_of(root)
        if found is not None and found > STATE_VERSION:
            raise _newer(root, found, STATE_VERSION)
        return cls(root)

    @property
    def mirrors(self) -> Path:
        """Return where the supervisor's bare repositories lie."""
        return self.root / "mirrors"

    @property
    def mirror(self) -> Path:
        """Return the supervisor's own bare repository; it serves every user repository (the executor has another one)."""
        return self.mirrors / "supervisor.git"

    @property
    def nats(self) -> Path:
        """Return the embedded broker's store and configuration."""
        return self.root / "nats"

    @property
    def history(self) -> Path:
        """Return the SQL projection's file."""
        return self.root / "history.db"

    @property
    def executor(self) -> Path:
        """Return the embedded executor's directory, whose layout is its own."""
        return self.root / "executor"

    @property
    def samples(self) -> Path:
        """Return where the copies of the sample repository lie."""
        return self.root / "samples"

    @property
    def stack_file(self) -> Path:
        """Return the file that says how to reach the running stack (DECISIONS G9)."""
        return self.root / "stack.json"

    @property
    def stack_log(self) -> Path:
        """Return the file the embedded stack's processes log to (docs/logs.md)."""
        return self.root / "stack.log"

    @property
    def runs(self) -> Path:
        """Return where each run has its directory."""
        return self.root / "runs"

    @property
    def seen(self) -> Path:
        """Return where the files lie of runs that other hosts submitted and this one has looked at."""
        return self.root / "seen"

    def run(self, run_id: str) -> Path:
        """Return one run's directory."""
        return self.runs / run_id

    def run_ids(self) -> list[str]:
        """Return the ids of the runs that have a directory, oldest first."""
        try:
            return sorted(path.name for path in self.runs.iterdir() if _RUN_ID.fullmatch(path.name))
        except FileNotFoundError:
            return []

    def trusts(self, sha256: str) -> bool:
        """Return whether a person agreed to build the `.andon/Dockerfile` with this digest."""
        return (self.root / "trusted" / sha256).is_file()

    def trust(self, sha256: str, note: str) -> None:
        """Record that agreement; `note` says for which repository, for a person."""
        (self.root / "trusted").mkdir(mode=0o700, exist_ok=True)
        write_atomically(self.root / "trusted" / sha256, note.encode("utf-8", "backslashreplace") + b"\n")


def is_run_id(text: str) -> bool:
    """Return whether a text is a whole run id, of whatever run."""
    return _RUN_ID.fullmatch(text) is not None


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step, readable by its owner only; a reader sees the old bytes or the new ones."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _bring_up_to_date(root: Path, version: int, migrations: Mapping[int, Migration]) -> None:
    found = _version_of(root)
    if found is None:
        write_atomically(root / "VERSION", f"{version}\n".encode())
        return
    if found > version:
        raise _newer(root, found, version)
    for step in range(found, version):
        migrations[step](root)
        write_atomically(root / "VERSION", f"{step + 1}\n".encode())


def _version_of(root: Path) -> int | None:
    try:
        text = (root / "VERSION").read_text("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise UsageError(f"{root / 'VERSION'} holds {text[:20]!r}, not a number; set ANDON_STATE_DIRECTORY to another directory")
    return int(text)


def _newer(root: Path, found: int, known: int) -> NewerState:
    return NewerState(f"state directory {root} has version {found}, this andon knows {known}: upgrade andon or set ANDON_STATE_DIRECTORY")
