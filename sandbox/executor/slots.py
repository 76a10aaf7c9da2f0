"""Slots: a place for one attempt at a time, with a uid and directories of its own; not what runs in it (`attempt`).

As root a slot's uid is 200000 + n, or with an engine that maps users one of those it maps; n is leased host-wide by flock, so that two
executors on one host never share a uid (DECISIONS D9, SANDBOX.md §0.5). As an ordinary user the caller's uid serves every slot, and the
record says so.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox.contract.errors import InfrastructureError, UsageError

UID_BASE = 200_000
SLOT_NUMBERS_MAX = 1_000
SOCKET_PATH_BYTES_MAX = 60
NO_UID_OF_ITS_OWN = "no uid per slot: sandboxes run as the calling user (needs root)"


@dataclass(frozen=True)
class Slot:
    """One leased slot."""

    number: int
    uid: int | None
    """None: the caller's uid and gid."""
    home: Path
    sockets: Path

    @property
    def workspace(self) -> Path:
        """Return where the worktree is mounted."""
        return self.home / "workspace"

    @property
    def task(self) -> Path:
        """Return the task bundle's directory."""
        return self.home / "task"

    @property
    def out(self) -> Path:
        """Return where checks leave reports."""
        return self.home / "out"

    @property
    def lease_file(self) -> Path:
        """Return the file that maps this slot's container to its attempt (DECISIONS G21)."""
        return self.home / "lease.json"

    def has_work(self) -> bool:
        """Return whether an attempt wrote here and its result is not in the outbox yet."""
        return self.lease_file.exists()

    @property
    def grant_file(self) -> Path:
        """Return the file that says which attempt was granted to this slot, until its result is kept."""
        return self.home / "grant.json"

    @property
    def owner(self) -> tuple[int, int]:
        """Return uid and gid of what the sandbox may write."""
        return (self.uid, self.uid) if self.uid is not None else (os.getuid(), os.getgid())


def private_directory(path: Path) -> Path:
    """Return `path`, made 0700 if it was absent.

    Raises:
        UsageError: It is a link or a file, somebody else's, or others may enter it: in `/tmp` anybody may have made it first.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise UsageError(f"{path} is not a directory that only you may enter; look at it and remove it")
    return path


class SlotPool:
    """The slots of one executor; held locks free themselves when the process dies."""

    def __init__(self, slots: list[Slot], locks: list[int], left_over: list[Slot]) -> None:
        self._locks = locks
        self.slots = tuple(slots)
        self.left_over = tuple(left_over)
        """Slots of an earlier process in the same state directory whose numbers this one did not get: to be cleaned, not used."""
        self._free: asyncio.Queue[Slot] = asyncio.Queue(maxsize=len(slots))
        for slot in slots:
            self._free.put_nowait(slot)

    @classmethod
    def lease(cls, count: int, *, state: Path, sockets: Path, locks: Path | None, uid_base: int = UID_BASE) -> "SlotPool":
        """Lease `count` slots.

        Args:
            count: How many attempts run at once.
            state: The executor's state directory; slots live in `slots/<n>`.
            sockets: Directory of socket directories; short (`/tmp/andon-<uid>/<instance>`).
            locks: Directory of host-wide uid locks, or None without root: then locks live in `state`.
            uid_base: The user of slot 0; another one where the engine maps users.

        Raises:
            UsageError: Not enough free numbers, or a socket path would be too long for `sockaddr_un`.
        """

        def own_uid(number: int) -> int | None:
            return uid_base + number if locks is not None else None

        directory = locks or state / "locks"
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        slots: list[Slot] = []
        held: list[int] = []
        for number in range(SLOT_NUMBERS_MAX):
            if len(slots) == count:
                break
            lock = _try_lock(directory / f"slot-{number}")
            if lock is None:
                continue
            held.append(lock)
            slots.append(_make(number, state, sockets, own_uid(number)))
        if len(slots) < count:
            raise UsageError(f"only {len(slots)} of {count} slots are free in {directory}; stop another executor or ask for fewer")
        names = [path.name for path in (state / "slots").iterdir() if path.name.isascii() and path.name.isdigit()]
        others = {int(name) for name in names} - {slot.number for slot in slots}
        return cls(slots, held, [_slot(number, state, sockets, own_uid(number)) for number in sorted(others)])

    @asynccontextmanager
    async def take(self) -> AsyncIterator[Slot]:
        """Wait for a free slot and hold it."""
        slot = await self._free.get()
        try:
            yield slot
        finally:
            self._free.put_nowait(slot)

    def close(self) -> None:
        """Give the numbers back and remove the socket directories, which hold nothing once no session is open."""
        for slot in (*self.left_over, *self.slots):
            with contextlib.suppress(OSError):
                slot.sockets.rmdir()
        for slot in self.slots[:1]:
            with contextlib.suppress(OSError):
                slot.sockets.parent.rmdir()
        for lock in self._locks:
            os.close(lock)
        self._locks = []


def _slot(number: int, state: Path, sockets: Path, uid: int | None) -> Slot:
    return Slot(number, uid, state / "slots" / str(number), sockets / str(number))


def _make(number: int, state: Path, sockets: Path, uid: int | None) -> Slot:
    slot = _slot(number, state, sockets, uid)
    path = slot.sockets / "gateway.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise UsageError(f"socket path {path} is longer than {SOCKET_PATH_BYTES_MAX} bytes; use a shorter socket directory")
    # 0711: a sandbox's uid passes through by name on a host without mount namespaces, and lists nothing.
    for directory in (slot.home, slot.sockets):
        directory.mkdir(parents=True, exist_ok=True, mode=0o711)
    return slot


def _try_lock(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise InfrastructureError(f"cannot open slot lock {path}: {os.strerror(error.errno or errno.EIO)}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
