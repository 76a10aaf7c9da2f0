"""Tells the gateway of each tool call as one OTLP/JSON span; not model calls, which only the gateway itself reports (TRACING.md §0.4).

Standard library only, one short connection a span, no reply waited for: a lost span is not worth a millisecond of the agent's time.
The host judges every span and makes it anew (`gateway/otlp_relay`).
"""

import json
import re
import socket
import time
from pathlib import Path

from sandbox.inside.agent.tools.call import ToolResult

SPANS_MAX = 5_000
FAILURES_MAX = 3
"""After so many failures in a row no more is sent: the gateway is away, or refuses."""
SEND_S = 0.2

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_NAME = re.compile(r"[a-z0-9_.-]{1,80}")


class ToolSpans:
    """Sends the spans of one attempt; never raises."""

    def __init__(self, gateway: Path, traceparent: str) -> None:
        """Send to the socket `gateway`, below the span of `traceparent`; without one nothing is sent."""
        self._path = str(gateway)
        found = _TRACEPARENT.fullmatch(traceparent)
        self._context = (found[1], found[2]) if found else None
        self._sent = 0
        self._failures = 0

    def record(self, name: str, call_id: str, turn: int, started_ns: int, result: ToolResult) -> None:
        """Send the call that began at `started_ns` (Unix) and ended now; its arguments and its output stay here."""
        if self._context is None or self._sent >= SPANS_MAX or self._failures >= FAILURES_MAX:
            return
        self._sent += 1
        body = json.dumps(_document(*self._context, name, call_id, turn, started_ns, result), separators=(",", ":")).encode()
        head = (
            "POST /v1/traces HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(SEND_S)
                connection.connect(self._path)
                connection.sendall(head.encode() + body)
        except OSError:
            self._failures += 1
        else:
            self._failures = 0


def _document(trace: str, parent: str, name: str, call_id: str, turn: int, started_ns: int, result: ToolResult) -> dict[str, object]:
    tool = name if _NAME.fullmatch(name) else "unknown"
    attributes = [
        _text("gen_ai.operation.name", "execute_tool"),
        _text("gen_ai.tool.name", tool),
        _text("gen_ai.tool.call.id", call_id[:100]),
        _number("andon.agent.turn", turn),
        _number("andon.tool.output.bytes", len(result.text.encode("utf-8", "replace"))),
    ]
    if result.exit_code is not None:
        attributes.append(_number("process.exit.code", result.exit_code))
    if result.is_error:
        attributes.append(_text("error.type", "malformed_call" if result.is_malformed else "tool_error"))
    span = {
        "traceId": trace,
        "parentSpanId": parent,
        "name": f"execute_tool {tool}",
        "kind": 1,
        "startTimeUnixNano": str(started_ns),
        "endTimeUnixNano": str(time.time_ns()),
        "attributes": attributes,
    }
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def _text(key: str, value: str) -> dict[str, object]:
    return {"key": key, "value": {"stringValue": value}}


def _number(key: str, value: int) -> dict[str, object]:
    return {"key": key, "value": {"intValue": str(value)}}
