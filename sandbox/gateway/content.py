"""What was said in a model call, for its span, if a person opted in: the convention's JSON, bounded, without secrets.

OpenTelemetry's GenAI conventions: `gen_ai.system_instructions`, `gen_ai.input.messages` and `gen_ai.output.messages`, each a JSON
text. Of the input the newest messages are kept, since the older ones are in the spans of the calls before; whatever is left out or cut
says so. Nothing here is asked for unless `Capture` exists.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sandbox.gateway.whole_reply import message_of
from sandbox.scrub import Scrub

SWITCH: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
ATTRIBUTE_BYTES_MAX: Final = 16 * 1024
PARTS_MAX: Final = 64
"""Of one message."""
OLDER_CHARS_MAX: Final = 1_024
"""Of each text of a message before the newest."""
_CHARS: Final = (ATTRIBUTE_BYTES_MAX, 4_096, 1_024, 256, 64)
"""Of each text of the newest message: the first that fits."""
_NAME_CHARS_MAX: Final = 128
_MARKER_BYTES: Final = 200
_ON: Final = frozenset({"true", "span_only", "span_and_event"})
_FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_call",
    "refusal": "content_filter",
}


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Return whether a person opted in; what makes no sense is a no."""
    return environment.get(SWITCH, "").strip().lower() in _ON


class Capture:
    """Makes the attributes of one host's model calls."""

    def __init__(self, scrub: Scrub) -> None:
        """Take secrets out by `scrub`."""
        self._scrub = scrub

    def of(self, request: Mapping[str, Any], sse: bytes) -> dict[str, str]:
        """Return the attributes of a call.

        Args:
            request: As it was judged.
            sse: The reply's events; if they are no whole reply, there is no output.
        """
        found = {
            "gen_ai.system_instructions": self._system(_blocks(request.get("system", ""))),
            "gen_ai.input.messages": self._input(request["messages"]),
            "gen_ai.output.messages": self._output(sse),
        }
        return {name: text for name, text in found.items() if text}

    def _system(self, blocks: Sequence[Any]) -> str:
        return _fitting(lambda chars: self._parts(blocks, chars), ATTRIBUTE_BYTES_MAX) if blocks else ""

    def _input(self, messages: Sequence[Any]) -> str:
        """Return the newest messages, the very newest as whole as it can be."""
        kept: list[str] = []
        room = ATTRIBUTE_BYTES_MAX - _MARKER_BYTES
        for message in reversed(messages):
            text = self._shown(message, room, is_newest=not kept)
            if not text:
                break
            room -= _size(text) + 1
            kept.append(text)
        if left_out := len(messages) - len(kept):
            kept.append(_json({"role": "system", "parts": [_text_part(f"[{left_out} messages left out]")]}))
        return f"[{','.join(reversed(kept))}]"

    def _shown(self, message: Any, room: int, *, is_newest: bool) -> str:
        sizes = _CHARS if is_newest else (OLDER_CHARS_MAX,)
        return _fitting(lambda chars: self._message(message, chars), room, sizes)

    def _output(self, sse: bytes) -> str:
        try:
            reply = json.loads(message_of(sse))
        except (ValueError, RecursionError):
            return ""
        finish = str(reply.get("stop_reason"))
        return _fitting(
            lambda chars: [{**self._message(reply, chars), "finish_reason": self._name(_FINISH.get(finish, finish))}], ATTRIBUTE_BYTES_MAX
        )

    def _message(self, message: Any, chars: int) -> dict[str, Any]:
        blocks = _blocks(message["content"])
        is_tools = bool(blocks) and all(isinstance(block, dict) and block.get("type") == "tool_result" for block in blocks)
        return {"role": "tool" if is_tools else self._name(message.get("role")), "parts": self._parts(blocks, chars)}

    def _parts(self, blocks: Sequence[Any], chars: int) -> list[dict[str, Any]]:
        parts = [self._part(block, chars) for block in blocks[:PARTS_MAX] if isinstance(block, dict)]
        return parts if len(blocks) <= PARTS_MAX else [*parts, _text_part(f"[{len(blocks) - PARTS_MAX} parts left out]")]

    def _part(self, block: Mapping[str, Any], chars: int) -> dict[str, Any]:
        match block.get("type"):
            case "text":
                return _text_part(self._cut(block.get("text"), chars))
            case "thinking":
                return {"type": "reasoning", "content": self._cut(block.get("thinking"), chars)}
            case "tool_use":
                about = {"id": self._name(block.get("id")), "name": self._name(block.get("name"))}
                return {"type": "tool_call", **about, "arguments": self._arguments(block.get("input"), chars)}
            case "tool_result":
                texts = (each.get("text") for each in _blocks(block.get("content", "")) if isinstance(each, dict))
                said = "\n".join(text for text in texts if isinstance(text, str))
                return {"type": "tool_call_response", "id": self._name(block.get("tool_use_id")), "response": self._cut(said, chars)}
            case other:
                return {"type": self._name(other)}

    def _arguments(self, value: object, chars: int) -> Any:
        """Return a tool's input as it was, or as cut text if it is large."""
        clean = self._clean(value, chars)
        text = _json(clean)
        return clean if len(text) <= chars else f"{text[:chars]}{_cut_note(len(text) - chars)}"

    def _clean(self, value: object, chars: int) -> Any:
        match value:
            case str():
                return self._cut(value, chars)
            case dict():
                return {self._cut(key, chars): self._clean(each, chars) for key, each in value.items()}
            case list():
                return [self._clean(each, chars) for each in value]
            case _:
                return value

    def _cut(self, text: object, chars: int) -> str:
        if not isinstance(text, str):
            return ""
        beginning = self._scrub.beginning(text, chars)
        return beginning if len(text) <= chars else f"{beginning}{_cut_note(len(text) - chars)}"

    def _name(self, value: object) -> str:
        return self._scrub.beginning(value, _NAME_CHARS_MAX) if isinstance(value, str) else ""


def _fitting(make: Callable[[int], Any], room: int, sizes: Sequence[int] = _CHARS) -> str:
    """Return the JSON of `make` with the longest texts that fit into so many bytes; empty if none does."""
    for chars in sizes:
        text = _json(make(chars))
        if _size(text) <= room:
            return text
    return ""


def _blocks(content: object) -> Sequence[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content if isinstance(content, list) else []


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}


def _cut_note(chars: int) -> str:
    return f"… [{chars} characters cut]"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
