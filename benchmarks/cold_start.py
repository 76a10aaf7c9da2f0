"""A job's way from its claim to the first instruction of the program in its sandbox, in units of `docker run` on the same engine.

The unit makes machines comparable: both are measured in turn, in shuffled order, in one run. Goals: PERFORMANCE.md and issue 5,
the cold path: workspace, gateway and a container with every wall; one at a time, and eight at once.
"""

import asyncio
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator

from benchmarks.an_executor import AnExecutor, an_executor
from benchmarks.figure import Figure
from sandbox.contract.result import AttemptResult, Outcome
from tests.servers.engines import EngineName, Engines, NotHereError, TestEngine
from tests.servers.images import agent_image_on

ROUNDS = 16
TOGETHER, ROUNDS_TOGETHER = 8, 5
ALONE_GOALS: dict[EngineName, float] = {"debian": 0.7, "current": 1.0}
TOGETHER_GOALS: dict[EngineName, float] = {"debian": 1.3, "current": 1.0}


def measure() -> Iterator[Figure]:
    """Yield two figures for each engine this machine can give."""
    command = shutil.which("docker")
    if command is None:
        print("no `docker` command: the unit cannot be measured")
        return
    with contextlib.ExitStack() as stack:
        engines = Engines(stack)
        for name, goal in ALONE_GOALS.items():
            try:
                engine = engines.get(name)
            except NotHereError as error:
                print(f"engine {name}: not measured ({error})")
                continue
            image = asyncio.run(agent_image_on(engine, engines))
            yield asyncio.run(_alone(engine, command, image, goal))
            yield asyncio.run(_together(engine, command, image, TOGETHER_GOALS[name]))


async def _alone(engine: TestEngine, command: str, image: str, goal: float) -> Figure:
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
    job_s, unit_s = statistics.median(jobs), statistics.median(units)
    note = f"{job_s * 1000:.0f} ms; `docker run --rm --network none IMAGE true`: {unit_s * 1000:.0f} ms; load {os.getloadavg()[0]:.1f}"
    return Figure(f"job received → first instruction, engine {engine.version}", job_s / unit_s, goal, "docker runs", note)


async def _together(engine: TestEngine, command: str, image: str, goal: float) -> Figure:
    """Return the rate of eight sandboxes begun at once, `true` in each, in units of eight `docker run … true` begun at once."""
    ours, units, jobs = [], [], []
    async with an_executor(engine.url, slots=TOGETHER) as executor:
        await _sandboxes_s(executor, image)
        for what in random.sample(["ours", "unit"] * ROUNDS_TOGETHER, 2 * ROUNDS_TOGETHER):
            if what == "ours":
                ours.append(await _sandboxes_s(executor, image))
            else:
                units.append(await asyncio.to_thread(_docker_runs_s, command, engine.url, image))
        jobs = [await _all_started_s(executor) for _ in range(ROUNDS_TOGETHER // 2)]
    our_s, unit_s = statistics.median(ours), statistics.median(units)
    rates = f"{TOGETHER / our_s:.1f}/s, bare {TOGETHER / unit_s:.1f}/s, made, run and removed"
    whole = f"whole jobs, until the last one's first instruction: {unit_s / statistics.median(jobs):.2f} of bare"
    note = f"{rates}; {whole}; load {os.getloadavg()[0]:.1f}"
    return Figure(f"{TOGETHER} sandboxes at once, engine {engine.version}", unit_s / our_s, goal, "of bare rate", note, is_rate=True)


async def _sandboxes_s(executor: AnExecutor, image: str) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(executor.sandbox(image) for _ in range(TOGETHER)))
    return time.perf_counter() - began


async def _first_instruction_s(executor: AnExecutor) -> float:
    result = await executor.attempt()
    return _started_at(result) - result.started_at


async def _all_started_s(executor: AnExecutor) -> float:
    began = time.time()
    results = await asyncio.gather(*(executor.attempt() for _ in range(TOGETHER)))
    return max(map(_started_at, results)) - began


def _started_at(result: AttemptResult) -> float:
    if result.outcome is not Outcome.SUBMITTED or result.first_instruction_at is None:
        raise RuntimeError(f"the attempt ended {result.outcome}: {result.reason}")
    return result.first_instruction_at


def _docker_run_s(command: str, url: str, image: str) -> float:
    began = time.perf_counter()
    subprocess.run(_docker_run(command, url, image), check=True)
    return time.perf_counter() - began


def _docker_runs_s(command: str, url: str, image: str) -> float:
    """Begin eight at once and wait for the last."""
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(subprocess.Popen(_docker_run(command, url, image))) for _ in range(TOGETHER)]
        failed = [process for process in running if process.wait() != 0]
    if failed:
        raise RuntimeError(f"{len(failed)} of {TOGETHER} bare runs failed")
    return time.perf_counter() - began


def _docker_run(command: str, url: str, image: str) -> list[str]:
    return [command, "-H", url, "run", "--rm", "--network", "none", image, "true"]
