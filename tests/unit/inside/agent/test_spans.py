"""The program inside tells the gateway of each tool call, pays next to nothing for it, and never fails over it."""

import asyncio
import gzip
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.contract.ids import span_id, trace_id
from sandbox.gateway.otlp_relay import OtlpRelay
from sandbox.gateway.session import SOCKET_NAME, Session
from sandbox.inside.agent.spans import FAILURES_MAX, SEND_S, ToolSpans
from sandbox.inside.agent.tools.call import ToolResult
from sandbox.telemetry import Context, Spans
from tests.fakes.gateway_ledger import MemoryLedger

PARENT = Context(trace_id("01jd8m6w2x"), span_id("01jd8m6w2x/implement/1/1"))


class Traced:
    """A real gateway with its relay."""

    def __init__(self, directory: Path) -> None:
        self.spans = Spans("andon-agent", "1")
        self.relay = OtlpRelay(self.spans, PARENT, time.time(), time.time, {"container.id": "c0ffee"})
        self.session = Session(directory, None, MemoryLedger(), None, stage="implement", round_=1, on_traces=self.relay.take)
        self.path = directory / SOCKET_NAME

    async def made(self, count: int) -> list[Any]:
        """Wait until `count` spans were made and return them."""
        async with asyncio.timeout(5):
            while self.relay.accepted < count:
                await asyncio.sleep(0.002)
        return [
            span
            for payload in self.spans.drain(PARENT.trace_id)
            for resource in ExportTraceServiceRequest.FromString(gzip.decompress(payload)).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def record(self, *calls: tuple[str, ToolResult]) -> list[float]:
        """Record calls as the program does, then close; return the seconds each took."""
        spans = ToolSpans(self.path, PARENT.traceparent)
        took = []
        for turn, (name, result) in enumerate(calls, 1):
            begun = time.perf_counter()
            spans.record(name, "toolu_01", turn, spans.begin(), result)
            took.append(time.perf_counter() - begun)
        spans.close()
        return took


@pytest_asyncio.fixture
async def traced(tmp_path: Path) -> AsyncIterator[Traced]:
    traced = Traced(tmp_path)
    async with traced.session:
        yield traced


async def test_a_tool_call_is_a_span_with_its_exit_code_and_without_its_text(traced: Traced) -> None:
    """What was said to a tool and what it said stay inside."""
    started_ns = time.time_ns()
    await asyncio.to_thread(traced.record, ("bash", ToolResult("the secret output", exit_code=7)))

    (made,) = await traced.made(1)

    values = {each.key: each.value.string_value or each.value.int_value for each in made.attributes}
    assert made.name == "execute_tool bash"
    assert made.parent_span_id.hex() == PARENT.span_id
    assert made.end_time_unix_nano >= made.start_time_unix_nano >= started_ns - 1_000
    assert (values["process.exit.code"], values["andon.agent.turn"], values["gen_ai.tool.call.id"]) == (7, 1, "toolu_01")
    assert values["andon.tool.output.bytes"] == len("the secret output")
    assert "secret" not in str(made)
    assert traced.relay.attributes_dropped == 0, "nothing is sent that is not taken"


@pytest.mark.parametrize(
    ("result", "error"),
    [(ToolResult("x", is_error=True), "tool_error"), (ToolResult("x", is_error=True, is_malformed=True), "malformed_call")],
    ids=["failed", "malformed"],
)
async def test_a_call_that_failed_says_how(traced: Traced, result: ToolResult, error: str) -> None:
    """An error is seen in the trace."""
    await asyncio.to_thread(traced.record, ("bash", result))

    (made,) = await traced.made(1)

    assert {each.key: each.value.string_value for each in made.attributes}["error.type"] == error
    assert made.status.code == 2


async def test_a_name_the_model_made_up_is_no_span_name(traced: Traced) -> None:
    """Names of spans stay few."""
    await asyncio.to_thread(traced.record, ("Delete Everything!\n", ToolResult("no such tool", is_error=True)))

    assert (await traced.made(1))[0].name == "execute_tool unknown"


_BURST = """
import sys, time
from pathlib import Path
from sandbox.inside.agent.spans import ToolSpans
from sandbox.inside.agent.tools.call import ToolResult
spans, took = ToolSpans(Path(sys.argv[1]), sys.argv[2]), []
for turn in range(200):
    begun = time.perf_counter()
    spans.record("bash", "toolu_01", turn, spans.begin(), ToolResult("x"))
    took.append(time.perf_counter() - begun)
spans.close()
print(sorted(took)[100])
"""


async def test_many_calls_in_a_row_lose_no_span_and_cost_little(traced: Traced) -> None:
    """A reply is not waited for: 0.1 ms a span on an idle machine, and a test machine is not idle."""
    burst = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _BURST, str(traced.path), PARENT.traceparent, stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    said, _ = await burst.communicate()

    assert len(await traced.made(200)) == 200
    assert float(said) < 0.002


async def test_a_connection_the_gateway_has_closed_is_opened_again(tmp_path: Path) -> None:
    """A tool may run for longer than the gateway keeps an idle connection."""
    spans = ToolSpans(tmp_path / SOCKET_NAME, PARENT.traceparent)
    for _ in range(2):
        traced = Traced(tmp_path)
        async with traced.session:
            await asyncio.to_thread(spans.record, "bash", "toolu_01", 1, spans.begin(), ToolResult("x"))
            assert len(await traced.made(1)) == 1
    spans.close()


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[Path]:
    """A socket on which nobody ever accepts, its queue full."""
    path = tmp_path / "deaf.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))
        yield path


def test_a_gateway_that_is_gone_or_deaf_is_given_up_after_three_tries(tmp_path: Path, deaf: Path) -> None:
    """An attempt must not hang, or slow down, over its trace."""
    for path in (tmp_path / "nowhere.sock", deaf):
        spans = ToolSpans(path, PARENT.traceparent)
        begun = time.monotonic()
        for turn in range(20):
            spans.record("bash", "toolu_01", turn, spans.begin(), ToolResult("x"))
        assert time.monotonic() - begun < FAILURES_MAX * SEND_S + 1
        spans.close()


@pytest.mark.parametrize("traceparent", ["", "garbage", f"00-{PARENT.trace_id}-{PARENT.span_id}"])
def test_without_a_context_nothing_is_sent(tmp_path: Path, traceparent: str) -> None:
    """There is no trace to belong to."""
    path = tmp_path / "gateway.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(4)
        listener.settimeout(0.05)
        spans = ToolSpans(path, traceparent)
        assert spans.begin().traceparent == ""
        sending = threading.Thread(target=spans.record, args=("bash", "toolu_01", 1, spans.begin(), ToolResult("x")))
        sending.start()
        sending.join(5)
        with pytest.raises(TimeoutError):
            listener.accept()
