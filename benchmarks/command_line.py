"""How long the command takes to say anything: people type it many times a day."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.figure import Figure

ROUNDS = 9


def measure() -> Iterator[Figure]:
    """Yield the median of `andon --help`."""
    yield Figure("andon --help", statistics.median(_help_s() for _ in range(ROUNDS)), 0.2, "s")


def _help_s() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "from supervisor.cli import main; main()", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began
