"""What a user's own code traces in a sandbox is in what its attempt sends: below the check that ran it, and only of a sampled run."""

import gzip
import time
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.contract.ids import attempt_path, check_span_id, program_span_id, sandbox_span_id
from sandbox.contract.job import CheckExit
from sandbox.contract.result import CheckReport, Outcome
from sandbox.executor.ending import Ending
from sandbox.gateway.otlp_body import TracesBody
from tests.fakes.gateway import open_gateway
from tests.fakes.traces import SeenTrace
from tests.fakes.wire_data import RUN
from tests.unit.executor.test_attempt_trace import GRANT, PARENT, Box, Engine, an_account

PROGRAM = program_span_id(attempt_path(RUN, "spec", 1, 1))
CHECKS = {name: check_span_id(PROGRAM, name) for name in ("tests", "lint")}


def a_body(spans: dict[str, str]) -> TracesBody:
    """Return spans of a tool, each with the id of its parent."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    now = time.time_ns()
    for number, (name, parent) in enumerate(spans.items(), 1):
        made = scope.spans.add(name=name, start_time_unix_nano=now, end_time_unix_nano=now)
        made.trace_id, made.span_id, made.parent_span_id = (bytes.fromhex(each) for each in (PARENT.trace_id, f"{number:016x}", parent))
    return TracesBody(request.SerializeToString(), is_protobuf=True, is_from_program=False)


def exited(name: str, at: float) -> CheckReport:
    return CheckReport(name=name, exit=CheckExit(name=name, exit_code=0, duration_s=0.0, started_at=at))


@pytest.mark.parametrize("order", [("tests", "lint"), ("tests", "tests")], ids=["two", "the-same-twice"])
async def test_a_checks_span_is_the_one_its_commands_were_told_of(tmp_path: Path, order: tuple[str, str]):
    """Also of one whose name came twice: each span once."""
    async with an_account(tmp_path, Engine()) as (_, _, account), open_gateway(tmp_path, None, policy=None) as gateway:
        with account.trace.processing():
            with account.trace.invoking(Box(), gateway.session):
                at = time.time()
                account.trace.on_traces(a_body({"pytest": CHECKS["tests"], "of-no-check": CHECKS["lint"]}))
            account.trace.checks(tuple(exited(name, at) for name in order))
        trace = SeenTrace.of_payloads(account.trace.payloads(Ending(Outcome.SUBMITTED), time.time()))

    assert trace.by_id[CHECKS["tests"]].name == "check tests"
    below = {span.name: span.parent_id for span in trace.spans if span.service == "andon-user"}
    assert below == {"pytest": CHECKS["tests"], "of-no-check": CHECKS["lint"] if "lint" in order else PROGRAM}
    assert trace.by_id[sandbox_span_id(PROGRAM, "user", f"{1:016x}")].attributes["container.id"] == Box.container_id
    assert len({span.span_id for span in trace.spans}) == len(trace.spans)


async def test_an_attempt_that_broke_sends_what_was_traced_in_it(tmp_path: Path):
    """No check was read: the tests hang below the program."""
    async with an_account(tmp_path, Engine()) as (_, _, account), open_gateway(tmp_path, None, policy=None) as gateway:
        with account.trace.processing(), account.trace.invoking(Box(), gateway.session):
            account.trace.on_traces(a_body({"pytest": CHECKS["tests"]}))
        trace = SeenTrace.of_payloads(account.trace.payloads(Ending(Outcome.LOST), time.time()))

    assert [trace.by_id[span.parent_id].span_id for span in trace.named("pytest")] == [PROGRAM]


@pytest.mark.parametrize("sampled", [True, False])
async def test_of_a_run_that_is_not_sampled_nothing_is_taken(tmp_path: Path, sampled: bool):
    """Neither as a span nor for metrics, whatever a tool sends; the context its tools are given says so."""
    grant = GRANT.model_copy(update={"traceparent": replace(PARENT, sampled=sampled).traceparent})
    async with an_account(tmp_path, Engine(), grant) as (_, _, account), open_gateway(tmp_path, None, policy=None) as gateway:
        with account.trace.processing(), account.trace.invoking(Box(), gateway.session) as traceparent:
            account.trace.on_traces(a_body({"a-test-of-theirs": PROGRAM}))
        sent = account.trace.payloads(Ending(Outcome.SUBMITTED), time.time())

    assert traceparent.endswith("-01" if sampled else "-00")
    told = b"".join(gzip.decompress(each) if each[:2] == b"\x1f\x8b" else each for each in sent)
    assert (b"a-test-of-theirs" in told) == sampled
    assert told
