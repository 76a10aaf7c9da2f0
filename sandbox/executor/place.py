"""Where an executor runs, on a host or in a container beside the engine's own, and which directories the engine sees from there (G19).

The engine resolves every bound directory on its host. In a container only what is bind-mounted at the same path on both
sides is the same directory there, and only a shared mount passes on what is mounted below it.
"""

import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from sandbox.contract.errors import UsageError

UID_LOCKS = Path("/run/lock/andon")
_CONTAINER_ID = re.compile(r"/([0-9a-f]{64})/")
_ETC = {Path("/etc/hostname"), Path("/etc/hosts"), Path("/etc/resolv.conf")}


@dataclass(frozen=True)
class Mount:
    """One line of `/proc/self/mountinfo`."""

    point: Path
    is_shared: bool
    """What is mounted below it appears on the other side too."""
    root: str = "/"
    """Which directory or file of its file system it is."""


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


async def surroundings(
    state: Path, is_known: Callable[[str], Awaitable[bool]], *, uid: int, mounts: list[Mount] | None = None, locks: Path = UID_LOCKS
) -> Surroundings:
    """Look around: an executor whose own container the engine knows is beside its sandboxes, any other is on the engine's host.

    Args:
        state: The state directory.
        is_known: Whether the engine has a container of this id.
        uid: Who we are.
        mounts: This process's mounts, read unless given.
        locks: Where uids are leased on a host.

    Raises:
        UsageError: Beside its sandboxes, the state directory is not a bind mount: the engine could not see it.
    """
    found = read_mounts() if mounts is None else mounts
    own = own_container(found)
    if own is None or not await is_known(own):
        return Surroundings(False, lambda instance: Path("/tmp") / f"andon-{uid}" / instance, locks if uid == 0 else None)  # noqa: S108 - short; checked
    return _beside(state, found, uid=uid, locks=locks)


def own_container(mounts: list[Mount]) -> str | None:
    """Return the id of the container this process is in, as the engine's own mounts in `/etc` tell; None: in none."""
    found = (_CONTAINER_ID.search(mount.root) for mount in mounts if mount.point in _ETC)
    return next((match[1] for match in found if match), None)


def _beside(state: Path, found: list[Mount], *, uid: int, locks: Path) -> Surroundings:
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
        mounts.append(Mount(Path(point), any(each.startswith("shared:") for each in optional), fields[3]))
    return mounts


def _mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """Return the mount a path is on; of several at one point the last one counts."""
    above = [mount for mount in mounts if mount.point in {path, *path.parents}]
    return max(reversed(above), key=lambda mount: len(os.fspath(mount.point)), default=None)
