"""What executors tell ends in the file of the run it is about, or, of a run that is not sampled, in the metrics alone."""

import asyncio
from pathlib import Path

from sandbox.contract.ids import span_id, trace_id
from sandbox.telemetry import Spans
from supervisor.api.metrics import Metrics
from supervisor.api.run_files import files_of
from supervisor.bootstrap.span_keeper import SpanKeeper, trace_file
from supervisor.config import StateDirectory
from tests.fakes.line_world import wait_until
from tests.fakes.memory_bus import MemoryBroker, MemorySupervisorLink
from tests.fakes.run_events import RUN, happy

TOOLS = 'gen_ai_execute_tool_duration_seconds_count{error_type="",gen_ai_tool_name="bash"} 1.0'


async def kept(directory: Path, *, sampled: bool, payload: bytes) -> tuple[bool, str, int]:
    """Return, after one payload of a run and junk: whether the run has a trace file, the metrics, what was rejected."""
    state = StateDirectory.open(directory / "state")
    files_of(state, RUN).append([happy()[0].model_copy(update={"sampled": sampled, "seq": 1})])
    broker, metrics = MemoryBroker(), Metrics()
    async with MemorySupervisorLink.connect(broker) as link:
        keeper = SpanKeeper(state, link, metrics, None)
        broker.telemetry.extend([payload, b'{"figures": 3}'])
        keeping = asyncio.create_task(keeper.keep())
        await wait_until(lambda: not broker.telemetry and keeper.sink.rejected > 0, "all is taken")
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    return trace_file(state, RUN).exists(), metrics.text([], [], 0, {}).decode(), keeper.sink.rejected


def a_tool_call() -> Spans:
    spans = Spans("andon-agent", "1")
    spans.start("execute_tool bash", trace_id=trace_id(RUN), parent=span_id(RUN)).end()
    return spans


async def test_spans_of_a_sampled_run_are_in_its_file_and_counted(tmp_path: Path) -> None:
    """The junk behind them is rejected."""
    is_there, text, rejected = await kept(tmp_path, sampled=True, payload=a_tool_call().drain(trace_id(RUN))[0])

    assert is_there
    assert trace_file(StateDirectory.open(tmp_path / "state"), RUN) == files_of(StateDirectory.open(tmp_path / "state"), RUN).trace_path
    assert TOOLS in text
    assert rejected == 1


async def test_of_a_run_that_is_not_sampled_only_the_figures_count(tmp_path: Path) -> None:
    """There is no file."""
    is_there, text, rejected = await kept(tmp_path, sampled=False, payload=a_tool_call().measure(trace_id(RUN))[0])

    assert not is_there
    assert TOOLS in text
    assert rejected == 1


async def test_spans_of_a_run_that_is_not_sampled_are_rejected(tmp_path: Path) -> None:
    """Whoever sends them."""
    is_there, text, rejected = await kept(tmp_path, sampled=False, payload=a_tool_call().drain(trace_id(RUN))[0])

    assert not is_there
    assert TOOLS not in text
    assert rejected == 2
