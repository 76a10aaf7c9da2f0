"""Tells the gateway of each tool call as one OTLP/JSON span; not model calls, which only the gateway itself reports (TRACING.md §0.4).

Standard library only, one connection, no reply waited for: a lost span is not worth a millisecond of the agent's time.
The host judges every span and makes it anew (`gateway/otlp_relay`).
"""

import json
import os
import re
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sandbox.inside.agent.tools.call import ToolResult
from sandbox.inside.otlp import TRACEPARENT, below

SPANS_MAX = 5_000
FAILURES_MAX = 3
"""After so many failures in a row no more is sent: the gateway is away, or refuses."""
SEND_S = 0.2
CLOSE_S = 1.0

_REPLIES_BYTES = 65_536
_REPLIES_READS_MAX = 64
_NAME = re.compile(r"[a-z0-9_.-]{1,80}")


class Call(NamedTuple):
    """A tool call that is going on."""

    span_id: str
    traceparent: str
    """What its processes are given, so that their spans hang below it; empty: there is no trace."""
    started_ns: int
    """Unix time."""


class ToolSpans:
    """Sends the spans of one attempt; never raises."""

    def __init__(self, gateway: Path, traceparent: str) -> None:
        """Send to the socket `gateway`, below the span of `traceparent`; without one nothing is sent."""
        self._path = str(gateway)
        self._traceparent = traceparent
        found = TRACEPARENT.fullmatch(traceparent)
        self._context = (found[1], found[2]) if found else None
        self._connection: socket.socket | None = None
        self._sent = 0
        self._failures = 0

    def begin(self) -> Call:
        """Return a call that begins now."""
        own = os.urandom(8).hex()
        return Call(own, below(self._traceparent, own), time.time_ns())

    def record(self, name: str, call_id: str, turn: int, call: Call, result: ToolResult) -> None:
        """Send a call that ended now; its arguments and its output stay here."""
        tool = name if _NAME.fullmatch(name) else "unknown"
        self._send(f"execute_tool {tool}", call, _attributes(call_id, turn, result))

    def record_import(self, started_ns: int) -> None:
        """Send what the program needed until its first step: its imports, above all of the SDK."""
        self._send("agent import", Call(os.urandom(8).hex(), "", started_ns), [])

    def _send(self, name: str, call: Call, attributes: list[dict[str, object]]) -> None:
        if self._context is None or self._sent >= SPANS_MAX or self._failures >= FAILURES_MAX:
            return
        self._sent += 1
        body = json.dumps(_document(*self._context, name, call, attributes), separators=(",", ":")).encode()
        head = f"POST /v1/traces HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        try:
            self._open().sendall(head.encode() + body)
        except OSError:
            self._drop()
            self._failures += 1
        else:
            self._failures = 0

    def close(self) -> None:
        """Wait until the gateway has taken everything, at most `CLOSE_S`."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
                deadline = time.monotonic() + CLOSE_S
                while self._connection.recv(_REPLIES_BYTES) and time.monotonic() < deadline:
                    pass
            self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> socket.socket:
        """Return a connection the gateway has not closed, having thrown away its replies to earlier spans."""
        if self._connection is not None and _is_closed(self._connection):
            self._drop()
        if self._connection is None:
            self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._connection.settimeout(SEND_S)
            self._connection.connect(self._path)
        return self._connection


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        for _ in range(_REPLIES_READS_MAX):
            if not connection.recv(_REPLIES_BYTES):
                break
    except BlockingIOError:
        connection.settimeout(SEND_S)
        return False
    return True


def _document(trace: str, parent: str, name: str, call: Call, attributes: list[dict[str, object]]) -> dict[str, object]:
    span = {
        "traceId": trace,
        "spanId": call.span_id,
        "parentSpanId": parent,
        "name": name,
        "kind": 1,
        "startTimeUnixNano": str(call.started_ns),
        "endTimeUnixNano": str(time.time_ns()),
        "attributes": attributes,
    }
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def _attributes(call_id: str, turn: int, result: ToolResult) -> list[dict[str, object]]:
    attributes = [
        _text("gen_ai.tool.call.id", call_id[:100]),
        _number("andon.agent.turn", turn),
        _number("andon.tool.output.bytes", len(result.text.encode("utf-8", "replace"))),
    ]
    if result.exit_code is not None:
        attributes.append(_number("process.exit.code", result.exit_code))
    if result.is_error:
        attributes.append(_text("error.type", "malformed_call" if result.is_malformed else "tool_error"))
    return attributes


def _text(key: str, value: str) -> dict[str, object]:
    return {"key": key, "value": {"stringValue": value}}


def _number(key: str, value: int) -> dict[str, object]:
    return {"key": key, "value": {"intValue": str(value)}}
