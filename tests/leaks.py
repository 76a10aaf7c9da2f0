"""What a test may have left on the machine: child processes and mounts; containers are counted where engines are known."""

import os
import time
from collections.abc import Callable
from pathlib import Path

_SETTLE_S = 2.0

SESSION_PROCESSES: set[int] = set()
"""Servers a session fixture started in the middle of a test; whoever adds a pid ends the process with the session."""


def children() -> dict[int, str]:
    """Return the direct children of this process, all threads together, with their command; zombies do not count."""
    found: dict[int, str] = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:
            continue
        for pid in pids:
            command = _command(pid)
            if command:
                found[int(pid)] = f"{pid} ({command})"
    return found


def mounts_below(directory: Path) -> list[str]:
    """Return the mount points at or below `directory`."""
    prefix = os.fspath(directory)
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point == prefix or point.startswith(f"{prefix}/")]


def settled(leaks: Callable[[], list[str]]) -> list[str]:
    """Return what is still left after at most two seconds: a process just told to end may take a moment."""
    deadline = time.monotonic() + _SETTLE_S
    while (left := leaks()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:120]
    except OSError:
        return ""
