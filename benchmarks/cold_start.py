"""A job's way from its claim to the first instruction of the program in its sandbox, in units of `docker run` on the same engine.

The unit makes machines comparable: both are measured in turn, in shuffled order, in one run. Goals: PERFORMANCE.md and issue 3,
the cold path: workspace, gateway and a container with every wall.
"""

import asyncio
import contextlib
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator

from benchmarks.an_executor import AnExecutor, an_executor
from benchmarks.figure import Figure
from sandbox.contract.result import Outcome
from tests.servers.engines import EngineName, Engines, NotHereError, TestEngine
from tests.servers.images import agent_image_on

ROUNDS = 16
GOALS: dict[EngineName, float] = {"debian": 0.8, "current": 1.1}


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
            job_s, unit_s = asyncio.run(_in_turn(engine, engines, command))
            note = f"{job_s * 1000:.0f} ms; `docker run --rm --network none IMAGE true`: {unit_s * 1000:.0f} ms"
            yield Figure(f"job received → first instruction, engine {engine.version}", job_s / unit_s, goal, "docker runs", note)


async def _in_turn(engine: TestEngine, engines: Engines, command: str) -> tuple[float, float]:
    image = await agent_image_on(engine, engines)
    jobs, units = [], []
    async with an_executor(engine.url) as executor:
        # The first of each warms caches that a second job finds warm.
        await _first_instruction_s(executor)
        await asyncio.to_thread(_docker_run_s, command, engine.url, image)
        for what in random.sample(["job", "unit"] * ROUNDS, 2 * ROUNDS):
            if what == "job":
                jobs.append(await _first_instruction_s(executor))
            else:
                units.append(await asyncio.to_thread(_docker_run_s, command, engine.url, image))
    return statistics.median(jobs), statistics.median(units)


async def _first_instruction_s(executor: AnExecutor) -> float:
    result = await executor.attempt()
    if result.outcome is not Outcome.SUBMITTED or result.first_instruction_at is None:
        raise RuntimeError(f"the attempt ended {result.outcome}: {result.reason}")
    return result.first_instruction_at - result.started_at


def _docker_run_s(command: str, url: str, image: str) -> float:
    began = time.perf_counter()
    subprocess.run([command, "-H", url, "run", "--rm", "--network", "none", image, "true"], check=True)
    return time.perf_counter() - began
