"""How soon a job runs elsewhere when its executor is killed: two executor processes, a supervisor, a real broker; no containers."""

import asyncio
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure
from tests.chaos import scene
from tests.chaos.paper_fleet import PaperFleet
from tests.chaos.paper_site import submitted
from tests.e2e.line import Provider
from tests.e2e.watching import a_sample

ROUNDS = 3
GOAL_S = 12.0
WAIT_S = 90.0
DAWDLE_S = 60.0
"""The agent is in the middle of something long when its executor dies."""


def measure() -> Iterator[Figure]:
    """Yield the median of three kills."""
    took = [_round(number) for number in range(ROUNDS)]
    note = f"{', '.join(f'{each:.1f}' for each in took)} s; killed in a tool call, not started again; load {os.getloadavg()[0]:.1f}"
    yield Figure("executor kill -9 → its job runs elsewhere", statistics.median(took), GOAL_S, "s", note)


def _round(number: int) -> float:
    with tempfile.TemporaryDirectory(prefix="andon-bench-", dir="/tmp") as scratch, Provider() as provider:
        Path(scratch).chmod(0o711)
        provider.says(scene.script(dawdle_s=DAWDLE_S))
        home = Path(scratch) / "home"
        home.mkdir()
        repository = a_sample(home / "notes")
        return asyncio.run(_kill_one(home, repository, provider, f"failover-{number}"))


async def _kill_one(home: Path, repository: Path, provider: Provider, slug: str) -> float:
    async with PaperFleet.running(home, provider.server.environment(), supervisors=1, executors=2, is_kept=False) as fleet:
        run = await submitted(fleet, repository, slug)
        log = fleet.state / "runs" / run / "events.jsonl"
        await _until(lambda: len(provider.server.calls("implement")) >= 2)
        first = next(each for each in _started(log) if each["job_id"] == f"{run}-implement-1")
        (victim,) = (each for each in fleet.executors if each.name == first["executor"])
        began = time.monotonic()
        os.kill(victim.process.pid, signal.SIGKILL)
        await _until(lambda: any(each["job_id"] == first["job_id"] and each["attempt"] == 2 for each in _started(log)))
        took_s = time.monotonic() - began
        await _until(lambda: any(call.attempt == 2 for call in provider.server.begun if call.stage == "implement"))
        (second,) = (each for each in _started(log) if each["job_id"] == first["job_id"] and each["attempt"] == 2)
        if second["executor"] == first["executor"]:
            raise RuntimeError("the job went back to the executor that was killed")
        # What it left, mounts and a sandbox, is its next process's to clean.
        victim.keep()
        await _until(lambda: not list(home.glob(f"{victim.name}/slots/*/lease.json")))
        return took_s


def _started(log: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")] if log.exists() else []
    return [event for event in events if event["type"] == "attempt_started"]


async def _until(is_so: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():
            await asyncio.sleep(0.02)
