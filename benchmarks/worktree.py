"""A worktree of 5,000 files into a sandbox's workspace and, changed, back into git."""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure
from sandbox.contract.job import Limits
from sandbox.mirror import Mirror
from sandbox.workspace.provision import provision
from sandbox.workspace.quota import workspace_filesystem
from sandbox.workspace.seal import seal
from supervisor.delivery import snapshot
from tests.fakes.repositories import run_git

ROUNDS = 7
FILES = 5_000
FILES_IN_DIRECTORY = 50
CHANGED = 18
GOAL_S = 0.6


def measure() -> Iterator[Figure]:
    """Yield the median of provision and ingest together."""
    with tempfile.TemporaryDirectory(prefix="andon-bench-") as scratch:
        provisions, seals, kind = asyncio.run(_rounds(Path(scratch)))
    provision_s, seal_s = statistics.median(provisions), statistics.median(seals)
    note = f"provision {provision_s:.3f} s, ingest after {CHANGED} changes {seal_s:.3f} s, on {kind}"
    yield Figure(f"provision + ingest of {FILES:,} files", provision_s + seal_s, GOAL_S, "s", note)


async def _rounds(top: Path) -> tuple[list[float], list[float], str]:
    """Return the seconds of each, and what the workspace was: the file system jobs get on this host."""
    repository = top / "repository"
    await asyncio.to_thread(_make, repository)
    taken = await snapshot(repository, None)
    mirror = await Mirror.open(top / "mirror.git")
    await mirror.import_base(taken.commit, taken.pack)
    provisions, seals, kind = [], [], ""
    limits, owner = Limits(), (os.getuid(), os.getgid())
    for number in range(ROUNDS + 1):
        workspace = top / f"workspace-{number}"
        async with workspace_filesystem(workspace, limits.workspace_mib, limits.workspace_inodes_max, *owner) as quota:
            kind = quota.reason or "a size-limited file system"
            began = time.perf_counter()
            manifest = await provision(mirror, taken.commit, workspace, uid=owner[0], gid=owner[1])
            provisions.append(time.perf_counter() - began)
            for changed in sorted(path for path in workspace.rglob("*.py"))[:CHANGED]:
                changed.write_text(f"changed in round {number}\n")
            began = time.perf_counter()
            sealed = await seal(mirror, manifest, workspace, message="bench")
            seals.append(time.perf_counter() - began)
        if len(sealed.changes) != CHANGED:
            raise RuntimeError(f"{len(sealed.changes)} changes were sealed instead of {CHANGED}")
    return provisions[1:], seals[1:], kind


def _make(repository: Path) -> None:
    for number in range(FILES):
        path = repository / f"package_{number // FILES_IN_DIRECTORY:03}" / f"module_{number:04}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""Module {number}."""\n\n\ndef function_{number}(value: int) -> int:\n    return value + {number}\n' * 20)
    run_git(repository, "init", "--quiet", "--initial-branch=main")
    run_git(repository, "add", "--all")
    run_git(repository, "-c", "user.name=bench", "-c", "user.email=bench@example.org", "commit", "--quiet", "--message=base")
