"""The bus under many executors: jobs a second, publish to result, priorities, and a pull from a deep queue.

Everything is real but the sandbox: the broker with its three accounts and every write on disk, claims, results, acks. Clients and
broker share this machine's cores, so each figure says how busy the machine was besides.
"""

import asyncio
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.figure import Figure
from sandbox.bus import Connection, NatsExecutorLink, NatsSupervisorLink
from sandbox.contract import subjects
from sandbox.contract.blob import BlobRef
from sandbox.contract.credentials import write_credentials
from sandbox.contract.ids import job_id, run_id
from sandbox.contract.job import Check, JobSpec
from sandbox.contract.wire import BudgetReply, BudgetRequest, ClaimReply, ClaimRequest, JoinReply, JoinRequest
from supervisor.dispatch import JobQueue
from supervisor.store.broker.embedded import EmbeddedBroker, find_server

T = TypeVar("T")

EXECUTORS = 50
CLIENT_PROCESSES = 2
JOBS = 2_000
IN_FLIGHT = 100
SINGLE_JOBS = 300
RATE_GOAL, P99_GOAL_S = 250.0, 0.060
PRIORITY_JOBS, PRIORITY_EXECUTORS, PRIORITY_WORK_S = 200, 4, 0.05
LOOKAHEAD = 1
"""Jobs that may already be on their way to an executor when a more urgent one comes; the scheduler publishes against credit."""
SHALLOW, DEEP, FETCHES = 1_000, 100_000, 200
DEPTH_GOAL = 1.5
WAIT_S = 120.0


def measure() -> Iterator[Figure]:
    """Yield the figures one after the other, each with a broker of its own."""
    before_s = _cpu_s()
    rate, p50_s, p99_s = _run(_cycle)
    cpu_ms = (_cpu_s() - before_s) * 1000 / (JOBS + SINGLE_JOBS)
    load = f"{EXECUTORS} executors in {CLIENT_PROCESSES} processes, {os.cpu_count()} cores for everything, {_load()}"
    # Smaller is better everywhere in this table, so a rate is shown as the time one job takes.
    note = f"{rate:.0f} jobs/s, goal ≥ {RATE_GOAL:.0f}; {cpu_ms:.1f} ms of CPU a job, starts included; {load}"
    yield Figure("fleet: time a job when saturated", 1000 / rate, 1000 / RATE_GOAL, "ms", note)
    yield Figure("fleet: publish → result, p99, one in flight", p99_s * 1000, P99_GOAL_S * 1000, "ms", f"p50 {p50_s * 1000:.1f} ms; {load}")
    inversions, seconds = _run(_priorities)
    ideal_s = PRIORITY_JOBS * PRIORITY_WORK_S / PRIORITY_EXECUTORS
    note = f"{PRIORITY_JOBS} random jobs, {PRIORITY_EXECUTORS} executors, {seconds:.2f} s (ideal {ideal_s:.1f}), {_load()}"
    yield Figure(f"fleet: inversions beyond a lookahead of {LOOKAHEAD}", inversions, 0, "jobs", note)
    shallow_s, deep_s = _run(_depths)
    note = f"{shallow_s * 1000:.2f} ms at {SHALLOW:,}, {deep_s * 1000:.2f} ms at {DEEP:,}, medians of {FETCHES}; {_load()}"
    yield Figure("fleet: pull from a deep queue", deep_s / shallow_s, DEPTH_GOAL, "× shallow", note)


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of every child that has ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def _run(what: Callable[[Path], Coroutine[Any, Any, T]]) -> T:
    with tempfile.TemporaryDirectory(prefix="andon-bench-") as scratch:
        return asyncio.run(what(Path(scratch)))


def a_job(number: int, priority: int = 5) -> JobSpec:
    """Return a job that nobody would have to prepare."""
    run = run_id(1_795_000_000_000 + number, number.to_bytes(4, "big")[-2:])
    return JobSpec(
        job_id=job_id(run, "validate", 1),
        run_id=run,
        feature="bench",
        stage="validate",
        role="validate",
        round=1,
        kind="checks",
        priority=priority,
        base_commit="0" * 40,
        input_pack=BlobRef(bucket="IN", name="pack", size_bytes=1, sha256="0" * 64),
        checks=(Check(name="nothing", argv=("true",)),),
    )


class Desk:
    """Grants every claim once and remembers the order."""

    def __init__(self) -> None:
        self.claimed: list[str] = []
        self._granted: set[str] = set()

    async def join(self, _request: JoinRequest) -> JoinReply:
        """Let everybody in."""
        return JoinReply(accepted=True)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Grant the first claim of a job."""
        if request.job_id in self._granted:
            return ClaimReply(decision="done")
        self._granted.add(request.job_id)
        self.claimed.append(request.job_id)
        return ClaimReply(decision="granted", attempt=1, token=request.token, wall_left_s=60)

    async def budget(self, _request: BudgetRequest) -> BudgetReply:
        """Grant nothing: no job here calls a model."""
        return BudgetReply(granted=False, remaining_nano_usd=0)


@asynccontextmanager
async def _clients(broker: EmbeddedBroker, scratch: Path, executors: int, processes: int, work_s: float) -> AsyncIterator[None]:
    """Admit executors and run them in processes of their own."""
    paths = [scratch / f"ex{number}.andon.json" for number in range(executors)]
    for number, path in enumerate(paths):
        write_credentials(path, await broker.add_executor(f"ex{number}"))
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fleet_clients", str(work_s), *map(str, paths[part::processes])], stdin=subprocess.PIPE
        )
        for part in range(processes)
    ]
    try:
        yield
    finally:
        for process in running:
            process.communicate(timeout=30)


@asynccontextmanager
async def _fleet(scratch: Path, executors: int, processes: int, work_s: float) -> AsyncIterator[tuple[NatsSupervisorLink, Desk]]:
    """Run broker, supervisor's end and executors, and wait until all of them pull."""
    async with EmbeddedBroker.run(scratch / "nats") as broker, NatsSupervisorLink.connect(broker.supervisor) as link:
        desk = Desk()
        await link.serve(desk, {})
        async with _clients(broker, scratch, executors, processes, work_s):
            async with asyncio.timeout(WAIT_S):
                while await link.credit("default") < executors:
                    await asyncio.sleep(0.1)
            yield link, desk


async def _cycle(scratch: Path) -> tuple[float, float, float]:
    """Return jobs a second when saturated, and the median and 99th percentile of one job's way when nothing else is under way."""
    async with _fleet(scratch, EXECUTORS, CLIENT_PROCESSES, 0.0) as (link, _):
        ended: dict[str, asyncio.Future[None]] = {}
        taking = asyncio.create_task(_take_results(link, ended))
        try:
            ways = [await _one(link, ended, number) for number in range(SINGLE_JOBS)]
            room = asyncio.Semaphore(IN_FLIGHT)

            async def bounded(number: int) -> None:
                async with room:
                    await _one(link, ended, number)

            began = time.perf_counter()
            await asyncio.gather(*(bounded(SINGLE_JOBS + number) for number in range(JOBS)))
            rate = JOBS / (time.perf_counter() - began)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
    ways.sort()
    return rate, statistics.median(ways), ways[int(len(ways) * 0.99)]


async def _one(link: NatsSupervisorLink, ended: "dict[str, asyncio.Future[None]]", number: int) -> float:
    """Publish one job and return the seconds until its result is here."""
    job = a_job(number)
    future = ended[job.job_id] = asyncio.get_running_loop().create_future()
    began = time.perf_counter()
    await link.publish_job(job, job.job_id)
    async with asyncio.timeout(WAIT_S):
        await future
    return time.perf_counter() - began


async def _take_results(link: NatsSupervisorLink, ended: "dict[str, asyncio.Future[None]]") -> None:
    async with asyncio.TaskGroup() as tasks:
        async for stored in link.results():
            future = ended.pop(stored.result.job_id, None)
            if future is not None:
                future.set_result(None)
            tasks.create_task(stored.confirm())


async def _priorities(scratch: Path) -> tuple[int, float]:
    """Return how many jobs were claimed although more than `LOOKAHEAD` more urgent ones waited, and how long all of them took."""
    dice = random.Random(4)
    jobs = [a_job(number, dice.randint(1, 10)) for number in range(PRIORITY_JOBS)]
    priority = {job.job_id: job.priority for job in jobs}
    async with _fleet(scratch, PRIORITY_EXECUTORS, 1, PRIORITY_WORK_S) as (link, desk):
        queue = JobQueue(link)
        for job in jobs:
            queue.put(job, job.job_id, lambda: True)
        ended: dict[str, asyncio.Future[None]] = {job.job_id: asyncio.get_running_loop().create_future() for job in jobs}
        futures = list(ended.values())
        began = time.perf_counter()
        working = [asyncio.create_task(queue.run()), asyncio.create_task(_take_results(link, ended))]
        try:
            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(*futures)
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        seconds = time.perf_counter() - began
    return inversions(desk.claimed, priority, PRIORITY_EXECUTORS * LOOKAHEAD), seconds


def inversions(claimed: list[str], priority: dict[str, int], lookahead: int) -> int:
    """Return how many jobs were claimed while more than `lookahead` more urgent ones were still to come."""
    left = sorted(priority[name] for name in claimed)
    count = 0
    for name in claimed:
        left.remove(priority[name])
        count += sum(other > priority[name] for other in left) > lookahead
    return count


async def _depths(scratch: Path) -> tuple[float, float]:
    """Return the median seconds of a pull with few and with many jobs queued."""
    medians = []
    for depth in (SHALLOW, DEEP):
        directory = scratch / str(depth)
        await _filled(directory, depth)
        async with EmbeddedBroker.run(directory) as broker:
            credentials = await broker.add_executor("ex0")
            async with NatsExecutorLink.connect(credentials) as link:
                medians.append(statistics.median([await _pull_s(link) for _ in range(FETCHES)][10:]))
    return medians[0], medians[1]


async def _pull_s(link: NatsExecutorLink) -> float:
    began = time.perf_counter()
    if await link.next_job(5) is None:
        raise RuntimeError("a queue with jobs gave none")
    return time.perf_counter() - began


async def _filled(directory: Path, depth: int) -> None:
    """Make a broker's store with `depth` jobs in one lane; written without waiting for the disk, measured with it."""
    async with EmbeddedBroker.run(directory) as broker, NatsSupervisorLink.connect(broker.supervisor) as link:
        info = await link.connection.api(f"STREAM.INFO.{subjects.STREAM_JOBS}")
        await link.connection.api(f"STREAM.UPDATE.{subjects.STREAM_JOBS}", info["config"] | {"max_msgs": 2 * DEEP})
        await link.credit("default")
        credentials, port = broker.supervisor, broker.url.rsplit(":", 1)[1]
    text = (directory / "nats.conf").read_text()
    quick = directory / "quick.conf"
    quick.write_text(text.replace("sync_interval: always", 'sync_interval: "2m"').replace('127.0.0.1:-1"', f'127.0.0.1:{port}"'))
    server = subprocess.Popen([str(find_server(None)), "-c", str(quick)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        async with Connection.open(credentials, name="fill", inbox="fleet", connect_s=15) as connection:
            await _publish_all(connection, depth)
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(15)
        server.kill()


async def _publish_all(connection: Connection, depth: int) -> None:
    subject, payload = subjects.job(subjects.lane("default", "")), a_job(1).model_dump_json().encode()
    async with asyncio.timeout(WAIT_S):
        for start in range(0, depth, 500):
            for _ in range(start, min(start + 500, depth)):
                await connection.publish(subject, payload)
            while (await connection.api(f"STREAM.INFO.{subjects.STREAM_JOBS}"))["state"]["messages"] < min(start + 500, depth):
                await asyncio.sleep(0.002)
