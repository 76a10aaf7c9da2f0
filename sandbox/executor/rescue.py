"""Notes on disk which attempt a slot works for, and salvages its work after the executor was killed; not the clean-up (`janitor`).

The note lies in the slot's lease file from before the program's first instruction until its tree was read. The next process
finds it, seals the dead attempt's workspace as the first one would have, and reports the attempt as lost: no byte is dropped
(DECISIONS D2, G21), and the supervisor need not wait for the lease to run out before it tries again.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic import ValidationError

from sandbox.contract.model import Frozen
from sandbox.contract.result import AttemptResult, Outcome, SandboxRecord
from sandbox.contract.wire import ClaimReply, Delivery
from sandbox.executor.config import Host
from sandbox.executor.outputs import Outputs, Shelf, sealed
from sandbox.executor.slots import Slot
from sandbox.runtime.container_spec import Sandbox
from sandbox.workspace.provision import Manifest

REASON = "the executor was killed and is back; what was written is salvaged"


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
    place: tuple[str, int, int]
    """Boot, device and inode of the workspace: after a reboot, or unmounted, an empty directory is no work of anybody's."""


@asynccontextmanager
async def remembered(slot: Slot, delivery: Delivery, grant: ClaimReply, manifest: Manifest, box: Sandbox) -> AsyncIterator[None]:
    """Keep the note while the block runs; leave the block only when the tree was read or is not to be."""
    lease = SlotLease(
        delivery=delivery,
        attempt=grant.attempt,
        token=grant.token,
        manifest=manifest,
        container_id=box.container_id,
        missing=box.missing,
        started_at=time.time(),
        place=_place(slot.workspace),
    )
    await asyncio.to_thread(_write, slot.lease_file, lease.model_dump_json())
    try:
        yield
    finally:
        slot.lease_file.unlink(missing_ok=True)


def left_in(slot: Slot) -> SlotLease | None:
    """Return the note of an attempt that was cut off in this slot and whose workspace is still there; None otherwise."""
    with contextlib.suppress(OSError, ValidationError):
        lease = SlotLease.model_validate_json(slot.lease_file.read_bytes())
        if lease.place == _place(slot.workspace):
            return lease
    return None


async def rescued(host: Host, slot: Slot, lease: SlotLease) -> AttemptResult:
    """Seal what a dead attempt wrote and return its result, `lost`; call it only when its container is gone.

    Raises:
        BrokerError: The work cannot be stored now; it is still in the slot.
    """
    job = lease.delivery.job
    shelf = Shelf(host, job, lease.attempt)
    work = await sealed(host, job, slot, lease.manifest, shelf) if job.kind == "agent" else Outputs()
    return AttemptResult(
        job_id=job.job_id,
        run_id=job.run_id,
        stage=job.stage,
        round=job.round,
        attempt=lease.attempt,
        token=lease.token,
        executor=host.config.name,
        outcome=Outcome.LOST,
        reason=REASON,
        commit=work.commit,
        git_bundle=work.git_bundle,
        findings=work.findings,
        dropped=work.dropped,
        sandbox=SandboxRecord(container_id=lease.container_id, uid=slot.uid, missing=lease.missing),
        started_at=lease.started_at,
        ended_at=time.time(),
    )


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


def _place(workspace: Path) -> tuple[str, int, int]:
    facts = workspace.stat()
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), facts.st_dev, facts.st_ino
