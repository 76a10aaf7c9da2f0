"""A gateway as one writes it in an hour: it holds the key and none of the walls. The positive control of the W rows, and nothing else.

It joins the path it is sent to its upstream, passes headers, bodies and errors on as they are, counts money after it is spent, with
floats, and what of a reply its client took. Each of these works; each is one row of the catalogue.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

OUTPUT_USD = 10e-6
"""For one token of output."""


@dataclass
class NaiveGateway:
    """Where it listens, and what it thinks it has spent."""

    socket: Path
    base_url: str
    key: str
    budget_usd: float
    at_once_max: int
    spent_usd: float = 0.0
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.at_once_max)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests, however long each takes to come."""
        try:
            async with self._free:
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
                    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                    body = await reader.readexactly(int(fields.get("content-length", "0")))
                    await self._answer(head[0], fields, body, writer)
                    if fields.get("connection") == "close":
                        return
        except (OSError, EOFError) as error:
            self.errors.append(repr(error))
        finally:
            writer.close()

    async def _answer(self, line: str, fields: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        if self.spent_usd > self.budget_usd:
            writer.write(b"HTTP/1.1 429 X\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return
        method, target, _ = line.split(" ")
        url = urlsplit(urljoin(self.base_url, target))
        headers = {"authorization": f"Bearer {self.key}"} | fields | {"host": url.netloc, "connection": "close"}
        head = f"{method} {url.path or '/'} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        theirs, ours = await asyncio.open_connection(url.hostname, url.port or 80)
        usage: dict[str, Any] = {}
        try:
            ours.write(head.encode("latin-1") + b"\r\n" + body)
            await ours.drain()
            while line_ := await theirs.readline():
                _count(line_, usage)
                writer.write(line_)
                await writer.drain()
                if writer.is_closing():
                    break
        finally:
            self.spent_usd += float(usage.get("output_tokens", 0)) * OUTPUT_USD
            ours.close()


def _count(line: bytes, usage: dict[str, Any]) -> None:
    with suppress(ValueError, AttributeError):
        event = json.loads(line.removeprefix(b"data: "))
        usage.update(event.get("message", {}).get("usage", {}) | event.get("usage", {}))


@asynccontextmanager
async def naive_gateway(
    directory: Path, base_url: str, key: str, *, budget_usd: float = 1.0, at_once_max: int = 128
) -> AsyncIterator[NaiveGateway]:
    """Open one on a socket in `directory`."""
    gateway = NaiveGateway(directory / "naive.sock", base_url, key, budget_usd, at_once_max)
    server = await asyncio.start_unix_server(gateway.serve, str(gateway.socket))
    try:
        yield gateway
    finally:
        server.close()


async def send(socket: Path, data: bytes, *, wait_s: float = 5.0) -> bytes:
    """Send bytes on a connection of their own and return what comes until it is closed, or until then."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    got = b""
    try:
        writer.write(data)
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(wait_s):
                while piece := await reader.read(65536):
                    got += piece
    finally:
        writer.close()
    return got
