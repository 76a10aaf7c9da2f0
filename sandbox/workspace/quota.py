"""Give a workspace its own small file system, or say why not; not what is written to it (`provision`, the agent).

A bind-mounted directory has no limit on bytes or files, so as root each workspace is a tmpfs of its own (SANDBOX.md §0.6).
Its pages are charged to the container: the caller adds `mib` to the container's memory limit (DECISIONS G4).
"""

import ctypes
import errno
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from sandbox.contract.errors import InfrastructureError
from sandbox.contract.model import Frozen
from sandbox.git import in_thread
from sandbox.workspace.removal import remove_tree

BUSY_S_MAX = 2.0
"""How long an unmount waits for the last user before it detaches the file system instead."""

NO_ROOT = "no quota mount without root: the workspace is a plain directory"
_STACKED_MOUNTS_MAX = 8
_MS_NOSUID, _MS_NODEV, _MS_PRIVATE = 2, 4, 1 << 18
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_libc = ctypes.CDLL(None, use_errno=True)


class Quota(Frozen):
    """How a workspace is bounded."""

    kind: Literal["tmpfs", "plain"]
    reason: str = ""
    """Why it is plain, one line for the job's record; empty for a tmpfs."""


@asynccontextmanager
async def workspace_filesystem(
    path: Path, mib: int, inodes_max: int, uid: int, gid: int, no_quota: str = "", keep: Callable[[], bool] = lambda: False
) -> AsyncIterator[Quota]:
    """Make `path` an empty directory of mode 0700 owned by uid:gid, limited if this host allows it; gone afterwards.

    What an earlier process left there, mounted or not, is removed first.

    Args:
        path: Its parent directory exists and only we may write to it.
        mib: Size of the file system in MiB.
        inodes_max: Files, links and directories in all.
        uid: Owner, the user in the container.
        gid: Its group.
        no_quota: Why nothing can be mounted here, if so.
        keep: Asked at the end; if true everything stays, for whoever salvages it.

    Raises:
        InfrastructureError: The directory cannot be made or cleaned up.
    """
    try:  # the set-up included: cancelled in the middle, it is completed and then undone
        yield await in_thread(_set_up, path, mib, inodes_max, uid, gid, no_quota)
    finally:
        if not keep():
            await in_thread(release_filesystem, path)


def why_no_quota(uid: int) -> str:
    """Return why every workspace of this user will be a plain directory, as far as it is known beforehand; empty: a mount is tried."""
    return "" if uid == 0 else NO_ROOT


def release_filesystem(path: Path) -> None:
    """Unmount whatever is mounted at `path` and delete the directory; nothing to do if it is absent.

    Blocks at most `BUSY_S_MAX` for each mount and the time of the deletion. Also the way to clean up after a crash.

    Raises:
        InfrastructureError: It cannot be unmounted or deleted.
    """
    try:
        for _ in range(_STACKED_MOUNTS_MAX):
            if not os.path.ismount(path):
                break
            _unmount(path)
        remove_tree(path)
    except OSError as error:
        raise InfrastructureError(f"the workspace {path} cannot be removed: {error.strerror or error}") from error


def _set_up(path: Path, mib: int, inodes_max: int, uid: int, gid: int, no_quota: str) -> Quota:
    release_filesystem(path)
    try:
        path.mkdir(mode=0o700)
        quota = (
            Quota(kind="plain", reason=f"{no_quota}: the workspace is a plain directory")
            if no_quota
            else _mount(path, mib, inodes_max, uid, gid)
        )
        if quota.kind == "plain" and (uid, gid) != (os.geteuid(), os.getegid()):
            os.chown(path, uid, gid)
    except OSError as error:
        raise InfrastructureError(f"the workspace {path} cannot be made: {error.strerror}") from error
    return quota


def _mount(path: Path, mib: int, inodes_max: int, uid: int, gid: int) -> Quota:
    """Mount a tmpfs, or return why there is none."""
    if reason := why_no_quota(os.geteuid()):
        return Quota(kind="plain", reason=reason)
    options = f"size={mib}m,nr_inodes={inodes_max},mode=0700,uid={uid},gid={gid}"
    if _libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", _MS_NOSUID | _MS_NODEV, options.encode()) != 0:
        why = os.strerror(ctypes.get_errno())
        return Quota(kind="plain", reason=f"no quota mount ({why}): the workspace is a plain directory")
    # Containers get their own copy; nothing they do to theirs may come back here.
    _libc.mount(None, os.fsencode(path), None, _MS_PRIVATE, None)
    return Quota(kind="tmpfs")


def _unmount(path: Path) -> None:
    """Unmount, waiting a little for the last user; then detach, so that the memory goes with that user."""
    deadline = time.monotonic() + BUSY_S_MAX
    while True:
        is_late = time.monotonic() >= deadline
        if _libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if is_late else 0)) == 0:
            return
        code = ctypes.get_errno()
        if code != errno.EBUSY or is_late:
            raise OSError(code, os.strerror(code), str(path))
        time.sleep(0.05)
