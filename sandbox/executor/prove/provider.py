"""A model's provider for the proof, on loopback: it answers as a script says, late if told so, and counts; no model, and no wall."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

REQUEST_BYTES_MAX = 8 << 20
_CALLS_MAX = 500


class Provider:
    """What it was asked, and where it is."""

    def __init__(self, turns: list[Mapping[str, Any]], hold_s: float) -> None:
        """Answer the n-th call with the n-th block of content, the last one for ever, each after `hold_s`."""
        self.base_url = ""
        self.calls = 0
        self.at_once_max = 0
        """The most calls it was answering at the same time."""
        self._turns = turns
        self._hold_s = hold_s
        self._at_once = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's one call."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            await self._answer(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next((int(line.partition(":")[2]) for line in head.split("\r\n") if line.startswith("content-length:")), 0)
        await reader.readexactly(min(length, REQUEST_BYTES_MAX))
        self.calls = min(self.calls + 1, _CALLS_MAX)
        self._at_once += 1
        self.at_once_max = max(self.at_once_max, self._at_once)
        try:
            await asyncio.sleep(self._hold_s)
            writer.write(_reply(self._turns[min(self.calls, len(self._turns)) - 1]))
            await writer.drain()
        finally:
            self._at_once -= 1


@asynccontextmanager
async def provider(turns: list[Mapping[str, Any]], hold_s: float = 0.0) -> AsyncIterator[Provider]:
    """Serve on a free port of 127.0.0.1 while the context is open."""
    ours = Provider(turns, hold_s)
    server = await asyncio.start_server(ours.serve, "127.0.0.1", 0)
    ours.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield ours
    finally:
        server.close()


def text(words: str) -> Mapping[str, Any]:
    """Return a turn that says something."""
    return {"type": "text", "text": words}


def tool_call(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a turn that calls a tool."""
    return {"type": "tool_use", "id": "toolu_prove", "name": name, "input": arguments}


def _reply(block: Mapping[str, Any]) -> bytes:
    is_call = block["type"] == "tool_use"
    begun = {**block, "input": {}} if is_call else {"type": "text", "text": ""}
    delta = (
        {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        if is_call
        else {"type": "text_delta", "text": block["text"]}
    )
    message: dict[str, Any] = {
        "id": "msg_prove",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 1},
    }
    ended = {"stop_reason": "tool_use" if is_call else "end_turn", "stop_sequence": None}
    events: list[tuple[str, dict[str, Any]]] = [
        ("message_start", {"message": message}),
        ("content_block_start", {"index": 0, "content_block": begun}),
        ("content_block_delta", {"index": 0, "delta": delta}),
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": ended, "usage": {"output_tokens": 20}}),
        ("message_stop", {}),
    ]
    body = "".join(f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n" for name, data in events)
    return f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{body}".encode()
