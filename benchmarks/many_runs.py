"""A supervisor with a thousand open runs: how long it takes to rebuild them from the log, and how much memory they take; real NATS.

Every run is in the middle of its line: three stages done, two jobs waiting for an executor that is not there.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from benchmarks.figure import Figure
from sandbox.bus import NatsSupervisorLink
from sandbox.contract import subjects
from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.blob import BlobRef
from sandbox.contract.errors import BrokerError
from sandbox.contract.ids import job_id, run_id, trace_id
from sandbox.contract.job import JobSpec, Submission
from sandbox.contract.result import Outcome, Usage
from supervisor.pipeline import events as ev
from supervisor.pipeline.load import default_pipeline
from supervisor.pipeline.submit import WhyReply, WhyRequest
from supervisor.store.broker.embedded import EmbeddedBroker, supervisor_file
from supervisor.store.client import NatsFleetClient
from supervisor.store.log.jetstream import JetStreamEventLog

RUNS = 1_000
REBUILD_GOAL_S = 3.0
RSS_GOAL_MIB = 256.0
WHY_GOAL_S = 1.0
AT_ONCE = 64
SETTLE_S = 20.0
"""Time to write every run's files and put its jobs into the queue, after which the memory is looked at."""
WAIT_S = 120.0
TEXT = "Limit each client to 100 requests a minute, answer 429 with Retry-After beyond it, and say so in the documentation. "


def measure() -> Iterator[Figure]:
    """Yield rebuild time, memory and the time of an answer."""
    rebuilt_s, started_s, rss_mib, why_s, events = asyncio.run(_measured())
    note = f"{RUNS} open runs, {events} events; {started_s:.2f} s with the interpreter's start and the lease"
    yield Figure("many runs: rebuilt from the log", rebuilt_s, REBUILD_GOAL_S, "s", note)
    yield Figure("many runs: memory of the supervisor (peak)", rss_mib, RSS_GOAL_MIB, "MiB", f"{RUNS} open runs, {2 * RUNS} waiting jobs")
    yield Figure("many runs: answer to why", why_s, WHY_GOAL_S, "s", f"{2 * RUNS} jobs in the queue")


async def _measured() -> tuple[float, float, float, float, int]:
    with tempfile.TemporaryDirectory() as directory:
        async with EmbeddedBroker.run(Path(directory) / "nats") as broker:
            async with NatsSupervisorLink.connect(broker.supervisor) as link:
                spec = await link.put_blob("job", _job().model_dump_json().encode())
                runs, events = await _written(JetStreamEventLog(link.connection), spec)
            async with NatsFleetClient.connect(broker.supervisor) as client:
                began = time.perf_counter()
                async with _supervisor(Path(directory), broker.url) as (process, said):
                    await _answered(client, runs[0])
                    started_s = time.perf_counter() - began
                    await asyncio.sleep(SETTLE_S)
                    began = time.perf_counter()
                    reply = await _answered(client, runs[-1])
                    why_s = time.perf_counter() - began
                    if reply.reasons[0].kind != "queued":
                        raise AssertionError(f"the jobs of {runs[-1]} do not wait: {reply}")
                    return _rebuilt_s(said), started_s, _peak_mib(process.pid), why_s, events


async def _written(log: JetStreamEventLog, spec: BlobRef) -> tuple[list[str], int]:
    """Write the logs of all runs."""
    free = asyncio.Semaphore(AT_ONCE)

    async def write(number: int) -> tuple[str, int]:
        async with free:
            run, seq = run_id(1_750_000_000_000 + 64 * number, b"\0\0"), 0
            story = _story(run, number, spec)
            for event in story:
                seq = await log.append(event, seq)
            return run, len(story)

    written = await asyncio.gather(*(write(number) for number in range(RUNS)))
    return [run for run, _ in written], sum(count for _, count in written)


def _story(run: str, number: int, spec: BlobRef) -> list[ev.AnyEvent]:
    intent = ev.Intent(
        request=f"{number}: {TEXT * 10}",
        feature=f"feature-{number}",
        repository=f"/home/ada/{number}",
        base_name="main",
        base_commit=_sha(number),
        base_pack=spec,
        branch=f"andon/feature-{number}",
        budget_nano_usd=50 * 10**9,
        warn_nano_usd=10 * 10**9,
    )
    story: list[ev.AnyEvent] = [
        ev.RunAccepted(run_id=run, at=1.0, intent=intent, pipeline=default_pipeline(), trace_id=trace_id(run), request_id=f"r-{number}")
    ]
    base = intent.base_commit
    for at, stage in enumerate(("baseline", "spec", "interface")):
        story += _done(run, stage, base, _sha(1_000_000 * (at + 1) + number), spec)
        base = story[-1].commit or base if isinstance(story[-1], ev.JobJudged) else base
    return [*story, *(_dispatched(run, stage, base, spec) for stage in ("implement", "test"))]


def _dispatched(run: str, stage: str, base: str, spec: BlobRef) -> ev.JobDispatched:
    kind = "checks" if stage == "baseline" else "agent"
    about = {"run_id": run, "at": 1.0, "job_id": job_id(run, stage, 1), "stage": stage, "role": stage, "round": 1, "kind": kind}
    return ev.JobDispatched.model_validate(about | {"base_commit": base, "spec": spec})


def _done(run: str, stage: str, base: str, commit: str, spec: BlobRef) -> list[ev.AnyEvent]:
    job = job_id(run, stage, 1)
    same = {"run_id": run, "at": 1.0, "job_id": job, "attempt": 1}
    calls: list[ev.AnyEvent] = []
    for call in ("a", "b") if stage != "baseline" else ():
        calls.append(ev.BudgetReserved.model_validate(same | {"call_id": call, "nano_usd": 10**6}))
        calls.append(ev.BudgetSettled.model_validate(same | {"call_id": call, "nano_usd": 10**5, "usage": Usage(input_tokens=9)}))
    ends = {"executor": "one", "outcome": Outcome.SUBMITTED, "started_at": 1.0, "ended_at": 2.0, "result": spec, "log": None}
    said = {"submission": Submission(status="done", summary=TEXT * 5), "container_id": "c" * 64}
    ack = "$JS.ACK.JOBS.default.1.1.1.1.0"
    judged = {"run_id": run, "at": 2.0, "job_id": job, "verdict": "pass", "commit": base if stage == "baseline" else commit}
    return [
        _dispatched(run, stage, base, spec),
        ev.AttemptStarted.model_validate(same | {"executor": "one", "token_sha256": "0" * 64, "ack_subject": ack}),
        *calls,
        ev.AttemptEnded.model_validate(same | ends | said),
        ev.JobJudged.model_validate(judged),
    ]


def _job() -> JobSpec:
    run = run_id(1_750_000_000_000, b"\0\0")
    ref = BlobRef(bucket="IN_default", name="pack", sha256="0" * 64, size_bytes=1)
    agent = AgentSpec(name="implement", model="claude-sonnet-5-5", system=TEXT * 50, prompt=TEXT * 20)
    about = {"job_id": job_id(run, "implement", 1), "run_id": run, "feature": "feature-0", "stage": "implement", "role": "implement"}
    return JobSpec.model_validate(about | {"round": 1, "kind": "agent", "base_commit": _sha(0), "input_pack": ref, "agent": agent})


def _sha(number: int) -> str:
    return f"{number:040x}"


@asynccontextmanager
async def _supervisor(directory: Path, url: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    """Run a supervisor process with a state directory that has seen none of the runs."""
    own = {
        "NATS_URL": url,
        "NATS_CREDS": str(supervisor_file(directory / "nats")),
        "ANDON_STATE_DIRECTORY": str(directory / "state"),
        "ANDON_DISK_FLOOR_MIB": "0",
        "HOME": str(directory),
        "PATH": os.environ["PATH"],
    }
    said = directory / "supervisor.log"
    with said.open("wb") as output:
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "supervisor", env=own, stdout=output, stderr=output)
    try:
        yield process, said
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _answered(client: NatsFleetClient, run: str) -> WhyReply:
    """Ask until a supervisor answers."""
    until = time.perf_counter() + WAIT_S
    while True:
        try:
            return WhyReply.model_validate_json(
                await client.request(subjects.RPC_WHY, WhyRequest(run_id=run).model_dump_json().encode(), timeout_s=10.0)
            )
        except BrokerError:
            if time.perf_counter() > until:
                raise
            await asyncio.sleep(0.02)


def _rebuilt_s(said: Path) -> float:
    """Return what the supervisor logged of its own start."""
    line = next(line for line in said.read_text().splitlines() if "supervisor.ready" in line)
    return float(json.loads(line)["duration_ms"]) / 1_000


def _peak_mib(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
