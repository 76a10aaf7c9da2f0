"""Reads what Claude Code prints, one JSON object a line: tool calls as spans and log lines, and its last word; it decides nothing."""

import json
from collections.abc import Callable
from typing import Any

from sandbox.inside.agent.spans import Call, ToolSpans
from sandbox.inside.agent.tools.call import ToolResult

LINE_BYTES_MAX = 8 << 20
CALLS_OPEN_MAX = 256
"""Tool calls whose end is awaited; more are not traced."""


class StreamJson:
    """The output of one run; what is no such line goes to the log."""

    def __init__(self, say: Callable[[str], None], spans: ToolSpans) -> None:
        """Say what happens, and trace it."""
        self.turns = 0
        """Replies of the model that were seen."""
        self.result: dict[str, Any] = {}
        """Its last word: `subtype`, `is_error`, `stop_reason`, `result`."""
        self.tail = ""
        """The last line that was no object."""
        self._say = say
        self._spans = spans
        self._rest = bytearray()
        self._is_cut = False
        self._replies: set[str] = set()
        self._calls: dict[str, tuple[str, Call]] = {}

    def feed(self, data: bytes) -> None:
        """Take a piece of output."""
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        for line in lines:
            if not self._is_cut:
                self._take(bytes(line))
            self._is_cut = False
        if len(self._rest) > LINE_BYTES_MAX:
            self._rest.clear()
            self._is_cut = True

    def end(self) -> None:
        """Take what came after the last line break."""
        if self._rest and not self._is_cut:
            self._take(bytes(self._rest))
        self._rest.clear()

    def _take(self, line: bytes) -> None:
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            self.tail = line.decode(errors="replace").strip() or self.tail
            return
        match told.get("type"):
            case "assistant":
                self._assistant(told.get("message"))
            case "user":
                self._user(told.get("message"))
            case "result":
                self.result = told

    def _assistant(self, message: Any) -> None:
        if not isinstance(message, dict):
            return
        if (reply := str(message.get("id"))) not in self._replies:  # its blocks come one by one
            self._replies.add(reply)
            self.turns = len(self._replies)
        for block in _blocks(message):
            if block.get("type") == "tool_use" and len(self._calls) < CALLS_OPEN_MAX:
                self._calls[str(block.get("id"))] = (str(block.get("name")).lower(), self._spans.begin())

    def _user(self, message: Any) -> None:
        for block in _blocks(message):
            begun = self._calls.pop(str(block.get("tool_use_id")), None)
            if begun is not None:
                name, call = begun
                content = block.get("content")
                result = ToolResult(content if isinstance(content, str) else json.dumps(content), is_error=block.get("is_error") is True)
                self._spans.record(name, str(block["tool_use_id"]), self.turns, call, result)
                self._say(f"turn {self.turns}: {name} {'error' if result.is_error else ''}".rstrip())


def _blocks(message: Any) -> list[dict[str, Any]]:
    content = message.get("content") if isinstance(message, dict) else None
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
