"""Removes what dead attempts left: containers by label, mounts, sockets and directories of marked slots; never anything else.

It takes a container for its own by its instance label, a directory by the marker file in a slot of this state directory.
Work that nobody salvaged is in the outbox before its slot is emptied (`rescue`). Whatever fails is tried again the next time.
"""

import asyncio
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from sandbox.contract.errors import AndonError
from sandbox.contract.result import AttemptResult
from sandbox.executor.config import Host
from sandbox.executor.inputs import MARKER
from sandbox.executor.post import Letter
from sandbox.executor.rescue import KILLED, left_in, promised_in, rescued, unbegun
from sandbox.executor.slots import Slot
from sandbox.executor.state_lock import is_state_free
from sandbox.git import in_thread
from sandbox.log import ID_CHARS, Log, about, of_attempt
from sandbox.runtime.container_spec import FoundContainer
from sandbox.workspace.quota import release_filesystem
from sandbox.workspace.removal import remove_tree

log = Log(__name__)

ORPHANED_S = 300.0
"""How long we have to see a container of another executor without its executor, after its deadline, before it is removed."""


class Janitor:
    """Keeps one executor's corner of its host clean."""

    def __init__(
        self, host: Host, is_busy: Callable[[int], bool], salvage: Callable[[Letter], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare; `is_busy` says whether somebody holds a slot at this moment, `salvage` takes results of attempts that were cut off."""
        self._host = host
        self._is_busy = is_busy
        self._salvage = salvage
        self._clock = clock
        self._orphans: dict[str, float] = {}
        """Containers of executors that are gone, and since when we see them so. Our own clock: others' may jump."""

    async def sweep(self) -> None:
        """Remove containers that no attempt holds and empty slots of earlier processes; never raises but for our own bugs."""
        for step in (self._remove_our_containers, self._remove_orphans, self._empty_left_over_slots):
            try:
                await step()
            except (AndonError, OSError) as error:
                log.warning("janitor.failed", "left-overs stay for now", error=error, step=step.__name__.strip("_"))

    async def put_in_order(self, slot: Slot, why: str = KILLED) -> None:
        """Salvage what is left in a slot that nobody works in, then empty it; `why` says how its attempt was cut off.

        Raises:
            InfrastructureError: The work cannot be kept, or the slot not be emptied, now.
        """
        if not await asyncio.to_thread(is_slot_of_ours, slot):
            return
        lease, promise = left_in(slot), promised_in(slot)
        if lease is not None:
            await self._host.runtime.discard(lease.container_id)
            await self._report(await rescued(self._host, slot, lease, why), lease.delivery.ack_subject)
        elif promise is not None:
            await self._report(unbegun(self._host, slot, promise, why), promise.delivery.ack_subject)
        for line in await in_thread(empty, slot):
            log.info("janitor.removed", what=line)

    async def _report(self, result: AttemptResult, ack_subject: str) -> None:
        await self._host.outbox.keep(result)
        self._salvage(Letter(result, ack_subject))
        with about(**of_attempt(result.job_id, result.attempt)):
            log.warning("attempt.cut_off", "an attempt was cut off; what it wrote is kept", reason=result.reason)

    async def _remove_our_containers(self) -> None:
        found = await self._host.runtime.containers()
        # Who is busy is asked after the list was made: an attempt that began since then has a container the list does not have.
        for container in [each for each in found if self._is_ours(each)]:
            await self._discard(container)

    def _is_ours(self, container: FoundContainer) -> bool:
        return container.instance == self._host.instance and container.slot is not None and not self._is_busy(container.slot)

    async def _remove_orphans(self) -> None:
        found = await self._host.runtime.containers()
        overdue = [each for each in found if each.instance != self._host.instance and 0 < each.deadline < time.time()]
        now = self._clock()
        free = {each.container_id: each for each in overdue if await asyncio.to_thread(_is_without_executor, each)}
        self._orphans = {name: self._orphans.get(name, now) for name in free}
        for name, since in self._orphans.items():
            if now - since >= ORPHANED_S:
                await self._discard(free[name])

    async def _discard(self, container: FoundContainer) -> None:
        await self._host.runtime.discard(container.container_id)
        log.info("janitor.removed", what=f"container of {container.instance}", container_id=container.container_id[:ID_CHARS])

    async def _empty_left_over_slots(self) -> None:
        for slot in self._host.slots.left_over:
            await self.put_in_order(slot)


def is_slot_of_ours(slot: Slot) -> bool:
    """Return whether a slot's directory is a real directory, where it should be, with our marker in it."""
    try:
        marker = (slot.home / MARKER).lstat()
    except OSError:
        return False
    return stat.S_ISREG(marker.st_mode) and slot.home.resolve() == slot.home.parent.resolve() / slot.home.name


def empty(slot: Slot) -> list[str]:
    """Remove mounts, directories and socket of a slot whose work is not wanted any more; return one line for each."""
    removed: list[str] = []
    for directory in (slot.workspace, slot.out, slot.task):
        if directory.is_symlink():  # nobody but us makes anything here; whatever it is, it is not followed
            directory.unlink()
        elif not directory.exists():
            continue
        elif directory == slot.task:
            remove_tree(directory)
        else:
            release_filesystem(directory)
        removed.append(f"{directory}")
    for file in (slot.sockets / "gateway.sock", slot.lease_file, slot.grant_file):
        if os.path.lexists(file):
            file.unlink()
            removed.append(f"{file}")
    return removed


def _is_without_executor(container: FoundContainer) -> bool:
    """Return whether the executor whose slot a container works in is gone, which only its own state directory can tell."""
    workspace = container.workspace
    if workspace is None or workspace.name != "workspace" or workspace.parents[1].name != "slots":
        return False
    return is_state_free(Path(workspace.parents[2]))
