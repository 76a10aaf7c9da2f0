"""A reply that is one JSON object, as the events of a stream and back: metering, budget and cassettes know only streams.

What a client gets is put together from the events, live and replayed alike: every field of the message and of its blocks.
"""

import json
from typing import Any

from sandbox.gateway.sse import Event, EventSplitter
from sandbox.gateway.strict_json import parse_strictly

REPLY_BYTES_MAX = 16 << 20
_ENDING = ("stop_reason", "stop_sequence", "stop_details")
_TEXT_OF = {"text_delta": ("text", "text"), "thinking_delta": ("thinking", "thinking"), "signature_delta": ("signature", "signature")}


def events_of(body: bytes) -> list[Event]:
    """Return the events a stream of this message would have had.

    Raises:
        ValueError: It is no message.
    """
    message = parse_strictly(body)
    if not isinstance(message, dict) or not isinstance(message.get("content"), list) or not isinstance(message.get("usage"), dict):
        raise ValueError("the reply is no message")  # noqa: TRY004 - of what a provider sent, not of a type
    usage = message["usage"]
    started = message | {"content": [], "usage": usage | {"output_tokens": 1}} | dict.fromkeys(_ENDING[:2])
    events: list[dict[str, Any]] = [{"type": "message_start", "message": started}]
    for index, block in enumerate(message["content"]):
        events += _block_events(index, block)
    ending = {key: message[key] for key in _ENDING if key in message}
    events += [{"type": "message_delta", "delta": ending, "usage": usage}, {"type": "message_stop"}]
    splitter = EventSplitter()
    return [whole for event in events for whole in splitter.feed(_raw(event))]


def message_of(sse: bytes) -> bytes:
    """Return the message a recorded stream tells of.

    Raises:
        ValueError: The stream is not whole, or makes no sense.
    """
    try:
        return _put_together(EventSplitter().feed(sse))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the stream makes no sense: {type(error).__name__}") from error


def _put_together(events: list[Event]) -> bytes:
    message: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    inputs: dict[int, str] = {}
    for event in events:
        told = json.loads(event.data or _data_of(event.raw))
        match told.get("type"):
            case "message_start":
                message = dict(told["message"])
            case "content_block_start":
                blocks[told["index"]] = dict(told["content_block"])
            case "content_block_delta":
                _extend(blocks[told["index"]], inputs, told["index"], told["delta"])
            case "message_delta":
                message |= told["delta"]
                message["usage"] = message.get("usage", {}) | told.get("usage", {})
    if message.get("stop_reason") is None:
        raise ValueError("the stream is not whole")
    for index, text in inputs.items():
        blocks[index]["input"] = json.loads(text) if text else {}
    return json.dumps(message | {"content": [blocks[index] for index in sorted(blocks)]}, ensure_ascii=False).encode()


def _block_events(index: int, block: Any) -> list[dict[str, Any]]:
    if not isinstance(block, dict):
        raise ValueError("a block of the reply is no object")  # noqa: TRY004 - as above
    start, deltas = dict(block), []
    match block.get("type"):
        case "text":
            start, deltas = block | {"text": ""}, [{"type": "text_delta", "text": block.get("text", "")}]
        case "thinking":
            start = block | {"thinking": "", "signature": ""}
            deltas = [
                {"type": "thinking_delta", "thinking": block.get("thinking", "")},
                {"type": "signature_delta", "signature": block.get("signature", "")},
            ]
        case "tool_use":
            start, deltas = block | {"input": {}}, [{"type": "input_json_delta", "partial_json": json.dumps(block.get("input", {}))}]
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def _extend(block: dict[str, Any], inputs: dict[int, str], index: int, delta: dict[str, Any]) -> None:
    if delta["type"] == "input_json_delta":
        inputs[index] = inputs.get(index, "") + delta["partial_json"]
    elif delta["type"] in _TEXT_OF:
        key, part = _TEXT_OF[delta["type"]]
        block[key] = block.get(key, "") + delta[part]


def _raw(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def _data_of(raw: bytes) -> bytes:
    return b"\n".join(line.partition(b":")[2].strip() for line in raw.splitlines() if line.startswith(b"data:"))
