"""Notes on disk which attempt a slot works for, and salvages its work when nobody did; not the clean-up (`janitor`).

The note lies in the slot's lease file from before the program's first instruction until the result, with the work, is in the
outbox. Whoever finds a note in a slot whose container is gone, the next process or this one after its engine broke, seals the
workspace as the attempt would have, and reports the attempt as lost: no byte is dropped (DECISIONS D2, G21), and the
supervisor need not wait for the lease to run out before it tries again.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import ValidationError

from sandbox.contract.errors import GitError
from sandbox.contract.model import Frozen
from sandbox.contract.result import AttemptResult, Outcome, SandboxRecord
from sandbox.contract.wire import ClaimReply, Delivery
from sandbox.executor.config import Host
from sandbox.executor.inputs import MARKER
from sandbox.executor.outputs import Outputs, Shelf, remains, sealed
from sandbox.executor.slots import Slot
from sandbox.runtime.container_spec import Sandbox
from sandbox.workspace.provision import Manifest

KILLED = "the attempt was cut off: its executor was killed, or broke"
SALVAGED = "what was written is salvaged"
GONE = "the workspace is gone with it (it was in memory, and the host was restarted or unmounted it): what was written is lost"


class Place(Frozen):
    """Where the workspace is: an empty directory at the same path is no work of anybody's."""

    boot: str
    device: int
    inode: int
    is_mounted: bool
    """A file system of its own, in memory: gone after a restart of the host."""

    @classmethod
    def of(cls, workspace: Path) -> "Place":
        """Return where a workspace is now.

        Raises:
            OSError: It is not there.
        """
        facts = workspace.stat(follow_symlinks=False)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(boot=boot, device=facts.st_dev, inode=facts.st_ino, is_mounted=os.path.ismount(workspace))

    def is_same(self, other: "Place") -> bool:
        """Return whether `other` is the same directory, if need be after a restart, which renumbers devices."""
        if self.is_mounted or other.is_mounted or self.boot == other.boot:
            return self == other
        return self.inode == other.inode


class SlotLease(Frozen):
    """A slot's lease file."""

    delivery: Delivery
    attempt: int
    token: str
    """A secret: the file is its owner's alone."""
    manifest: Manifest
    container_id: str
    missing: tuple[str, ...]
    started_at: float
    place: Place


class Promise(Frozen):
    """A slot's grant file: an attempt that may be cut off before there is anything to salvage of it."""

    delivery: Delivery
    attempt: int
    token: str
    """A secret: the file is its owner's alone."""
    started_at: float


class Note:
    """The note of one attempt, until it is settled."""

    def __init__(self, host: Host, slot: Slot) -> None:
        self._host = host
        self._slot = slot

    async def settle(self, result: AttemptResult) -> None:
        """Keep the result on disk, then forget the slot's work: a crash in between delivers it, never loses it.

        Raises:
            InfrastructureError: The disk refuses; the note stays, and the work with it.
        """
        await self._host.outbox.keep(result)
        self._slot.lease_file.unlink(missing_ok=True)


@asynccontextmanager
async def promised(slot: Slot, delivery: Delivery, grant: ClaimReply) -> AsyncIterator[None]:
    """Write down what was granted; leave the block when the result is kept. Broken off, the file stays for the next process.

    Without it an executor that is killed before its sandbox runs knows nothing of the attempt when it is back, and lives: nobody would
    give the job to another one before its lease ends.
    """
    promise = Promise(delivery=delivery, attempt=grant.attempt, token=grant.token, started_at=time.time())
    (slot.home / MARKER).touch(mode=0o600)
    await asyncio.to_thread(_write, slot.grant_file, promise.model_dump_json())
    yield
    slot.grant_file.unlink(missing_ok=True)


@asynccontextmanager
async def remembered(
    host: Host, slot: Slot, delivery: Delivery, grant: ClaimReply, manifest: Manifest, box: Sandbox
) -> AsyncIterator[Note]:
    """Write the note; only `Note.settle` takes it away, so that work nobody read stays in its slot."""
    lease = SlotLease(
        delivery=delivery,
        attempt=grant.attempt,
        token=grant.token,
        manifest=manifest,
        container_id=box.container_id,
        missing=box.missing,
        started_at=time.time(),
        place=Place.of(slot.workspace),
    )
    await asyncio.to_thread(_write, slot.lease_file, lease.model_dump_json())
    slot.grant_file.unlink(missing_ok=True)  # the note says more, and a settled attempt must not look like one that never began
    yield Note(host, slot)


def left_in(slot: Slot) -> SlotLease | None:
    """Return the note of an attempt that was cut off in this slot; None if there is none that can be read."""
    with contextlib.suppress(OSError, ValidationError):
        return SlotLease.model_validate_json(slot.lease_file.read_bytes())
    return None


def promised_in(slot: Slot) -> Promise | None:
    """Return what was granted to this slot and never got as far as a note; None if there is nothing that can be read."""
    with contextlib.suppress(OSError, ValidationError):
        return Promise.model_validate_json(slot.grant_file.read_bytes())
    return None


def unbegun(host: Host, slot: Slot, promise: Promise, why: str = KILLED) -> AttemptResult:
    """Return the result of an attempt whose sandbox never ran: `lost`, without work."""
    job = promise.delivery.job
    return AttemptResult(
        job_id=job.job_id,
        run_id=job.run_id,
        stage=job.stage,
        round=job.round,
        attempt=promise.attempt,
        token=promise.token,
        executor=host.config.name,
        outcome=Outcome.LOST,
        reason=f"{why}; its sandbox had not begun"[:2_000],
        sandbox=SandboxRecord(uid=slot.uid),
        started_at=promise.started_at,
        ended_at=time.time(),
    )


async def rescued(host: Host, slot: Slot, lease: SlotLease, why: str = KILLED) -> AttemptResult:
    """Seal what a dead attempt wrote and return its result, `lost`; call it only when its container is gone.

    Raises:
        InfrastructureError: The work cannot be read or kept now; it is still in the slot.
    """
    job = lease.delivery.job
    is_there = await asyncio.to_thread(_is_there, slot, lease)
    work = Outputs()
    if is_there and job.kind == "agent":
        shelf = Shelf(host, job, lease.attempt)
        try:
            work = await sealed(host, job, slot, lease.manifest, shelf)
        except GitError as error:
            work = await remains(host, slot, lease.manifest, shelf, str(error))
    return AttemptResult(
        job_id=job.job_id,
        run_id=job.run_id,
        stage=job.stage,
        round=job.round,
        attempt=lease.attempt,
        token=lease.token,
        executor=host.config.name,
        outcome=Outcome.LOST,
        reason=f"{why}; {SALVAGED if is_there else GONE}"[:2_000],
        commit=work.commit,
        git_bundle=work.git_bundle,
        remains=work.remains,
        findings=work.findings,
        dropped=work.dropped,
        sandbox=SandboxRecord(container_id=lease.container_id, uid=slot.uid, missing=lease.missing),
        started_at=lease.started_at,
        ended_at=time.time(),
    )


def _is_there(slot: Slot, lease: SlotLease) -> bool:
    with contextlib.suppress(OSError):
        return lease.place.is_same(Place.of(slot.workspace))
    return False


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
