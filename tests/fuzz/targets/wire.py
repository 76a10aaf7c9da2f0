"""What comes over the bus: messages of executors and clients, objects' records, telemetry, task bundles."""

import asyncio
import gzip
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ValidationError

from sandbox.blob import get_blob
from sandbox.bus.messages import Message
from sandbox.contract.blob import BlobRef
from sandbox.contract.errors import BrokerError, Rejected
from sandbox.contract.figures import Figures
from sandbox.contract.ids import trace_id
from sandbox.contract.job import Assignment, JobSpec, Submission
from sandbox.contract.result import AttemptResult, CheckReport, Finding, Usage
from sandbox.contract.task_bundle import TaskBundle
from sandbox.contract.wire import BudgetRequest, ClaimRequest, Control, Heartbeat, JoinRequest, Progress
from sandbox.telemetry import Attribute, Spans
from supervisor.api.metrics import Metrics
from supervisor.api.traces.otlp import line_of, request_of
from supervisor.api.traces.sink import TraceSink, trace_ids_of
from supervisor.pipeline.submit import DeliveredRequest, ResumeRequest, StopRequest, SubmitRequest, WhyRequest
from tests.fakes.wire_data import PACK, RUN, SHA, a_claim, a_heartbeat, a_job, a_join, a_progress, a_reservation, a_result
from tests.fuzz.target import Target

_MODELS: tuple[type[BaseModel], ...] = (
    *(JoinRequest, ClaimRequest, BudgetRequest, Progress, Heartbeat, AttemptResult, JobSpec, Control, Assignment, Submission),
    *(SubmitRequest, StopRequest, ResumeRequest, WhyRequest, DeliveredRequest),
)
_DATA = b"data"


def _messages(data: bytes) -> None:
    """Whatever a peer sends is a message of ours or a `ValidationError`; what is taken says the same when it is sent on."""
    for model in _MODELS:
        with suppress(ValidationError):
            message = model.model_validate_json(data)
            assert model.model_validate_json(message.model_dump_json()) == message


def _message_seeds() -> list[bytes]:
    usage = Usage(input_tokens=1)
    result = a_result(usage=usage, findings=(Finding(check="scope", message="m", path="a"),), reports=(CheckReport(name="t", exit=None),))
    submit = SubmitRequest(
        request="Add it", repository="/r", base_name="main", base_commit=SHA, base_pack=PACK, budget_nano_usd=1, warn_nano_usd=1
    )
    made: list[BaseModel] = [a_join(labels={"arch": "arm64"}), a_claim("$JS.ACK.JOBS.default.1.1.1.1.0"), a_reservation(usage=usage)]
    made += [a_progress(), a_heartbeat(), result, a_job(), Control(verb="drain"), Submission(status="done"), submit]
    made += [WhyRequest(run_id=RUN), StopRequest(run_id=RUN, how="park"), DeliveredRequest(run_id=RUN, commit=SHA, ok=True)]
    return [each.model_dump_json().encode() for each in made]


class _Store:
    """A bucket that answers every read with one record, and then with one chunk."""

    payload_bytes_max = 1 << 20

    def __init__(self, record: bytes) -> None:
        self._record = record

    async def store(self, subject: str, payload: bytes, *, dedupe: str | None = None) -> Any:
        raise BrokerError("read only")

    async def direct(self, stream: str, query: Mapping[str, Any]) -> Sequence[Message]:
        data = self._record if "last_by_subj" in query else _DATA
        return [Message(subject="s", data=data, headers={"Nats-Sequence": "1"}, reply="")]


def _record(data: bytes) -> None:
    """A record an executor wrote gives the announced bytes or a refusal."""
    ref = BlobRef(bucket="IN", name="a/b", sha256=hashlib.sha256(_DATA).hexdigest(), size_bytes=len(_DATA))
    with suppress(Rejected, BrokerError):
        assert asyncio.run(get_blob(_Store(data), ref)) == _DATA


def _telemetry(data: bytes) -> None:
    """No payload of an executor breaks the sink; what it writes are JSON lines of spans of this run."""
    with tempfile.TemporaryDirectory(prefix="andon-fuzz-") as directory:
        file = Path(directory) / "trace.jsonl"
        TraceSink(lambda _: file).store(RUN, data, from_executor=True)
        trace_ids_of(data)
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        assert [line_of(request_of(json.dumps(line).encode())) for line in lines] == [
            json.dumps(line, separators=(",", ":"), ensure_ascii=False) for line in lines
        ]
    spans = [span for line in lines for each in line["resourceSpans"] for scope in each["scopeSpans"] for span in scope["spans"]]
    assert {span["traceId"] for span in spans} <= {trace_id(RUN)}
    assert all(span.get("parentSpanId") for span in spans)


def _otlp() -> list[bytes]:
    spans = Spans("andon-exec", "fuzz")
    span = spans.start("sandbox", trace_id=trace_id(RUN), parent="1" * 16, attributes={"a": "text", "b": 3, "c": True, "d": 1.5})
    span.event("seen", {"e": "f"})
    span.end()
    return [gzip.decompress(each) for each in spans.drain(trace_id(RUN))]


def _figures(data: bytes) -> None:
    """What an executor tells instead of spans is figures or a `ValidationError`, and whatever it says, metrics can be read after it."""
    metrics = Metrics()
    with suppress(ValidationError):
        metrics.measure(Figures.model_validate_json(data))
    assert list(text_string_to_metric_families(metrics.text([], [], 0, {}).decode()))


def _figure_seeds() -> list[bytes]:
    spans = Spans("andon-exec", "fuzz")
    told: dict[str, Attribute] = {"gen_ai.request.model": "m", "gen_ai.response.time_to_first_chunk": 0.5, "process.exit.code": 1}
    for name in ("chat m", "execute_tool bash", "invoke_agent spec", "process andon.job.default", "check tests", "container remove"):
        spans.start(name, trace_id=trace_id(RUN), parent="1" * 16, attributes=told | {"andon.container.oom_killed": True}).end(
            error_type="timeout"
        )
    return spans.measure(trace_id(RUN))


def _bundle(data: bytes) -> None:
    with suppress(Rejected):
        bundle = TaskBundle.decode(data)
        assert TaskBundle.decode(bundle.encode()) == bundle


TARGETS = (
    Target("messages", _messages, _message_seeds, (b"\\u0000", b'"_"', b"$JS.ACK.", b">", b"*")),
    Target("object-record", _record, lambda: [json.dumps({"name": "a/b", "nuid": "abc", "size": 4, "chunks": 1}).encode()]),
    Target("telemetry", lambda data: _telemetry(gzip.compress(data, 1)), _otlp, (b"\x0a\x00", b"\x12\xff\xff\xff\xff\x0f", b"traceId")),
    Target("telemetry-gzip", _telemetry, lambda: [gzip.compress(each) for each in _otlp()], (b"\x1f\x8b\x08", b"\x00" * 8)),
    Target("figures", _figures, _figure_seeds, (b"1e308", b"\\ud800", b"\\u0000", b'"')),
    Target("task-bundle", _bundle, lambda: [TaskBundle(files={"a/b.md": "text", "c": ""}).encode()], (b"../", b"/etc")),
)
