"""What tracing costs: a span on the host, a span of a sandbox, and a whole replayed run beside one that is not traced."""

import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure
from sandbox.contract.ids import run_id, span_id, trace_id
from sandbox.gateway.caps import CAPS, Cap
from sandbox.gateway.otlp_body import TracesBody
from sandbox.gateway.otlp_relay import OtlpRelay
from sandbox.gateway.session import SOCKET_NAME, Session
from sandbox.gateway.terms import Tuning
from sandbox.telemetry import Attribute, Context, Spans
from tests.e2e.line import Line
from tests.e2e.watching import stack_pids
from tests.fakes.gateway_ledger import MemoryLedger

HOST_SPANS, HOST_ROUNDS = 1_000, 9
SANDBOX_SPANS = 500
PAIRS = 6
HOST_GOAL_US = 40.0
SANDBOX_GOAL_MS = 0.3
RUN_GOAL_PERCENT = 2.0
UNTRACED = {"OTEL_TRACES_SAMPLER": "always_off"}
RUN_S = 600.0
_ATTRIBUTES: dict[str, Attribute] = {
    "container.id": "c" * 64,
    "container.image.id": f"sha256:{'0' * 64}",
    "container.runtime.name": "runc",
    "andon.sandbox.network": "none",
    "andon.sandbox.memory_mib": 2_048,
    "andon.sandbox.cpus": 2.0,
    "andon.sandbox.pids_max": 256,
}
_IN_A_SANDBOX = """
import json, sys, time
from pathlib import Path
from sandbox.inside.agent.spans import ToolSpans
from sandbox.inside.agent.tools.call import ToolResult
spans, took = ToolSpans(Path(sys.argv[1]), sys.argv[2]), []
for turn in range(int(sys.argv[3])):
    began = time.perf_counter()
    spans.record("bash", "toolu_01", turn, spans.begin(), ToolResult("x"))
    took.append(time.perf_counter() - began)
spans.close()
print(json.dumps(took))
"""


def measure() -> Iterator[Figure]:
    """Yield three figures; the last one needs the engine and its image, and some minutes."""
    yield _host_span()
    yield asyncio.run(_sandbox_span())
    yield _replayed_run()


def _host_span() -> Figure:
    """Return the processor time of one span, made with the attributes of a container's and ended, in the least disturbed round."""
    parent = _parent()
    made, encoded = [], []
    for _ in range(HOST_ROUNDS):
        spans = Spans("andon-exec", "bench")
        began = time.thread_time()
        for _ in range(HOST_SPANS):
            with spans.span("container start", parent=parent, attributes=_ATTRIBUTES):
                pass
        made.append((time.thread_time() - began) / HOST_SPANS)
        began = time.thread_time()
        spans.drain(parent.trace_id)
        encoded.append((time.thread_time() - began) / HOST_SPANS)
    note = f"{len(_ATTRIBUTES)} attributes; encoded and packed later, {min(encoded) * 1e6:.0f} µs more"
    return Figure("tracing: a span on the host", min(made) * 1e6, HOST_GOAL_US, "µs", note)


async def _sandbox_span() -> Figure:
    """Return how long a tool call of a sandbox is held up by its span, at a real gateway that judges it."""
    parent, spans = _parent(), Spans("andon-agent", "bench")
    relay = OtlpRelay(spans, parent, time.time(), time.time, {"container.id": "c" * 64})

    def take(body: TracesBody) -> None:
        relay.take(body)

    uncapped = Tuning(caps=dict.fromkeys(CAPS, Cap(1_000_000, 1_000_000)))
    with tempfile.TemporaryDirectory(prefix="andon-bench-") as directory:
        async with Session(Path(directory), None, MemoryLedger(), None, stage="bench", round_=1, on_traces=take, tuning=uncapped):
            socket = str(Path(directory) / SOCKET_NAME)
            inside = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _IN_A_SANDBOX, socket, parent.traceparent, str(SANDBOX_SPANS)), stdout=subprocess.PIPE
            )
            said, _ = await inside.communicate()
    if inside.returncode != 0 or relay.accepted != SANDBOX_SPANS:
        raise RuntimeError(f"of {SANDBOX_SPANS} spans {relay.accepted} were taken; exit code {inside.returncode}")
    took_ms = [each * 1_000 for each in json.loads(said)]
    note = f"{statistics.quantiles(took_ms, n=100)[98]:.2f} ms for the slowest in a hundred; load {os.getloadavg()[0]:.1f}"
    return Figure("tracing: a span of a sandbox", statistics.median(took_ms), SANDBOX_GOAL_MS, "ms", note)


def _replayed_run() -> Figure:
    """Return by how much a traced replay of the sample is slower than one beside it that is not sampled."""
    with tempfile.TemporaryDirectory(prefix="andon-bench-") as top, contextlib.ExitStack() as stack:
        traced, untraced = (stack.enter_context(_kept(Path(top) / name, more)) for name, more in (("on", {}), ("off", UNTRACED)))
        for line in (traced, untraced):
            _run_s(line)  # images, caches
        more_s, without_s, more_work_s = [], [], []
        for _ in range(PAIRS):
            took = {line.home: _run_s(line) for line in random.sample([traced, untraced], 2)}
            more_s.append(took[traced.home][0] - took[untraced.home][0])
            more_work_s.append(took[traced.home][1] - took[untraced.home][1])
            without_s.append(took[untraced.home][0])
    run_s = statistics.median(without_s)
    spread = statistics.quantiles(more_s, n=4)
    note = f"{PAIRS} pairs; {run_s:.1f} s without; half of the differences from {spread[0]:+.2f} to {spread[2]:+.2f} s"
    work = f"processor time of supervisor, executor and broker {statistics.median(more_work_s):+.2f} s a run"
    name = "tracing: a replayed run's wall time"
    return Figure(name, 100 * statistics.median(more_s) / run_s, RUN_GOAL_PERCENT, "%", f"{note}; {work}; load {os.getloadavg()[0]:.1f}")


@contextlib.contextmanager
def _kept(home: Path, environment: dict[str, str]) -> Iterator[Line]:
    """Keep a stack up that replays the sample."""
    home.mkdir()
    line = Line(home, environment)
    _done(line, "up")
    try:
        yield line
    finally:
        _done(line, "down")


def _run_s(line: Line) -> tuple[float, float]:
    """Return the wall time of a run, and the processor time its stack spent on it: that one hardly depends on the machine's load."""
    worked_s, began = _worked_s(line), time.perf_counter()
    _done(line, "run", "--json")
    return time.perf_counter() - began, _worked_s(line) - worked_s


def _worked_s(line: Line) -> float:
    ticks = 0
    for pid in stack_pids(line).values():
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _done(line: Line, *arguments: str) -> None:
    done = line.andon(*arguments, timeout_s=RUN_S)
    if done.exit_code != 0:
        raise RuntimeError(f"andon {' '.join(arguments)}: {done.stderr.strip()[-400:]}")


def _parent() -> Context:
    run = run_id(time.time_ns() // 1_000_000, os.urandom(2))
    return Context(trace_id(run), span_id(run))
