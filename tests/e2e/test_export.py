"""Traces and their collector in whole runs: one that comes later gets everything, and nobody a span of a run that is not sampled."""

import asyncio
import base64
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.bus import Connection
from sandbox.contract import subjects
from sandbox.contract.credentials import SupervisorCredentials, read_credentials
from sandbox.contract.ids import trace_id
from supervisor.config import StateDirectory
from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from supervisor.stack import read_stack
from tests.e2e.fifteen_checks import broken_checks
from tests.e2e.line import Line, Provider
from tests.e2e.watching import a_sample, going, stack_pids, wait_until
from tests.fakes.scripts.rate_limit import HAPPY, SPEC
from tests.fakes.traces import SeenTrace
from tests.servers.jaeger import jaeger

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

DOWN_S_MAX = 10.0
"""Of `andon down`: broker, executor and supervisor end one after the other; an exporter that waits for its collector takes 7 to 30 s."""


def a_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def a_line(directory: Path, provider: Provider, environment: dict[str, str]) -> Iterator[Line]:
    provider.says(HAPPY)
    line = Line(directory, provider.server.environment() | environment)
    up = line.andon("up", timeout_s=900)
    assert up.exit_code == 0, up.stderr
    try:
        yield line
    finally:
        line.andon("down")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """The sample request on the sample, with the specification given, to be quick."""
    (tmp_path / "spec.yaml").write_text(SPEC.replace("{feature}", SAMPLE_FEATURE))
    repository = a_sample(tmp_path / "notes")
    return [SAMPLE_REQUEST, "--repo", str(repository), "--spec", str(tmp_path / "spec.yaml"), "--slug", SAMPLE_FEATURE, "--no-baseline"]


def test_a_jaeger_that_starts_after_the_run_gets_the_whole_trace(provider: Provider, arguments: list[str], tmp_path: Path) -> None:
    """Nobody listens while the run goes on, its supervisor is killed in the middle, the stack goes down: it all waits."""
    port = a_port()
    with a_line(tmp_path, provider, {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}) as line:
        with going(line, *arguments) as run:
            run.wait_event("attempt_started", job_id=f"{run.run_id}-test-1")
            old = stack_pids(line)["supervisor"]
            os.kill(old, signal.SIGKILL)
            wait_until(lambda: stack_pids(line)["supervisor"] != old, "the stack started another supervisor", 30)
            assert run.end().exit_code == 0
        in_file = SeenTrace.of_file(line.state / "runs" / run.run_id / "trace.otlp.jsonl")
        begun = time.monotonic()
        assert line.andon("down").exit_code == 0
        down_s = time.monotonic() - begun

        with jaeger(port) as late:
            assert line.andon("up").exit_code == 0
            wait_until(lambda: len(late.trace(trace_id(run.run_id)).spans) >= len(in_file.spans), "Jaeger has every span of the file", 60)
            assert broken_checks(late, line.andon("status", run.run_id, "--json").result) == []

    assert down_s < DOWN_S_MAX


def test_of_a_run_that_is_not_sampled_there_is_no_span_anywhere(provider: Provider, arguments: list[str], tmp_path: Path) -> None:
    """Neither in Jaeger, nor in a file, nor on the bus, whatever the caller's own flag says; the metrics know its calls and tools."""
    pages = a_port()
    with jaeger() as there:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": there.otlp, "OTEL_TRACES_SAMPLER": "always_off", "ANDON_HTTP": f"127.0.0.1:{pages}"}
        with a_line(tmp_path, provider, environment | {"TRACEPARENT": f"00-{'a' * 32}-{'b' * 16}-01"}) as line:
            done = line.run(*arguments, timeout_s=400)
            assert done.exit_code == 0, done.stderr
            shown = line.andon("trace", done.result["run_id"])
            told = asyncio.run(telemetry_of(line))
            with urllib.request.urlopen(f"http://127.0.0.1:{pages}/metrics", timeout=10) as answer:
                metrics = answer.read().decode()

        assert there.trace(done.result["trace_id"]).spans == []
        assert not [name for name in there.services() if name.startswith("andon")]
    assert not list(line.state.glob("runs/*/trace*"))
    assert told
    assert all(payload.startswith(b'{"figures"') for payload in told)
    assert (shown.exit_code, shown.stdout, len(shown.stderr.splitlines())) == (0, "", 1)
    assert "not sampled" in shown.stderr
    assert done.result["trace_url"] is None
    assert "/trace/" not in done.stderr
    for name in ("gen_ai_client_operation_duration", "gen_ai_execute_tool_duration", "gen_ai_invoke_agent_duration"):
        assert any(line.startswith(f"{name}_seconds_count") and not line.endswith(" 0.0") for line in metrics.splitlines()), name


async def telemetry_of(line: Line) -> list[bytes]:
    """Return every payload in the stream TEL."""
    stack = read_stack(StateDirectory.open(line.state))
    assert stack is not None
    credentials = read_credentials(stack.supervisor_credentials, SupervisorCredentials).model_copy(update={"url": stack.nats_url})
    async with Connection.open(credentials, name="fleet", inbox="fleet") as connection:
        state = (await connection.api(f"STREAM.INFO.{subjects.STREAM_TEL}"))["state"]
        found = [
            await connection.api(f"STREAM.MSG.GET.{subjects.STREAM_TEL}", {"seq": seq})
            for seq in range(state["first_seq"], state["last_seq"] + 1)
        ]
    return [base64.b64decode(each["message"]["data"]) for each in found]
