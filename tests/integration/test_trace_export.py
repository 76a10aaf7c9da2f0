"""Spans reach a collector over OTLP/HTTP through the broker's buffer; one that is down, slow or unfriendly holds nothing up."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from sandbox.bus import Connection
from sandbox.bus.assets import EXPORT_BYTES_MAX, EXPORT_TURN_S, SUPERVISOR
from sandbox.bus.export_buffer import Buffered, BufferFull, ExportBuffer
from sandbox.bus.lifetimes import Tasks
from sandbox.contract import subjects
from sandbox.contract.errors import BrokerError
from sandbox.contract.ids import span_id, trace_id
from sandbox.telemetry import Spans
from supervisor.api.traces.export import Exporter, exporting
from supervisor.api.traces.export.backlog import Backlog
from supervisor.api.traces.export.collector import Collector as Collectors
from supervisor.api.traces.export.delivery import Delivery
from supervisor.api.traces.export.endpoint import Endpoint
from supervisor.api.traces.sink import TraceSink
from supervisor.config import StateDirectory
from supervisor.store.broker.embedded import EmbeddedBroker, supervisor_file
from tests.fakes.gateway import wait_until
from tests.fakes.otlp_collector import Collector, collecting

RUN, OTHER = "01jd8m6w2x", "01jd8m6w2y"
STOP_S_MAX = 3.0


@dataclass
class Site:
    """A broker, and a state directory with runs."""

    connection: Connection
    root: Path

    def file_of(self, run_id: str) -> Path:
        """Return a run's trace file."""
        return self.root / run_id / "trace.otlp.jsonl"

    def run_ids(self) -> list[str]:
        """Return all runs."""
        return sorted(path.name for path in self.root.iterdir())

    def tell(self, exporter: Exporter | Backlog | None, *names: str, run: str = RUN) -> float:
        """Store spans, each by itself; return the seconds it took."""
        assert exporter is not None
        sink = TraceSink(self.file_of, exporter.expect)
        spans = Spans("andon-sup", "1")
        begun = time.monotonic()
        for name in names:
            spans.start(name, trace_id=trace_id(run), parent=span_id(run)).end()
            sink.store(run, *spans.drain(trace_id(run)))
        return time.monotonic() - begun

    def exporting(self, environment: Mapping[str, str]) -> AbstractAsyncContextManager[Exporter | None]:
        """Export as these names say."""
        return exporting(environment, self.connection, self.file_of, self.run_ids)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A broker of its own."""
    (tmp_path / "runs").mkdir()
    async with (
        EmbeddedBroker.run(tmp_path / "nats") as broker,
        Connection.open(broker.supervisor, name="fleet", inbox="fleet") as connection,
    ):
        yield Site(connection, tmp_path / "runs")


def to(collector: Collector, **more: str) -> dict[str, str]:
    """Return the environment that names a collector."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **more}


def a_closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _no_drop(_why: str, _spans: int) -> None:
    raise AssertionError("nothing is to be dropped here")


async def test_every_span_reaches_the_collector_before_the_exporter_ends(site: Site) -> None:
    """The run's last spans are made in the moment in which the stack goes down."""
    names = [f"stage {number}" for number in range(20)]
    async with collecting() as collector:
        headers = {"OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=notes, x-team = api,x-key=a%20b%3D"}
        async with site.exporting({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url + "/", **headers}) as exporter:
            site.tell(exporter, *names)

    assert collector.names == sorted(names)
    first = collector.received[0]
    assert first.line.startswith("POST /v1/traces ")
    assert (first.headers["content-type"], first.headers["x-tenant"], first.headers["x-team"]) == ("application/x-protobuf", "notes", "api")
    assert first.headers["x-key"] == "a b="
    await until_waiting(ExportBuffer(site.connection), 0)


async def test_the_endpoint_of_traces_is_taken_as_it_is(site: Site) -> None:
    """As the specification of the variables has it: a path of its own, and its own compression."""
    async with collecting() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/otlp"}
        async with site.exporting({**environment, "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip"}) as exporter:
            site.tell(exporter, "stage spec")

    assert collector.received[0].line.startswith("POST /otlp ")
    assert collector.received[0].headers["content-encoding"] == "gzip"
    assert collector.names == ["stage spec"]


async def test_json_is_spoken_to_who_asks_for_it(site: Site) -> None:
    """Ids in hex, as OTLP/JSON has them."""
    async with collecting() as collector, site.exporting(to(collector, OTEL_EXPORTER_OTLP_PROTOCOL="http/json")) as exporter:
        site.tell(exporter, "stage spec")

    (span,) = json.loads(collector.received[0].body)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert collector.received[0].headers["content-type"] == "application/json"
    assert (span["name"], span["traceId"]) == ("stage spec", trace_id(RUN))


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:4318"},
    ],
    ids=["nothing", "empty", "disabled", "none", "grpc", "no-url"],
)
async def test_nothing_is_exported_or_buffered_unless_somebody_asks(site: Site, environment: dict[str, str]) -> None:
    """There is no network call by default, nor room taken in the broker; a wish that cannot be honoured stops no run."""
    async with site.exporting(environment) as exporter:
        assert exporter is None

    names = (await site.connection.api("STREAM.NAMES"))["streams"] or []
    assert subjects.STREAM_EXPORT not in names


async def ended_within(site: Site, environment: dict[str, str], payloads: int, until: asyncio.Event | None = None) -> tuple[float, float]:
    """Tell of spans and end; return the seconds the telling took and those of the end."""
    async with site.exporting(environment) as exporter:
        told_s = site.tell(exporter, *(f"stage {number}" for number in range(payloads)))
        if until is not None:
            await until.wait()
        begun = time.monotonic()
    return told_s, time.monotonic() - begun


@pytest.mark.parametrize("kind", ["down", "black-hole", "slow", "refusing"])
async def test_a_collector_in_trouble_holds_nothing_up_and_gets_everything_later(site: Site, kind: str) -> None:
    """Telling takes what writing the file takes, the end less than three seconds; whoever exports next delivers the rest, once."""
    async with collecting({"black-hole": "", "refusing": "503 Service Unavailable"}.get(kind, "200 OK")) as trouble:
        trouble.delay_s = 1.0 if kind == "slow" else 0.0
        port = a_closed_port() if kind == "down" else trouble.port
        told_s, ended_s = await ended_within(site, {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}, 50)
    async with collecting() as collector, site.exporting(to(collector)):
        await wait_until(lambda: len(collector.trace.spans) + len(trouble.trace.spans) >= 50, "everything is there", 20)

    assert told_s < 1
    assert ended_s < STOP_S_MAX
    assert {*collector.names, *trouble.names} == {f"stage {number}" for number in range(50)}
    if kind != "slow":  # which may have taken what it had no time to confirm
        assert len(collector.names) == 50


async def test_what_was_told_of_before_a_kill_is_exported_after_it(site: Site) -> None:
    """The supervisor died between the run's file and the buffer: the file is looked at again, also its part of before."""
    async with collecting() as collector:
        async with site.exporting(to(collector)) as exporter:
            site.tell(exporter, "early")
        site.tell(Backlog(site.file_of, ExportBuffer(site.connection), _no_drop), "late")
        site.tell(Backlog(site.file_of, ExportBuffer(site.connection), _no_drop), "other", run=OTHER)
        assert collector.names == ["early"]

        async with site.exporting(to(collector)):
            await wait_until(lambda: len(collector.names) >= 3, "the rest is there")

    assert collector.names == ["early", "late", "other"]


async def test_spans_of_a_run_that_another_host_told_of_already_are_not_told_twice(site: Site) -> None:
    """A supervisor that takes over makes an open run's spans again, into a file of its own."""
    spans = Spans("andon-sup", "1")
    spans.start("stage spec", trace_id=trace_id(RUN), parent=span_id(RUN), span_id=span_id(f"{RUN}/spec/1/1")).end()
    (payload,) = spans.drain(trace_id(RUN))
    async with collecting() as collector:
        for host in ("left", "right"):
            here = Site(site.connection, site.root / host)
            here.root.mkdir()
            async with here.exporting(to(collector)) as exporter:
                assert exporter is not None
                TraceSink(here.file_of, exporter.expect).store(RUN, payload)

    assert collector.names == ["stage spec"]


async def test_retry_after_is_honoured(site: Site) -> None:
    """A collector that is asked too often says when it wants to be asked again."""
    async with collecting() as collector:
        collector.answers.append("429 Too Many Requests\r\nretry-after: 2")
        async with site.exporting(to(collector)) as exporter:
            site.tell(exporter, "stage spec")
            await wait_until(lambda: collector.names == ["stage spec"], "it is there", 10)

    first, second = collector.received
    assert 2 <= second.at - first.at < 5


async def test_what_a_collector_will_never_take_is_dropped_alone_and_counted(site: Site) -> None:
    """Sent in one request with others, then each by itself; asked once more would change nothing."""
    async with collecting(answer="503 Service Unavailable") as collector:
        collector.refuses = "poison"
        async with site.exporting(to(collector)) as exporter:
            site.tell(exporter, "before", "poison", "after")
            collector.answer = "200 OK"
            await wait_until(lambda: collector.names == ["after", "before"], "the others are there", 10)
        assert exporter is not None
        assert dict(exporter.dropped) == {"refused": 1}

    await until_waiting(ExportBuffer(site.connection), 0)


async def test_what_was_taken_comes_again_at_once_when_the_taker_ends(site: Site) -> None:
    """Also what it had not handed on yet: the next supervisor does not wait for its turn to end."""
    buffer = ExportBuffer(site.connection, more_s=10.0)
    for number in range(3):
        await buffer.put(b"%d" % number, str(number))

    async def pending() -> int:
        return int((await site.connection.api(f"CONSUMER.INFO.{subjects.STREAM_EXPORT}.{SUPERVISOR}"))["num_ack_pending"])

    taking = asyncio.create_task(buffer.take(9, 1 << 20, 10.0))
    async with asyncio.timeout(10):
        while await pending() < 3:
            await asyncio.sleep(0.01)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)

    assert sorted(each.data for each in await buffer.take(3, 1 << 20, EXPORT_TURN_S / 3)) == [b"0", b"1", b"2"]


@asynccontextmanager
async def a_supervisor(directory: Path, broker: EmbeddedBroker, collector: Collector) -> AsyncIterator[Process]:
    """Run a supervisor's process; it has ended when the block ends."""
    own = {
        "NATS_URL": broker.url,
        "NATS_CREDS": str(supervisor_file(directory / "nats")),
        "ANDON_STATE_DIRECTORY": str(directory / "state"),
    }
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), **own, **to(collector)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "supervisor", env=environment, stderr=asyncio.subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)], ids=["asked", "killed"])
async def test_a_supervisor_ends_soon_and_loses_nothing(tmp_path: Path, how: signal.Signals) -> None:
    """It has a request in a black hole; the next one delivers it, what a killed one had taken after its turn of 30 s."""
    state = StateDirectory.open(tmp_path / "state")
    names = [f"stage {number}" for number in range(5)]
    async with (
        EmbeddedBroker.run(tmp_path / "nats") as broker,
        Connection.open(broker.supervisor, name="fleet", inbox="fleet") as connection,
        collecting(answer="") as hole,
        collecting() as collector,
    ):
        site = Site(connection, state.run(RUN).parent)
        site.tell(Backlog(site.file_of, ExportBuffer(connection), _no_drop), *names)
        async with a_supervisor(tmp_path, broker, hole) as process:
            await wait_until(lambda: len(hole.received) > 0, "the black hole has it", 30)
            begun = time.monotonic()
            process.send_signal(how)
            await process.wait()
            ended_s = time.monotonic() - begun
        async with a_supervisor(tmp_path, broker, collector):
            await wait_until(lambda: len(collector.names) >= len(names), "all is there", 2 * EXPORT_TURN_S)

    assert ended_s < STOP_S_MAX
    assert collector.names == names


async def test_a_wrong_key_is_not_tried_span_by_span(site: Site) -> None:
    """The specification wants no second try, and a batch in parts would be one."""
    async with collecting(answer="503 Service Unavailable") as collector, site.exporting(to(collector)) as exporter:
        site.tell(exporter, *(f"stage {number}" for number in range(5)))
        await wait_until(lambda: len(collector.received) > 0, "the first try")
        collector.answer = "401 Unauthorized"
        await wait_until(lambda: exporter is not None and exporter.dropped["refused"] == 5, "all are given up", 10)

    assert len(collector.received) < 5


async def test_a_broker_that_goes_away_ends_no_export(tmp_path: Path) -> None:
    """What is told of meanwhile is in the run's file, and goes out when the broker is back."""
    (tmp_path / "runs").mkdir()
    async with (
        EmbeddedBroker.run(tmp_path / "nats") as broker,
        Connection.open(broker.supervisor, name="fleet", inbox="fleet") as connection,
        collecting() as collector,
    ):
        site = Site(connection, tmp_path / "runs")
        async with site.exporting(to(collector)) as exporter:
            site.tell(exporter, "before")
            await wait_until(lambda: collector.names == ["before"], "the first is there", 10)
            os.kill(broker.pid, signal.SIGKILL)
            site.tell(exporter, "meanwhile")
            await wait_until(lambda: collector.names == ["before", "meanwhile"], "the second is there", 30)


class Flaky(ExportBuffer):
    """A buffer whose broker is away at the first try of each call."""

    tries = 0

    async def put(self, payload: bytes, dedupe: str) -> None:
        self._fail()
        await super().put(payload, dedupe)

    async def take(self, messages_max: int, bytes_max: int, wait_s: float) -> list[Buffered]:
        self._fail()
        return await super().take(messages_max, bytes_max, wait_s)

    def _fail(self) -> None:
        self.tries += 1
        if self.tries <= 2:
            raise BrokerError("away")


async def test_a_call_the_broker_does_not_answer_is_made_again(site: Site) -> None:
    """On the way into the buffer, and on the way out."""
    buffer = Flaky(site.connection)
    backlog = Backlog(site.file_of, buffer, _no_drop, again_s=0.01)
    site.tell(backlog, "stage spec")
    async with collecting() as collector, Collectors.open(Endpoint(collector.url)) as there:
        delivery = Delivery(buffer, there, _no_drop, pause_s=0.01)
        async with Tasks.open() as tasks:
            for work in (backlog.run(), delivery.run()):
                tasks.start(work)
            await wait_until(lambda: collector.names == ["stage spec"], "it is there", 10)


async def test_spans_a_collector_leaves_out_are_counted(site: Site) -> None:
    """It took the request, so it is not sent again."""
    async with collecting() as collector:
        said = ExportTraceServiceResponse()
        said.partial_success.rejected_spans = 1
        collector.says = said.SerializeToString()
        async with site.exporting(to(collector)) as exporter:
            site.tell(exporter, "stage spec")
            await wait_until(lambda: len(collector.received) == 1, "it is there", 10)
        assert exporter is not None
        assert dict(exporter.dropped) == {"rejected": 1}

    assert len(collector.received) == 1


class Refusing(ExportBuffer):
    """A buffer that counts how often it has no room."""

    refused = 0

    async def put(self, payload: bytes, dedupe: str) -> None:
        try:
            await super().put(payload, dedupe)
        except BufferFull:
            self.refused += 1
            raise


@asynccontextmanager
async def a_buffer_of(site: Site, bytes_max: int) -> AsyncIterator[Refusing]:
    """Give the buffer a bound, and its own back."""
    buffer = Refusing(site.connection)
    await buffer.take(1, 1, 0.01)  # makes it
    config = (await site.connection.api(f"STREAM.INFO.{subjects.STREAM_EXPORT}"))["config"]
    await site.connection.api(f"STREAM.UPDATE.{subjects.STREAM_EXPORT}", {**config, "max_bytes": bytes_max})
    yield buffer
    await site.connection.api(f"STREAM.UPDATE.{subjects.STREAM_EXPORT}", {**config, "max_bytes": EXPORT_BYTES_MAX})


async def until_waiting(buffer: ExportBuffer, messages: int) -> None:
    """Wait until so many messages are in the buffer: the broker hears of what is done a moment later."""
    async with asyncio.timeout(10):
        while await buffer.waiting() != messages:
            await asyncio.sleep(0.01)


async def test_what_finds_no_room_in_the_buffer_waits_in_the_runs_file(site: Site) -> None:
    """The buffer takes what fits, to the byte; nothing is lost, and nothing else grows."""
    async with a_buffer_of(site, 100_000) as buffer:
        while True:
            try:
                await buffer.put(b"x" * 30_000, str(time.monotonic()))
            except BufferFull:
                break
        assert await buffer.waiting() == 3
        for message in await buffer.take(9, 1 << 20, 1.0):
            await message.done()
        await until_waiting(buffer, 0)
        await buffer.put(b"x" * 90_000, "again")
        refused = buffer.refused
        backlog = Backlog(site.file_of, buffer, _no_drop, again_s=0.01)
        site.tell(backlog, *(f"stage {number}" for number in range(50)))
        putting = asyncio.create_task(backlog.run())
        await wait_until(lambda: buffer.refused > refused + 2, "there is no room")
        assert not backlog.is_empty
        (message,) = await buffer.take(1, 1, 1.0)
        await message.done()
        await wait_until(lambda: backlog.is_empty, "there is room", 10)
        putting.cancel()
        await until_waiting(buffer, 50)
