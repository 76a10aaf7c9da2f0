"""A gateway reduced to its routes, for tests of the program inside: no policy, no money, no key check. Real unix socket.

It gives out one assignment, passes `/v1/messages` on to a model server with the headers the real one adds, and keeps
the submission.
"""

import asyncio
import contextlib
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from sandbox.contract.job import Assignment, Submission
from tests.fakes.scripted_model import ScriptedModel


class SocketGateway:
    """`async with SocketGateway(path, assignment, model) as gateway`; `model` None: no model route."""

    def __init__(self, path: Path, assignment: Assignment, model: ScriptedModel | None = None, *, polls_before: int = 0) -> None:
        self.submissions: list[Submission] = []
        self.requests: list[str] = []
        """Request lines, in order."""
        self._path = path
        self._assignment = assignment
        self._model = model
        self._polls_before = polls_before
        """So many polls for the assignment end without one."""
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "SocketGateway":
        """Begin to listen."""
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop listening and drop every connection."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close."""
        self._open.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            self.requests.append(lines[0])
            headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            await self._answer(lines[0].rsplit(" ", 1)[0], headers, body, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the program hung up
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._open.discard(writer)

    async def _answer(self, route: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        if route == "GET /andon/assignment" and self._polls_before:
            self._polls_before -= 1
            await _send(writer, "204 No Content")
        elif route == "GET /andon/assignment":
            await _send(writer, "200 OK", self._assignment.model_dump_json().encode())
        elif route == "POST /andon/submit":
            self.submissions.append(Submission.model_validate_json(body))
            await _send(writer, "202 Accepted")
        elif route == "POST /v1/messages" and self._model is not None:
            await self._relay(headers, body, writer, self._model)
        else:
            await _send(writer, "404 Not Found")

    async def _relay(self, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter, model: ScriptedModel) -> None:
        target = urlsplit(model.url)
        reader, upstream = await asyncio.open_connection(target.hostname, target.port)
        job = self._assignment
        sent = {
            "host": "model",
            "connection": "close",
            "content-type": "application/json",
            "content-length": str(len(body)),
            "anthropic-version": headers.get("anthropic-version", ""),
            "authorization": f"Bearer {model.api_key}",
            "x-andon-run": job.job_id.split("-")[0],
            "x-andon-job": job.job_id,
            "x-andon-stage": job.stage,
            "x-andon-round": str(job.round),
            "x-andon-attempt": str(job.attempt),
            "traceparent": headers.get("traceparent", ""),
        }
        try:
            upstream.write(
                "\r\n".join(["POST /v1/messages HTTP/1.1", *(f"{key}: {value}" for key, value in sent.items()), "", ""]).encode()
            )
            upstream.write(body)
            await upstream.drain()
            while chunk := await reader.read(65_536):
                writer.write(chunk)
                await writer.drain()
        finally:
            upstream.close()
            with contextlib.suppress(ConnectionError):
                await upstream.wait_closed()


async def _send(writer: asyncio.StreamWriter, status: str, body: bytes = b"") -> None:
    writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
    await writer.drain()
