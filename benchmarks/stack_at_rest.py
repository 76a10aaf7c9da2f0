"""The embedded stack: how soon a second start begins its first stage, and what its processes hold in memory when nothing runs."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from benchmarks.figure import Figure
from supervisor.demo import SAMPLE_REQUEST

START_GOAL_S = 10.0
MEMORY_GOAL_MB = 250.0
SETTLE_S = 5.0
RUN_S = 300.0


def measure() -> Iterator[Figure]:
    """Yield the second start's seconds and the resident memory of supervisor, executor and broker; the parent's is told beside it."""
    with tempfile.TemporaryDirectory(prefix="andon-bench-") as scratch:
        home = Path(scratch)
        _andon(home, "run", SAMPLE_REQUEST, "--json")
        yield Figure(
            "second start → first stage begins", _second_start_s(home), START_GOAL_S, "s", "replay of the sample, no stack running"
        )
        _andon(home, "up")
        try:
            time.sleep(SETTLE_S)
            stack = json.loads((home / "state" / "andon" / "stack.json").read_text())
            held = {name: _resident_mb(pid) for name, pid in {**stack["children"], "stack": stack["pid"]}.items()}
        finally:
            _andon(home, "down")
    parent = held.pop("stack")
    note = ", ".join(f"{name} {mb:.0f}" for name, mb in held.items())
    yield Figure("idle: supervisor + executor + NATS, resident", sum(held.values()), MEMORY_GOAL_MB, "MB", note)
    yield Figure(
        "idle: the same with the stack's parent process", sum(held.values()) + parent, MEMORY_GOAL_MB, "MB", f"parent {parent:.0f}"
    )


def _second_start_s(home: Path) -> float:
    began = time.time()
    result = json.loads(_andon(home, "run", SAMPLE_REQUEST, "--json"))
    first = min(attempt["started_at"] for stage in result["stages"] for attempt in stage["attempts"])
    return datetime.fromisoformat(first).timestamp() - began


def _andon(home: Path, *arguments: str) -> str:
    """Run a command with a home of its own and no model key."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CONFIG_HOME": str(home / "config"),
        **({"DOCKER_HOST": os.environ["DOCKER_HOST"]} if "DOCKER_HOST" in os.environ else {}),
    }
    command = [str(Path(sys.executable).with_name("andon")), *arguments]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=RUN_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`andon {' '.join(arguments)}` ended with {done.returncode}: {done.stderr[-1_000:]}")
    return done.stdout


def _resident_mb(pid: int) -> float:
    """Return a process's resident memory; pages two processes share count for each, as in the goal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} is gone")
