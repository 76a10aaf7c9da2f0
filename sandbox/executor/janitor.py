"""Removes what a dead executor of the same instance left: containers by label, mounts and directories of our own slots; nothing else."""

import asyncio

from sandbox.executor.config import Host
from sandbox.executor.inputs import MARKER
from sandbox.executor.slots import Slot
from sandbox.workspace.quota import release_filesystem
from sandbox.workspace.removal import remove_tree


async def remove_containers(host: Host) -> list[str]:
    """Remove every container of this executor's instance; call it before the first job. Returns one line for each."""
    return [f"container {container[:12]}" for container in await host.runtime.sweep(host.instance, keep=set())]


async def clean(slot: Slot) -> list[str]:
    """Empty a slot whose container is gone and whose work is not wanted any more. Returns one line for each thing removed."""
    return await asyncio.to_thread(_clean, slot)


def _clean(slot: Slot) -> list[str]:
    if not (slot.home / MARKER).is_file():
        return []
    removed: list[str] = []
    for directory in (slot.workspace, slot.out):
        if directory.exists():
            release_filesystem(directory)
            removed.append(f"directory {directory}")
    remove_tree(slot.task)
    (slot.sockets / "gateway.sock").unlink(missing_ok=True)
    slot.lease_file.unlink(missing_ok=True)
    return removed
