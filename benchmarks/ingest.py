"""A workspace full of new files into git: walked, judged, hashed, imported as one commit (ABUSE I01 to I14 are in the price)."""

import asyncio
import itertools
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
from tests.fakes.repositories import sample_repository

ROUNDS = 7
FILES = 5_000
FILES_IN_DIRECTORY = 50
FILE_BYTES = 8_000_000 // FILES
GOAL_S = 0.3


def measure() -> Iterator[Figure]:
    """Yield the median of the ingest alone."""
    with tempfile.TemporaryDirectory(prefix="andon-bench-") as scratch:
        seals = asyncio.run(_rounds(Path(scratch)))
    note = f"all of them new, {min(seals):.3f} to {max(seals):.3f} s in {ROUNDS} rounds; {load()}"
    yield Figure(f"ingest of {FILES:,} files / {FILES * FILE_BYTES / 1e6:.0f} MB", statistics.median(seals), GOAL_S, "s", note)


def load() -> str:
    """Return how busy this machine is besides: what a figure of milliseconds depends on."""
    return f"load {os.getloadavg()[0]:.1f}"


async def _rounds(top: Path) -> list[float]:
    repository = await asyncio.to_thread(sample_repository, top / "sample")
    taken = await snapshot(repository, None)
    mirror = await Mirror.open(top / "mirror.git")
    await mirror.import_base(taken.commit, taken.pack)
    limits, owner = Limits(), (os.getuid(), os.getgid())
    seals = []
    for number in range(ROUNDS + 1):
        workspace = top / f"workspace-{number}"
        async with workspace_filesystem(workspace, limits.workspace_mib, limits.workspace_inodes_max, *owner):
            manifest = await provision(mirror, taken.commit, workspace, uid=owner[0], gid=owner[1])
            await asyncio.to_thread(_write, workspace)
            began = time.perf_counter()
            sealed = await seal(mirror, manifest, workspace, message="bench")
            seals.append(time.perf_counter() - began)
        if len(sealed.changes) != FILES:
            raise RuntimeError(f"{len(sealed.changes)} changes were sealed instead of {FILES}")
    return seals[1:]


def _write(workspace: Path) -> None:
    """Write pieces of Python's own library, each with a first line nobody has seen before: git must not find them in an earlier pack."""
    sources = _sources()
    for number in range(FILES):
        path = workspace / f"package_{number // FILES_IN_DIRECTORY:03}" / f"module_{number:04}.py"
        path.parent.mkdir(exist_ok=True)
        first = f'"""Module {number}, {os.urandom(8).hex()}."""\n'.encode()
        path.write_bytes((first + next(sources))[:FILE_BYTES])


def _sources() -> Iterator[bytes]:
    """Yield pieces of real source code: what git makes of filler says nothing about files of a project."""
    library = Path(os.__file__).parent
    left = b""
    for path in itertools.cycle([*sorted(library.glob("*.py")), *sorted(library.glob("asyncio/*.py"))]):
        left += path.read_bytes()
        while len(left) >= FILE_BYTES:
            yield left[:FILE_BYTES]
            left = left[FILE_BYTES:]
