"""Spans reach a collector over OTLP/HTTP, and one that is down, slow or unfriendly holds nothing up."""

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.contract.ids import span_id, trace_id
from sandbox.telemetry import Spans
from supervisor.api.trace_sink import QUEUE_PAYLOADS_MAX, exporter
from tests.fakes.traces import SeenTrace

RUN = "01jd8m6w2x"
STOP_S_MAX = 3.0


@dataclass
class Collector:
    """A receiver of OTLP/HTTP on loopback that answers as it is told; `answer` empty: it never does."""

    answer: str = "200 OK"
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer every request of one connection."""
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
                self.requests.append((lines[0], headers, await reader.readexactly(int(headers["content-length"]))))
                if self.answer:
                    writer.write(f"HTTP/1.1 {self.answer}\r\ncontent-length: 0\r\n\r\n".encode())
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client hung up
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def collecting(answer: str = "200 OK") -> AsyncIterator[Collector]:
    """Run a collector."""
    collector = Collector(answer)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(collector.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    collector.port = server.sockets[0].getsockname()[1]
    try:
        yield collector
    finally:
        server.close()
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def a_request(name: str = "stage spec") -> bytes:
    spans = Spans("andon-sup", "1")
    spans.start(name, trace_id=trace_id(RUN), parent=span_id(RUN)).end()
    (payload,) = spans.drain(trace_id(RUN))
    return gzip.decompress(payload)


async def test_every_span_reaches_the_collector_before_the_exporter_ends() -> None:
    """The run's last spans are made in the moment in which the stack goes down."""
    async with collecting() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url + "/", "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=notes, x-team = api"}
        async with exporter(environment) as export:
            assert export is not None
            for number in range(20):
                export(a_request(f"stage {number}"))

    seen = SeenTrace.of_requests(ExportTraceServiceRequest.FromString(body) for _, _, body in collector.requests)
    assert [span.name for span in seen.spans] == [f"stage {number}" for number in range(20)]
    line, headers, _ = collector.requests[0]
    assert line.startswith("POST /v1/traces ")
    assert (headers["content-type"], headers["x-tenant"], headers["x-team"]) == ("application/x-protobuf", "notes", "api")


async def test_the_endpoint_of_traces_is_taken_as_it_is() -> None:
    """As the specification of the variables has it: a path of its own, and its own headers."""
    async with collecting() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/otlp"}
        async with exporter(environment) as export:
            assert export is not None
            export(a_request())

    assert collector.requests[0][0].startswith("POST /otlp ")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=["nothing", "empty", "disabled", "none"],
)
async def test_nothing_is_exported_unless_somebody_asks(environment: dict[str, str]) -> None:
    """There is no network call by default."""
    async with exporter(environment) as export:
        assert export is None


async def ended_within(environment: dict[str, str], payloads: int) -> tuple[float, float]:
    """Offer payloads and end; return the seconds the offers took and those of the end."""
    begun = time.monotonic()
    async with exporter(environment) as export:
        assert export is not None
        for _ in range(payloads):
            export(a_request())
        await asyncio.sleep(0)
        offered = time.monotonic()
    return offered - begun, time.monotonic() - offered


def a_closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_collector_that_is_down_holds_nothing_up() -> None:
    """Its port is closed: offers return at once, the end comes within three seconds."""
    offered_s, ended_s = await ended_within({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{a_closed_port()}"}, 50)

    assert offered_s < 1
    assert ended_s < STOP_S_MAX


async def test_a_collector_that_never_answers_holds_nothing_up() -> None:
    """A black hole costs the end its two seconds and no more, with a full queue behind it."""
    async with collecting(answer="") as collector:
        _, ended_s = await ended_within({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}, QUEUE_PAYLOADS_MAX + 100)

    assert ended_s < STOP_S_MAX


async def test_a_collector_that_refuses_does_not_stop_what_comes_after() -> None:
    """Each payload is offered once; a refusal is logged."""
    async with collecting(answer="503 Service Unavailable") as collector:
        _, ended_s = await ended_within({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}, 3)

    assert len(collector.requests) == 3
    assert ended_s < STOP_S_MAX
