"""What comes to the gateway: requests and their framing from a sandbox, replies from a provider, pages from an index."""

import asyncio
import json
import logging
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from sandbox.contract.ids import span_id, trace_id
from sandbox.contract.price import shipped_prices
from sandbox.gateway.cassette import compared_digest, tool_output_digest
from sandbox.gateway.connection import Timeouts
from sandbox.gateway.meter import Meter
from sandbox.gateway.otlp_body import TracesBody
from sandbox.gateway.otlp_relay import OtlpRelay
from sandbox.gateway.policy import Policy, judge
from sandbox.gateway.refusal import Refusal
from sandbox.gateway.registries.npm import read_packument
from sandbox.gateway.registries.pip import read_page
from sandbox.gateway.registries.project import BadDocument, Project
from sandbox.gateway.session import SOCKET_NAME, Session
from sandbox.gateway.sse import EventSplitter
from sandbox.gateway.strict_json import parse_strictly
from sandbox.gateway.terms import Tuning
from sandbox.gateway.whole_reply import events_of, message_of
from sandbox.telemetry import Context, Spans
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.traces import SeenTrace
from tests.fakes.upstream import a_reply, a_start, a_tool_call, an_end
from tests.fuzz.target import Target

MODEL = "claude-sonnet-5-5"
POLICY = Policy(model=MODEL, output_tokens_max=1_000)
_HEALTH = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n"
_CACHED = {"type": "ephemeral", "ttl": "5m"}
_REQUEST = {
    "model": MODEL,
    "max_tokens": 1_000,
    "stream": True,
    "system": [{"type": "text", "text": "You write.", "cache_control": _CACHED}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "0.5 s"}]}]},
    ],
    "tools": [{"name": "submit", "input_schema": {"type": "object"}}, {"type": "bash_20250124", "name": "bash"}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "low"},
}
_REQUEST_WORDS: tuple[bytes, ...] = (
    b'"type"',
    b'"mcp_servers":[]',
    b'"url"',
    b'"model":',
    b'"tools":',
    b'"cache_control":{}',
    b',"a":1,"a":2',
    b"web_fetch",
)
_HTTP = (
    b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    b'POST /andon/submit HTTP/1.1\r\nhost: x\r\ncontent-length: 17\r\n\r\n{"status":"done"}',
    b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: x\r\naccept: */*\r\ncontent-encoding: identity\r\nexpect: 100-continue\r\n\r\n",
    b"GET /andon/assignment HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
)
_HTTP_WORDS: tuple[bytes, ...] = (
    b"POST ",
    b"CONNECT x:1 ",
    b" HTTP/1.0\r\n",
    b"HTTP/2",
    b"transfer-encoding: chunked\r\n",
    b"content-length: 5\r\n",
)
_HTTP_WORDS += (
    b"content-length: 99999999999999999999\r\n",
    b"expect: 100-continue\r\n",
    b"upgrade: h2c\r\n",
    b"\r\n 0",
    b"FFFFFFFFFFFFFFFF\r\n",
)
_HTTP_WORDS += (
    b"//x/",
    b"http://127.0.0.1/",
    b"\r\n\r\n",
    b";a=b",
    b"host: y\r\n",
    b"content-encoding: gzip\r\n",
    b"connection: upgrade\r\n",
)
_SSE_WORDS: tuple[bytes, ...] = (b"\r\n\r\n", b"\r\r", b"data: ", b"event: message_start\n", b"usage", b'"index"', b'"delta"', b"null")
_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "content": [
        {"type": "text", "text": "hi"},
        {"type": "thinking", "thinking": "t", "signature": "s"},
        {"type": "tool_use", "input": {"a": 1}},
    ],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 2},
}
_PARENT = Context(trace_id("0123456789"), span_id("0123456789/spec/1/1"))
_SPAN = {
    "traceId": _PARENT.trace_id,
    "spanId": "a" * 16,
    "name": "execute_tool bash",
    "startTimeUnixNano": "1010000000000",
    "endTimeUnixNano": 1_020_000_000_000,
    "attributes": [{"key": "andon.agent.turn", "value": {"intValue": "3"}}, {"key": "error.type", "value": {"stringValue": "Timeout"}}],
}
_PAGE = {
    "name": "tiny",
    "files": [
        {"filename": "tiny-1.0-py3-none-any.whl", "url": "../../tiny-1.0-py3-none-any.whl", "hashes": {"sha256": "a" * 64}, "yanked": "x"}
    ],
}
_HTML = b'<!DOCTYPE html><base href="/x/"><a href="tiny-1.0.tar.gz#sha256=%s" data-requires-python="&gt;=3.8">tiny</a>' % (b"a" * 64)
_PACKUMENT = {
    "name": "tiny",
    "dist-tags": {"latest": "1.0.0"},
    "versions": {
        "1.0.0": {"name": "tiny", "version": "1.0.0", "dist": {"tarball": "https://r.example/tiny/-/tiny-1.0.0.tgz", "shasum": "a" * 40}}
    },
}


def _json(data: bytes) -> None:
    """What is strict reads the same to a naive parser, and can be written again."""
    with suppress(ValueError):
        document = parse_strictly(data)
        assert json.loads(data) == document
        json.dumps(document, allow_nan=False)


def _request(data: bytes) -> None:
    """A refusal has a body; what may leave is what the naive parser reads, names our model, and has digests."""
    for is_count in (False, True):
        try:
            judged = judge(data, POLICY, is_count=is_count)
        except Refusal as refusal:
            _require(len(refusal.body()) < 4_096, "a refusal is short")
            continue
        assert json.loads(data) == judged.document
        assert (judged.model, judged.document["model"]) == (MODEL, MODEL)
        assert judged.output_tokens_max <= POLICY.output_tokens_max
        compared_digest(judged.document)
        tool_output_digest(judged.document)


def _require(holds: bool, what: str) -> None:
    assert holds, what


def _sse(data: bytes) -> None:
    """However the network cuts a reply, the events are the same; no figure in them is negative or breaks the meter."""
    whole = EventSplitter().feed(data)
    splitter, meter = EventSplitter(), Meter("5m")
    cut = len(data) // 3
    assert whole == [event for part in (data[:cut], data[cut : cut + 1], data[cut + 1 :]) for event in splitter.feed(part)]
    for event in whole:
        meter.read(event)
    usage = meter.usage
    assert min(usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens, usage.cache_write_input_tokens) >= 0
    assert meter.cost_nano_usd(shipped_prices(), MODEL, _TODAY) >= 0
    usage.model_dump_json()


def _whole_reply(data: bytes) -> None:
    """A message is told as events and back; a stream of no sense is refused."""
    with suppress(ValueError):
        message_of(data)
    with suppress(ValueError):
        events = events_of(data)
        message_of(b"".join(event.raw for event in events))


def _otlp(data: bytes) -> None:
    """What passes is encoded: it lies in our trace, and under the bus's bound."""
    spans = Spans("andon-agent", "fuzz")
    relay = OtlpRelay(spans, _PARENT, 1_000.0, lambda: 1_060.0, {"container.id": "c"})
    relay.take(data)
    payloads = spans.drain(_PARENT.trace_id)
    assert bool(payloads) == bool(relay.accepted)


def _users_spans(*, is_protobuf: bool) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        """What a tool sends is one whole tree below the program's span, each span once, none with an id it came with."""
        agents, users = Spans("andon-agent", "fuzz"), Spans("andon-user", "fuzz")
        relay = OtlpRelay(agents, _PARENT, 1_000.0, lambda: 1_060.0, {"container.id": "c"}, users)
        relay.take(TracesBody(data, is_protobuf, is_from_program=False))
        relay.finish()
        spans = SeenTrace.of_payloads(users.drain(_PARENT.trace_id)).spans
        assert (len(spans), agents.drain(_PARENT.trace_id)) == (relay.accepted, [])
        assert len({span.span_id for span in spans}) == len(spans)
        assert {span.parent_id for span in spans} <= {_PARENT.span_id, *(span.span_id for span in spans)}
        assert not {span.span_id for span in spans} & {str(span.attributes["andon.sandbox.span_id"]) for span in spans}

    return check


def _users_body() -> list[bytes]:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for own, parent in ((b"a" * 8, b"b" * 8), (b"b" * 8, bytes.fromhex(_PARENT.span_id)), (b"c" * 8, b"c" * 8)):
        times = {"start_time_unix_nano": int(1_010e9), "end_time_unix_nano": int(1_020e9)}
        span = scope.spans.add(trace_id=bytes.fromhex(_PARENT.trace_id), span_id=own, parent_span_id=parent, name="test_a", **times)
        span.attributes.add(key="http.response.status_code").value.int_value = 200
        span.status.code = Status.STATUS_CODE_ERROR
    return [request.SerializeToString()]


class _Faults(logging.Handler):
    """Collects what the gateway says of bugs of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record."""
        self.records.append(f"{record.msg}: {record.exc_info}")


def _framing(data: bytes) -> None:
    """Whatever a client sends, it gets HTTP or nothing, the gateway has no fault, and the next client is served."""
    faults = _Faults()
    logger = logging.getLogger("sandbox.gateway")
    logger.addHandler(faults)
    try:
        reply, health = asyncio.run(_answers(data))
    finally:
        logger.removeHandler(faults)
    assert faults.records == []
    assert reply == b"" or reply.startswith(b"HTTP/1.1 ")
    assert health.startswith(b"HTTP/1.1 200 ")


async def _answers(data: bytes) -> list[bytes]:
    """Return what comes for `data`, after which the client closes its end, and the health of the gateway then."""
    tuning = Tuning(assignment_poll_s=0.01, client=Timeouts(header_s=0.1, idle_s=0.1, body_s=0.1, write_s=1.0))
    with tempfile.TemporaryDirectory(prefix="andon-fuzz-", dir="/tmp") as directory:
        async with Session(Path(directory), None, MemoryLedger(), None, stage="spec", round_=1, tuning=tuning):
            return [await _answer(Path(directory) / SOCKET_NAME, each) for each in (data, _HEALTH)]


async def _answer(path: Path, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def _index(read: Callable[[bytes], Project]) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        """What an index says is refused, or a page of ours that names files of the kinds we pass on."""
        with suppress(BadDocument):
            project = read(data)
            assert all("/" not in name for name in project.files)

    return check


def _body(document: dict[str, Any]) -> list[bytes]:
    return [json.dumps(document).encode()]


_TODAY = date(2026, 1, 1)
_URL = "https://index.example/simple/tiny/"
TARGETS = (
    Target("strict-json", _json, lambda: _body(_REQUEST), _REQUEST_WORDS, cpu_s_max=0.3),
    Target("model-request", _request, lambda: _body(_REQUEST), _REQUEST_WORDS),
    Target(
        "sse",
        _sse,
        lambda: [b"".join(a_reply()), b"".join(a_tool_call())],
        (b"\r\n\r\n", b"\r\r", b"data: ", b"event: message_start\n", b"usage"),
    ),
    Target(
        "whole-reply",
        _whole_reply,
        lambda: [b"".join(a_reply()), b"".join([a_start(), *a_tool_call(), an_end()]), *_body(_MESSAGE)],
        _SSE_WORDS,
    ),
    Target("otlp", _otlp, lambda: _body({"resourceSpans": [{"scopeSpans": [{"spans": [_SPAN]}]}]})),
    Target("otlp-protobuf", _users_spans(is_protobuf=True), _users_body, (b"\x12\x00", b"\x0a\x05\x12", b"RUN x", b"test.a", b"a" * 8)),
    Target(
        "otlp-users",
        _users_spans(is_protobuf=False),
        lambda: _body({"resourceSpans": [{"scopeSpans": [{"spans": [{**_SPAN, "name": "test_a"}]}]}]}),
    ),
    Target("http", _framing, lambda: list(_HTTP), _HTTP_WORDS),
    Target("index-json", _index(lambda data: read_page(data, "application/vnd.pypi.simple.v1+json", _URL, "tiny")), lambda: _body(_PAGE)),
    Target(
        "index-html",
        _index(lambda data: read_page(data, "text/html", _URL, "tiny")),
        lambda: [_HTML],
        (b"<a href=", b"//x/", b"http://[", b"%2f"),
    ),
    Target("packument", _index(lambda data: read_packument(data, "tiny", "http://127.0.0.1:1/")), lambda: _body(_PACKUMENT)),
)
