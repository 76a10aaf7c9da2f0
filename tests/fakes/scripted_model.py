"""The scripted model: a real HTTP server that speaks the streaming Messages API and says what a script says. No model.

It checks what a provider checks (roles alternate or join, every tool call is answered, the conversation only grows, at
most four cache markers) and keeps a log of every call, as a provider's log would.
"""

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.fakes.prompt_cache import CHARS_PER_TOKEN, InputUsage, PromptCache
from tests.fakes.script import Fault, Script, Turn

HEAD_BYTES_MAX = 64 << 10
BODY_BYTES_MAX = 32 << 20
_FEATURE = re.compile(r"\.andon/features/([a-z0-9][a-z0-9-]*)/")


@dataclass(frozen=True)
class Logged:
    """One call as the provider saw it."""

    run: str
    stage: str
    round: int
    attempt: int
    turn: int
    """Assistant turns in the request."""
    status: int
    """Of the reply; 0: the stream was cut."""
    headers: dict[str, str]
    request: dict[str, Any]
    usage: dict[str, int] = field(default_factory=dict)


class _Refused(Exception):
    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class ScriptedModel:
    """Serves a script on a port of `host`: `async with ScriptedModel(script) as server`."""

    def __init__(self, script: Script, *, api_key: str = "sk-scripted-not-a-secret", host: str = "127.0.0.1", port: int = 0) -> None:
        self.script = script
        self.api_key = api_key
        self.log: list[Logged] = []
        self.begun: list[Logged] = []
        """Every call whose reply was begun, with its whole usage: a provider bills it also when nobody listened to the end."""
        self.violations: list[str] = []
        """What a provider would have refused or silently billed; empty in a good run."""
        self._host, self._port = host, port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._cache = PromptCache()
        self._told: Counter[tuple[object, ...]] = Counter()
        self._seen: dict[tuple[object, ...], list[Any]] = {}

    async def __aenter__(self) -> "ScriptedModel":
        """Begin to listen."""
        self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=HEAD_BYTES_MAX)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop listening and drop every connection."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()
        async with asyncio.timeout(10):
            while self._open:
                await asyncio.sleep(0.005)

    @property
    def url(self) -> str:
        """Return the base URL."""
        return f"http://{self._host}:{self._port}"

    def environment(self) -> dict[str, str]:
        """Return the variables that make an executor use this server."""
        return {"ANTHROPIC_BASE_URL": self.url, "ANTHROPIC_API_KEY": self.api_key}

    def calls(self, stage: str | None = None) -> list[Logged]:
        """Return the calls that were answered in full."""
        return [call for call in self.log if call.status == 200 and (stage is None or call.stage == stage)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client is gone, or is no HTTP client
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._open.discard(writer)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection can be used again."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        length = int(headers.get("content-length", "0"))
        if length > BODY_BYTES_MAX:
            return False
        body = await reader.readexactly(length)
        try:
            keeps = await self._answer(head[0], headers, body, writer)
            return keeps and headers.get("connection", "").lower() != "close"
        except _Refused as error:
            payload = {"type": "error", "error": {"type": error.kind, "message": str(error)}}
            await _send(writer, error.status, payload)
            return True

    async def _answer(self, request_line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> bool:
        method, target, _ = request_line.split(" ", 2)
        if (method, target.split("?")[0]) != ("POST", "/v1/messages"):
            raise _Refused(404, f"no route {method} {target}", "not_found_error")
        if headers.get("authorization") != f"Bearer {self.api_key}" and headers.get("x-api-key") != self.api_key:
            raise _Refused(401, "invalid x-api-key", "authentication_error")
        request = json.loads(body)
        call = _identified(headers, request, self.script)
        told = self.script.conversation(call.stage, call.round, call.attempt)
        turn = told.turn(call.turn) if told else None
        if turn is None:
            raise _Refused(400, f"script {self.script.name!r} has no turn {call.turn} of {call.stage} round {call.round}")
        if turn.fault is not None and self._is_due(turn.fault, call):
            return await self._fail(turn, turn.fault, call, writer)
        usage = self._checked(call)
        self.begun.append(_with(call, 200, _reported(turn, usage)))
        events = _events(turn, call, _feature(request, self.script), usage)
        if request.get("stream"):
            await _begin_stream(writer)
            async for event in events:
                await _send_event(writer, event)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        else:
            await _send(writer, 200, await whole_message(events))
        self.log.append(_with(call, 200, _reported(turn, usage)))
        return True

    def _is_due(self, fault: Fault, call: Logged) -> bool:
        key = (call.run, call.stage, call.round, call.attempt, call.turn)
        self._told[key] += 1
        return self._told[key] <= fault.times

    async def _fail(self, turn: Turn, fault: Fault, call: Logged, writer: asyncio.StreamWriter) -> bool:
        self.log.append(_with(call, fault.status, {}))
        if fault.status:
            extra = {} if fault.retry_after_s is None else {"retry-after": f"{fault.retry_after_s:g}"}
            await _send(writer, fault.status, {"type": "error", "error": {"type": fault.kind, "message": "scripted fault"}}, extra)
            return True
        await _begin_stream(writer)
        events = [event async for event in _events(turn, call, self.script.feature, InputUsage(10, 0, 0))]
        for event in events[: max(1, len(events) // 2)]:
            await _send_event(writer, event)
        if fault.cut == "clean":
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        return False

    def _checked(self, call: Logged) -> InputUsage:
        """Check a request as the provider does and return what its input costs."""
        problems = _problems(call.request["messages"])
        key = (call.run, call.stage, call.round, call.attempt)
        unmarked = [_as_blocks(_without_markers(message)) for message in call.request["messages"]]
        frame = [call.request.get("system"), call.request.get("tools"), call.request["model"]]
        before = self._seen.get(key)
        if before is not None and call.turn > 0 and [_without_markers(frame), *unmarked][: len(before)] != before:
            problems.append("the conversation was changed, not continued")
        self._seen[key] = [_without_markers(frame), *unmarked]
        try:
            usage = self._cache.charge(call.request)
        except ValueError as error:
            problems.append(str(error))
        if problems:
            self.violations += problems
            raise _Refused(400, "; ".join(problems))
        return usage


def _identified(headers: dict[str, str], request: dict[str, Any], script: Script) -> Logged:
    only = {one.stage for one in script.conversations}
    stage = headers.get("x-andon-stage") or (next(iter(only)) if len(only) == 1 else "")
    if not stage:
        raise _Refused(400, "no x-andon-stage header, and the script has several stages")
    return Logged(
        run=headers.get("x-andon-run", ""),
        stage=stage,
        round=int(headers.get("x-andon-round", "1")),
        attempt=int(headers.get("x-andon-attempt", "1")),
        turn=sum(message["role"] == "assistant" for message in request["messages"]),
        status=0,
        headers=headers,
        request=request,
    )


def _with(call: Logged, status: int, usage: dict[str, int]) -> Logged:
    return Logged(call.run, call.stage, call.round, call.attempt, call.turn, status, call.headers, call.request, usage)


def _problems(messages: list[dict[str, Any]]) -> list[str]:
    """Return what the API refuses: an empty turn or text, a call without its result, a result without its call."""
    problems: list[str] = []
    expected: list[str] = []
    for message in messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not blocks or any(block["type"] == "text" and not block["text"].strip() for block in blocks):
            problems.append(f"a {message['role']} turn or one of its texts is empty")
        if message["role"] == "user":
            given = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
            if given != expected:
                problems.append(f"results {given} do not answer the calls {expected}")
            expected = []
        else:
            expected = [block["id"] for block in blocks if block["type"] == "tool_use"]
    return problems


def _without_markers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_markers(inner) for key, inner in value.items() if key != "cache_control"}
    return [_without_markers(inner) for inner in value] if isinstance(value, list) else value


def _as_blocks(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its text as a block: to the model it is the same."""
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}


def _feature(request: dict[str, Any], script: Script) -> str:
    found = _FEATURE.search(json.dumps(request["messages"][0]))
    return found.group(1) if found else script.feature


async def _events(turn: Turn, call: Logged, feature: str, usage: InputUsage) -> AsyncIterator[dict[str, Any]]:
    """Yield a reply's events in the order and shape of the API."""
    reported = _reported(turn, usage)
    name = f"{call.stage}-{call.round}-{call.turn}"
    message = {
        "id": f"msg_scripted_{name}",
        "type": "message",
        "role": "assistant",
        "model": call.request["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**reported, "output_tokens": 1},
    }
    yield {"type": "message_start", "message": message}
    if turn.delay_s:
        await asyncio.sleep(turn.delay_s)
    for index, (start, deltas) in enumerate(_contents(turn, name, feature)):
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
        if index == 0:
            yield {"type": "ping"}
    ending: dict[str, Any] = {"stop_reason": turn.ends_with, "stop_sequence": None}
    if turn.ends_with == "refusal":
        ending["stop_details"] = {"type": "refusal", "category": turn.category or None, "explanation": None}
    yield {"type": "message_delta", "delta": ending, "usage": {"output_tokens": reported["output_tokens"]}}
    yield {"type": "message_stop"}


def _contents(turn: Turn, name: str, feature: str) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    contents: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if turn.thinking:
        deltas = [{"type": "thinking_delta", "thinking": turn.thinking}, {"type": "signature_delta", "signature": f"c2NyaXB0ZWQ{name}"}]
        contents.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    if turn.text:
        contents.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": half} for half in _halves(turn.text)]))
    for number, one in enumerate(turn.calls):
        arguments = json.dumps(one.arguments).replace("{feature}", feature)
        if turn.cut_call and number == len(turn.calls) - 1:
            arguments = arguments[: len(arguments) // 2]
        start = {"type": "tool_use", "id": f"toolu_{name.replace('-', '_')}_{number}", "name": one.name, "input": {}}
        contents.append((start, [{"type": "input_json_delta", "partial_json": half} for half in ["", *_halves(arguments)]]))
    return contents


def _halves(text: str) -> list[str]:
    middle = len(text) // 2
    return [half for half in (text[:middle], text[middle:]) if half]


def _reported(turn: Turn, usage: InputUsage) -> dict[str, int]:
    said = len(turn.text) + len(turn.thinking) + sum(len(json.dumps(dict(one.arguments))) for one in turn.calls)
    return {
        "input_tokens": usage.uncached if turn.input_tokens is None else turn.input_tokens,
        "cache_creation_input_tokens": usage.written,
        "cache_read_input_tokens": usage.read,
        "output_tokens": max(1, said // CHARS_PER_TOKEN) if turn.output_tokens is None else turn.output_tokens,
    }


async def whole_message(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """Return the message a client gets that asks for no stream."""
    message: dict[str, Any] = {}
    async for event in events:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                message["content"].append({**event["content_block"]})
                partial = ""
            case "content_block_delta":
                delta, block = event["delta"], message["content"][-1]
                if delta["type"] == "input_json_delta":
                    partial += delta["partial_json"]
                    block["input"] = json.loads(partial) if _is_json(partial) else {}
                else:
                    key = next(name for name in ("text", "thinking", "signature") if name in delta)
                    block[key] += delta[key]
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
    return message


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


async def _send(writer: asyncio.StreamWriter, status: int, payload: dict[str, Any], extra: dict[str, str] | None = None) -> None:
    body = json.dumps(payload).encode()
    lines = [f"HTTP/1.1 {status} Scripted", "content-type: application/json", f"content-length: {len(body)}", "request-id: req_scripted"]
    lines += [f"{name}: {value}" for name, value in (extra or {}).items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()


async def _begin_stream(writer: asyncio.StreamWriter) -> None:
    lines = (
        "HTTP/1.1 200 OK",
        "content-type: text/event-stream; charset=utf-8",
        "request-id: req_scripted",
        "transfer-encoding: chunked",
        "",
        "",
    )
    writer.write("\r\n".join(lines).encode())
    await writer.drain()


async def _send_event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()
