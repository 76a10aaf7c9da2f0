"""A user's own spans, from the real OpenTelemetry SDK in a tool or a check, through the program and the gateway, into the run's trace."""

import asyncio
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.ids import check_span_id, span_id, trace_id
from sandbox.contract.job import Assignment, Check
from sandbox.gateway.otlp_relay import OtlpRelay
from sandbox.gateway.policy import Policy
from sandbox.telemetry import Context, Spans
from tests.fakes.gateway import open_gateway
from tests.fakes.script import Script, bash, single, submit
from tests.fakes.scripted_model import ScriptedModel
from tests.fakes.traces import SeenTrace

REPOSITORY = Path(__file__).parents[2]
PROGRAM = Context(trace_id("01jd8m6w2x"), span_id("01jd8m6w2x/implement/1/1#program"))
AGENT = AgentSpec(name="implement", model="claude-sonnet-5-5", system="the rules", prompt="the task", output_tokens_max=2_000)
TRACED = """
import gzip, os, sys, urllib.request
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


class Exporter(SpanExporter):
    def export(self, spans):
        body = gzip.compress(encode_spans(spans).SerializeToString())
        headers = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
        request = urllib.request.Request(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] + "/v1/traces", body, headers)
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert (reply.status, reply.read(), reply.headers["content-type"]) == (200, b"", "application/x-protobuf")
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(Exporter()))
tracer = provider.get_tracer("tests")
caller = TraceContextTextMapPropagator().extract({"traceparent": os.environ["TRACEPARENT"]})
with tracer.start_as_current_span(sys.argv[1], context=caller):
    with tracer.start_as_current_span("inner", attributes={"test.case.name": sys.argv[1], "gen_ai.usage.input_tokens": 7}):
        pass
provider.shutdown()
"""


async def trace_of(root: Path, assignment: dict[str, Any], script: Script, commands: dict[str, str]) -> tuple[SeenTrace, str]:
    """Run the program over a real session and return what its relay made of its spans, and what it printed."""
    for name in ("gw", "workspace", "task", "out", "tmp", "home/agent"):
        (root / name).mkdir(parents=True)
    for name, text in commands.items():
        (root / "workspace" / name).write_text(text)
    common = {"job_id": "0123456789-implement-1", "stage": "implement", "round": 1, "attempt": 1, "wall_s": 60}
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    work = Assignment.model_validate({**common, "tool_env": environment, "traceparent": PROGRAM.traceparent, **assignment})
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from sandbox.inside.__main__ import main; main({str(root)!r})"
    agents, users = Spans("andon-agent", "1"), Spans("andon-user", "1")
    relay = OtlpRelay(agents, PROGRAM, time.time(), time.time, {"container.id": "c0ffee"}, users)
    async with (
        ScriptedModel(script, api_key="sk-ant-canary-7f3a") as model,
        open_gateway(root / "gw", model.url, policy=Policy.of(AGENT), on_traces=relay.take) as gateway,
    ):
        gateway.session.assign(work)
        process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", code, env={}, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
    relay.finish({check_span_id(PROGRAM.span_id, check.name): check_span_id(PROGRAM.span_id, check.name) for check in work.checks})
    assert relay.dropped == 0, said.decode()
    return SeenTrace.of_payloads([*agents.drain(PROGRAM.trace_id), *users.drain(PROGRAM.trace_id)]), said.decode()


async def test_spans_hang_below_the_tool_call_that_ran_them(tmp_path: Path):
    """Two calls, two contexts, also where the first exported its own to the shell; what counts tokens is left out."""
    script = single(
        bash("python traced.py first; export TRACEPARENT"), bash("python traced.py second & python traced.py third; wait"), submit("x")
    )

    trace, said = await trace_of(tmp_path, {"kind": "agent", "agent": AGENT}, script, {"traced.py": TRACED})

    assert Counter((span.service, span.name) for span in trace.spans) == {
        ("andon-agent", "agent import"): 1,
        ("andon-agent", "execute_tool bash"): 2,
        ("andon-agent", "execute_tool submit"): 1,
        **{("andon-user", name): 1 for name in ("first", "second", "third")},
        ("andon-user", "inner"): 3,
    }, said
    one, two = sorted(trace.named("execute_tool bash"), key=lambda span: span.start)
    outer = {span.name: span for span in trace.spans if span.name in {"first", "second", "third"}}
    assert {name: trace.parent(span) for name, span in outer.items()} == {"first": one, "second": two, "third": two}
    inner = {span.attributes["test.case.name"]: trace.parent(span) for span in trace.named("inner")}
    assert inner == outer
    assert all(not each.startswith("gen_ai.") for span in trace.named("inner") for each in span.attributes)
    assert all(one.start <= span.start <= span.end <= two.end for span in outer.values())


async def test_spans_hang_below_the_check_that_ran_them(tmp_path: Path):
    """Each check has a context of its own; a variable of a stage's own wins over ours."""
    shows = "import os; print(os.environ['OTEL_METRICS_EXPORTER'], os.environ['OTEL_EXPORTER_OTLP_PROTOCOL'])"
    checks = [
        Check(name="tests", argv=("python", "traced.py", "first")),
        Check(name="more", argv=("python", "traced.py", "second")),
        Check(name="env", argv=("python", "-c", shows)),
    ]
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OTEL_METRICS_EXPORTER": "console"}

    trace, said = await trace_of(tmp_path, {"kind": "checks", "checks": checks, "tool_env": own}, single(), {"traced.py": TRACED})

    below = {span.name: span.parent_id for span in trace.spans if span.name != "inner"}
    assert below == {"first": check_span_id(PROGRAM.span_id, "tests"), "second": check_span_id(PROGRAM.span_id, "more")}, said
    assert "console http/protobuf\n" in said
