"""A provider that does what a test says: a real HTTP server on loopback, byte for byte; not a model with a script (`scripted_model`)."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

REPLY_TEXT = "hello from the model"


@dataclass
class Request:
    """One request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes
    number: int
    """From 1."""


@dataclass
class FakeUpstream:
    """What the server saw, and where it is."""

    base_url: str
    requests: list[Request] = field(default_factory=list)
    aborted: int = 0
    """Replies whose reader left before the end."""


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def fake_upstream(behaviour: Behaviour) -> AsyncIterator[FakeUpstream]:
    """Serve `behaviour` on a free port of 127.0.0.1; one request a connection."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _read(reader, len(upstream.requests) + 1)
            upstream.requests.append(request)
            await behaviour(request, writer)
        except (OSError, asyncio.IncompleteReadError):
            upstream.aborted += 1
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    upstream = FakeUpstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield upstream
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)


async def _read(reader: asyncio.StreamReader, number: int) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (item.partition(":") for item in fields)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(line, headers, body, number)


def event(name: str, **data: object) -> bytes:
    """Return one server-sent event."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def a_start(*, model: object = "claude-sonnet-5-5", **usage: object) -> bytes:
    """Return message_start; usage defaults to 100 tokens of input."""
    message: dict[str, object] = {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 1, **usage},
    }
    return event("message_start", message=message)


def an_end(*, output_tokens: int = 50, stop_reason: str = "end_turn", **usage: object) -> bytes:
    """Return message_delta and message_stop."""
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return event("message_delta", delta=delta, usage={"output_tokens": output_tokens, **usage}) + event("message_stop")


def some_text(text: str = REPLY_TEXT) -> list[bytes]:
    """Return a text block, a delta for each word."""
    deltas = [
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": word}) for word in text.replace(" ", "\0 ").split("\0")
    ]
    return [
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *deltas,
        event("content_block_stop", index=0),
    ]


def a_tool_call(name: str = "bash", id_: str = "toolu_01", input_: str = '{"command":"ls"}') -> list[bytes]:
    """Return a tool_use block."""
    block = {"type": "tool_use", "id": id_, "name": name, "input": {}}
    return [
        event("content_block_start", index=0, content_block=block),
        event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": input_}),
        event("content_block_stop", index=0),
    ]


def a_reply(text: str = REPLY_TEXT) -> list[bytes]:
    """Return a whole reply: 100 tokens in, 50 out, $0.0007 on claude-sonnet-5-5."""
    return [a_start(), *some_text(text), an_end()]


async def send_head(writer: asyncio.StreamWriter, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
    """Send a reply's head; the body ends with the connection."""
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\nconnection: close\r\n{extra}\r\n".encode())
    await writer.drain()


async def send_events(writer: asyncio.StreamWriter, events: list[bytes], *, pause_s: float = 0.0) -> None:
    """Send events one by one."""
    for item in events:
        writer.write(item)
        await writer.drain()
        if pause_s:
            await asyncio.sleep(pause_s)


async def send_error(writer: asyncio.StreamWriter, status: int, kind: str, text: str, *, code: str = "", **headers: str) -> None:
    """Send an error as the provider shapes it."""
    error: dict[str, object] = {"type": kind, "message": text}
    if code:
        error["details"] = {"error_code": code}
    await send_head(writer, status, "application/json", **headers)
    writer.write(json.dumps({"type": "error", "error": error}).encode())
    await writer.drain()


def replying(events: list[bytes], *, pause_s: float = 0.0) -> Behaviour:
    """Return a behaviour that always sends these events."""

    async def behaviour(request: Request, writer: asyncio.StreamWriter) -> None:
        await send_head(writer)
        await send_events(writer, events, pause_s=pause_s)

    return behaviour


def then(*behaviours: Behaviour) -> Behaviour:
    """Do one after the other, the last one for ever."""

    async def behaviour(request: Request, writer: asyncio.StreamWriter) -> None:
        await behaviours[min(request.number, len(behaviours)) - 1](request, writer)

    return behaviour


def refusing(status: int, kind: str = "api_error", *, code: str = "", **headers: str) -> Behaviour:
    """Return a behaviour that always answers with this error."""

    async def behaviour(request: Request, writer: asyncio.StreamWriter) -> None:
        await send_error(writer, status, kind, "UPSTREAM TEXT", code=code, **headers)

    return behaviour


async def hang_up(request: Request, writer: asyncio.StreamWriter) -> None:
    """Close the connection without an answer."""
