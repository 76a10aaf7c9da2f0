"""A sandbox's way from nothing to the first instruction of its program, in units of `docker run` on the same engine.

The unit makes machines comparable: both are measured in turn, in one run. Goals: PERFORMANCE.md and issue 3, the cold path.
"""

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure
from sandbox.runtime.container_spec import PROGRAM, SlotSpec
from sandbox.runtime.docker import DockerRuntime
from tests.servers.engines import EngineName, Engines, NotHereError, TestEngine
from tests.servers.images import agent_image_on

ROUNDS = 12
GOALS: dict[EngineName, float] = {"debian": 0.8, "current": 1.1}
_UID = 232_000


def measure() -> Iterator[Figure]:
    """Yield one figure for each engine this machine can give."""
    command = shutil.which("docker")
    with contextlib.ExitStack() as stack:
        engines = Engines(stack)
        for name, goal in GOALS.items():
            if command is None:
                print("no `docker` command: the unit cannot be measured")
                return
            try:
                engine = engines.get(name)
            except NotHereError as error:
                print(f"engine {name}: not measured ({error})")
                continue
            sandbox_s, unit_s = asyncio.run(_in_turn(engine, engines, command))
            note = f"{sandbox_s * 1000:.0f} ms; `docker run --rm --network none IMAGE true`: {unit_s * 1000:.0f} ms"
            yield Figure(f"cold start → first instruction, engine {engine.version}", sandbox_s / unit_s, goal, "docker runs", note)


async def _in_turn(engine: TestEngine, engines: Engines, command: str) -> tuple[float, float]:
    image = await agent_image_on(engine, engines)
    runtime = await DockerRuntime.connect(engine.url)
    try:
        with tempfile.TemporaryDirectory(prefix="andon-bench-") as scratch:
            slot = _slot(Path(scratch))
            sandboxes, units = [], []
            for _ in range(ROUNDS):
                sandboxes.append(await _first_instruction_s(runtime, slot, image))
                units.append(await asyncio.to_thread(_docker_run_s, command, engine.url, image))
    finally:
        runtime.close()
    # The first of each warms caches that a second job finds warm.
    return statistics.median(sandboxes[1:]), statistics.median(units[1:])


async def _first_instruction_s(runtime: DockerRuntime, slot: SlotSpec, image: str) -> float:
    began = time.time()
    box = await runtime.stand_by(slot, image)
    try:
        await box.wait()
        return float(await box.log()) - began
    finally:
        await box.remove()


def _docker_run_s(command: str, url: str, image: str) -> float:
    began = time.time()
    subprocess.run([command, "-H", url, "run", "--rm", "--network", "none", image, "true"], check=True)
    return time.time() - began


def _slot(home: Path) -> SlotSpec:
    uid = _UID if os.geteuid() == 0 else os.getuid()
    for name in ("workspace", "task", "gw", "out"):
        (home / name).mkdir()
    return SlotSpec(
        instance="bench",
        slot=0,
        uid=uid,
        gid=uid,
        workspace=home / "workspace",
        task=home / "task",
        gateway=home / "gw",
        out=home / "out",
        deadline=0,
        command=(*PROGRAM[:2], "-c", "import time; print(time.time())"),
    )
