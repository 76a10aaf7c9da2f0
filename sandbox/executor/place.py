"""Where an executor runs, on a host or in a container beside the engine's own, and which directories the engine sees from there (G19).

The engine resolves every bound directory on its host. In a container only what is bind-mounted at the same path on both
sides is the same directory there, and only a shared mount passes on what is mounted below it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sandbox.contract.errors import UsageError

UID_LOCKS = Path("/run/lock/andon")
_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))


@dataclass(frozen=True)
class Mount:
    """One line of `/proc/self/mountinfo`."""

    point: Path
    is_shared: bool
    """What is mounted below it appears on the other side too."""


@dataclass(frozen=True)
class Surroundings:
    """What follows from where this process runs."""

    is_container: bool
    sockets: Callable[[str], Path]
    """The directory of an instance's sockets."""
    uid_locks: Path | None
    """Where uids are leased; None without root: the caller's uid serves every slot."""
    missing: tuple[str, ...] = ()
    """What does not hold here, one line each."""
    no_quota: str = ""
    """Why workspaces cannot be file systems of their own; empty: they can."""


def surroundings(
    state: Path, *, uid: int, is_container: bool | None = None, mounts: list[Mount] | None = None, locks: Path = UID_LOCKS
) -> Surroundings:
    """Look around; `is_container` and `mounts` are found out unless given.

    Raises:
        UsageError: In a container, the state directory is not a bind mount: the engine could not see it.
    """
    if not (any(mark.exists() for mark in _MARKS) if is_container is None else is_container):
        return Surroundings(False, lambda instance: Path("/tmp") / f"andon-{uid}" / instance, locks if uid == 0 else None)  # noqa: S108 - short; checked
    found = read_mounts() if mounts is None else mounts
    below = _mount_of(state, found)
    if below is None or below.point == Path("/"):
        raise UsageError(
            f"in a container the state directory {state} has to be a directory of the host at the same path: "
            f"add -v {state}:{state}:rshared (see docs/hosts.md)"
        )
    has_locks = any(mount.point in {locks, *locks.parents} and mount.point != Path("/") for mount in found)
    missing = () if has_locks or uid != 0 else (f"uids are shared with executors outside {below.point}: {locks} is not mounted",)
    return Surroundings(
        is_container=True,
        sockets=lambda _: state / "gw",
        uid_locks=None if uid != 0 else locks if has_locks else below.point / ".uid-locks",
        missing=missing,
        no_quota="" if below.is_shared else f"no quota mount: {below.point} is not mounted rshared, so that the engine would not see it",
    )


def read_mounts() -> list[Mount]:
    """Return this process's mounts."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        point = fields[4].encode().decode("unicode_escape")
        optional = fields[6 : fields.index("-")]
        mounts.append(Mount(Path(point), any(each.startswith("shared:") for each in optional)))
    return mounts


def _mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """Return the mount a path is on; of several at one point the last one counts."""
    above = [mount for mount in mounts if mount.point in {path, *path.parents}]
    return max(reversed(above), key=lambda mount: len(os.fspath(mount.point)), default=None)
