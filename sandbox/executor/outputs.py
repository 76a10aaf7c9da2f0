"""What an attempt left, read after its container is dead: tree, reports, log, recording; judged only where the executor must.

Nothing here follows a link, and nothing an agent wrote is executed.
"""

import asyncio
import hashlib
import os
import stat
from dataclasses import dataclass, field

from sandbox.contract.blob import BlobRef
from sandbox.contract.errors import Rejected
from sandbox.contract.ids import attempt_path
from sandbox.contract.job import Check, JobSpec
from sandbox.contract.result import CheckReport, Dropped, Finding
from sandbox.contract.scope import offending_paths
from sandbox.executor.config import Host
from sandbox.executor.inputs import Inputs
from sandbox.executor.slots import Slot
from sandbox.gateway.session import Session
from sandbox.runtime.container_spec import Sandbox
from sandbox.workspace.provision import Manifest
from sandbox.workspace.remains import remains_of
from sandbox.workspace.seal import seal

REPORT_BYTES_MAX = 16 << 20


@dataclass(frozen=True)
class Outputs:
    """Everything of an attempt that crosses the bus beside its outcome."""

    commit: str | None = None
    git_bundle: BlobRef | None = None
    findings: tuple[Finding, ...] = ()
    dropped: Dropped = field(default_factory=Dropped)
    reports: tuple[CheckReport, ...] = ()
    log: BlobRef | None = None
    recording: BlobRef | None = None
    remains: BlobRef | None = None


class Shelf:
    """Keeps objects of one attempt under its own path; they cross the bus with its result, also if the broker is away now."""

    def __init__(self, host: Host, job: JobSpec, attempt: int) -> None:
        self._outbox = host.outbox
        self._job_id = job.job_id
        self._attempt = attempt
        self._prefix = attempt_path(job.run_id, job.stage, job.round, attempt)

    async def put(self, what: str, data: bytes) -> BlobRef:
        """Keep bytes as `<run>/<stage>/<round>/<attempt>/<what>-<sha256>`."""
        name = f"{self._prefix}/{what}-{hashlib.sha256(data).hexdigest()}"
        return await self._outbox.put(self._job_id, self._attempt, name, data)


async def collect(host: Host, job: JobSpec, attempt: int, slot: Slot, inputs: Inputs, box: Sandbox, session: Session) -> Outputs:
    """Seal the tree, read the reports, keep the log; call it only when the container is dead."""
    shelf = Shelf(host, job, attempt)
    work = await sealed(host, job, slot, inputs.manifest, shelf) if job.kind == "agent" else Outputs()
    log = await box.log()
    recording = session.recording() if job.record and job.kind == "agent" else b""
    return Outputs(
        commit=work.commit,
        git_bundle=work.git_bundle,
        findings=work.findings,
        dropped=work.dropped,
        reports=tuple([await _report(check, slot, session, shelf) for check in job.checks]),
        remains=work.remains,
        log=await shelf.put("log", log) if log else None,
        recording=await shelf.put("recording", recording) if recording else None,
    )


async def sealed(host: Host, job: JobSpec, slot: Slot, manifest: Manifest, shelf: Shelf) -> Outputs:
    """Commit the workspace of a dead container and keep the git bundle; a tree that is refused is a finding, its remains are kept.

    Raises:
        InfrastructureError: The disk refuses, or git failed.
    """
    try:
        work = await seal(host.mirror, manifest, slot.workspace, message=f"andon: {job.job_id}")
    except Rejected as refused:
        return await remains(host, slot, manifest, shelf, str(refused))
    if work.commit is None:
        return Outputs(dropped=work.dropped)
    outside = offending_paths((change.path for change in work.changes), job.scope)
    bundle = await host.mirror.bundle_of(work.commit, job.base_commit)
    return Outputs(
        commit=work.commit,
        git_bundle=await shelf.put("work.bundle", bundle),
        findings=tuple(
            Finding(check="write-scope", message=f"stage {job.stage} may not write {path}", path=path) for path in outside[:100]
        ),
        dropped=work.dropped,
    )


async def remains(host: Host, slot: Slot, manifest: Manifest, shelf: Shelf, why: str) -> Outputs:
    """Keep what was changed in a workspace that cannot be sealed, and say in a finding why not and what is not kept."""
    found = await remains_of(host.mirror, manifest, slot.workspace)
    left_out = f", without {'; '.join(found.left_out)}" if found.left_out else ""
    told = f"{why}; what was changed is kept as a tar archive{left_out}" if found.archive else why
    return Outputs(
        findings=(Finding(check="tree", message=told[:8_000]),),
        remains=await shelf.put("remains.tar", found.archive) if found.archive else None,
    )


async def _report(check: Check, slot: Slot, session: Session, shelf: Shelf) -> CheckReport:
    exits = session.submission.exits if session.submission else ()
    end = next((each for each in exits if each.name == check.name), None)
    if check.report_path is None:
        return CheckReport(name=check.name, exit=end)
    try:
        data = await asyncio.to_thread(read_report, slot, check.report_path)
    except (OSError, ValueError) as error:
        return CheckReport(name=check.name, exit=end, problem=f"no report at /out/{check.report_path}: {error}")
    return CheckReport(name=check.name, exit=end, report=await shelf.put(f"report-{check.name}", data))


def read_report(slot: Slot, relative: str) -> bytes:
    """Read a regular file below the slot's report directory without following a link anywhere on the way.

    Raises:
        OSError: It is not there, or a component is a link.
        ValueError: Not a regular file with one name, larger than 16 MiB, or the path climbs.
    """
    parts = relative.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        raise ValueError("the path climbs")
    directory = os.open(slot.out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = below
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)
    with os.fdopen(file, "rb") as stream:
        facts = os.fstat(stream.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            raise ValueError("not a regular file with one name")
        if facts.st_size > REPORT_BYTES_MAX:
            raise ValueError(f"{facts.st_size} bytes; at most {REPORT_BYTES_MAX}")
        return stream.read(REPORT_BYTES_MAX + 1)
