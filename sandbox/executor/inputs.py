"""What goes into a sandbox before its program starts: worktree, task bundle, report directory; and its removal afterwards."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox.contract.errors import InfrastructureError
from sandbox.contract.job import JobSpec, Limits
from sandbox.contract.task_bundle import TaskBundle
from sandbox.executor.config import Host
from sandbox.executor.slots import Slot
from sandbox.workspace.provision import Manifest, provision
from sandbox.workspace.quota import workspace_filesystem
from sandbox.workspace.removal import remove_tree

OUT_MIB = 64
OUT_INODES_MAX = 2_000
MARKER = ".andon-slot"


@dataclass(frozen=True)
class Inputs:
    """A prepared slot: what was provisioned, and which protections are missing."""

    manifest: Manifest
    missing: tuple[str, ...]


@asynccontextmanager
async def prepared(host: Host, job: JobSpec, slot: Slot) -> AsyncIterator[Inputs]:
    """Fill a slot's directories for one job, and leave them empty and unmounted at the end."""
    await host.mirror.import_base(job.base_commit, await host.link.get_blob(job.input_pack))
    bundle = await _bundle(host, job)
    uid, gid = slot.owner
    async with directories(slot, bundle, job.limits, host.config.no_quota) as missing:
        manifest = await provision(host.mirror, job.base_commit, slot.workspace, uid=uid, gid=gid)
        yield Inputs(manifest, missing)


@asynccontextmanager
async def directories(slot: Slot, bundle: TaskBundle, limits: Limits, no_quota: str) -> AsyncIterator[tuple[str, ...]]:
    """Give a slot empty, bounded directories and its task bundle; yields what cannot be bounded here. Gone at the end.

    Only the work of an attempt that has to be salvaged stays (`Slot.has_work`).
    """
    await asyncio.to_thread(_fresh, slot)
    uid, gid = slot.owner
    async with (
        workspace_filesystem(slot.workspace, limits.workspace_mib, limits.workspace_inodes_max, uid, gid, no_quota, slot.has_work) as quota,
        workspace_filesystem(slot.out, OUT_MIB, OUT_INODES_MAX, uid, gid, no_quota, slot.has_work),
    ):
        await asyncio.to_thread(_write_bundle, slot.task, bundle, gid)
        try:
            yield (quota.reason,) if quota.reason else ()
        finally:
            await asyncio.to_thread(_remove, slot.task)


async def _bundle(host: Host, job: JobSpec) -> TaskBundle:
    if job.task_bundle is None:
        return TaskBundle()
    return TaskBundle.decode(await host.link.get_blob(job.task_bundle))


def _fresh(slot: Slot) -> None:
    """Mark the slot as ours and make an empty task directory; the file systems see to the other two."""
    (slot.home / MARKER).touch(mode=0o600)
    _remove(slot.task)
    slot.task.mkdir(mode=0o700)


def _remove(directory: Path) -> None:
    """Remove one of a slot's own directories; a directory of anything else is refused (PEERS pain 1)."""
    if not (directory.parent / MARKER).is_file():
        raise InfrastructureError(f"{directory} is not in a slot of ours: not removed")
    remove_tree(directory)


def _write_bundle(task: Path, bundle: TaskBundle, gid: int) -> None:
    """Write the bundle readable by the slot's group and writable by nobody in the sandbox."""
    task.chmod(0o750)
    if os.getuid() == 0:
        os.chown(task, 0, gid)
    for name, text in sorted(bundle.files.items()):
        path = task / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
