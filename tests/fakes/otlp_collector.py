"""A receiver of OTLP/HTTP on loopback that answers as it is told: a stand-in for the collectors nobody can order to be slow or down."""

import asyncio
import gzip
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.fakes.traces import SeenTrace


@dataclass(frozen=True)
class Received:
    """One request."""

    line: str
    headers: dict[str, str]
    body: bytes
    at: float
    """Monotonic seconds."""

    @property
    def request(self) -> ExportTraceServiceRequest:
        """Return what it holds."""
        body = gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body
        return ExportTraceServiceRequest.FromString(body)


@dataclass
class Collector:
    """Gives `answers` one by one, then `answer`; an empty one is never given."""

    answer: str = "200 OK"
    answers: deque[str] = field(default_factory=deque)
    """Each may have headers in further lines."""
    refuses: str = ""
    """Name of a span whose requests are refused with 400."""
    says: bytes = b""
    """Body of the answers."""
    delay_s: float = 0.0
    received: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)
    """Those that were answered with a 2xx."""
    port: int = 0

    @property
    def url(self) -> str:
        """Return its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def trace(self) -> SeenTrace:
        """Return every span it took, in order."""
        return SeenTrace.of_requests(each.request for each in self.taken)

    @property
    def names(self) -> list[str]:
        """Return the names of the spans it took, sorted."""
        return sorted(span.name for span in self.trace.spans)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer every request of one connection."""
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
                received = Received(lines[0], headers, await reader.readexactly(int(headers["content-length"])), time.monotonic())
                self.received.append(received)
                answer = self._answer(received)
                if answer:
                    await asyncio.sleep(self.delay_s)
                    if answer.startswith("2"):
                        self.taken.append(received)
                    writer.write(f"HTTP/1.1 {answer}\r\ncontent-length: {len(self.says)}\r\n\r\n".encode() + self.says)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client hung up
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def _answer(self, received: Received) -> str:
        if self.refuses and any(span.name == self.refuses for span in SeenTrace.of_requests([received.request]).spans):
            return "400 Bad Request"
        return self.answers.popleft() if self.answers else self.answer


@asynccontextmanager
async def collecting(answer: str = "200 OK", *, port: int = 0) -> AsyncIterator[Collector]:
    """Run a collector."""
    collector = Collector(answer)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(collector.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    collector.port = server.sockets[0].getsockname()[1]
    try:
        yield collector
    finally:
        server.close()
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
