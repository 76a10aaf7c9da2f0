"""A message as events and back."""

import json
from datetime import date

import pytest

from sandbox.contract.price import shipped_prices
from sandbox.contract.result import Usage
from sandbox.gateway.meter import Meter
from sandbox.gateway.whole_reply import events_of, message_of

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5-5",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "text", "text": "Ich sehe nach: äöü\n\ndata: x"},
        {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls\n\n", "n": [1, None]}},
        {"type": "redacted_thinking", "data": "eA=="},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 10, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 7, "output_tokens": 99},
}


def test_a_message_survives_the_way_there_and_back():
    """What a replay gives is what was recorded, block for block."""
    recorded = b"".join(event.raw for event in events_of(json.dumps(MESSAGE).encode()))

    assert json.loads(message_of(recorded)) == MESSAGE


def test_the_meter_reads_the_same_figures_as_in_a_stream():
    """Its whole usage, its stop reason, its last tool."""
    meter = Meter("5m")

    for event in events_of(json.dumps(MESSAGE).encode()):
        meter.read(event)

    assert meter.is_complete
    assert meter.anomalies == []
    assert meter.usage == Usage(input_tokens=10, output_tokens=99, cache_read_input_tokens=7, cache_write_input_tokens=3)
    assert (meter.stop_reason, meter.tool, meter.reply_id) == ("tool_use", "bash", "msg_1")
    assert meter.cost_nano_usd(shipped_prices(), "claude-sonnet-5-5", date(2026, 11, 23)) > 0


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"content": [], "usage": []}', b'{"content": [1], "usage": {}}', b'{"a": NaN}'])
def test_what_is_no_message_is_refused(body: bytes):
    """Its figures could not be trusted."""
    with pytest.raises(ValueError, match=r"."):
        events_of(body)


def test_a_recording_that_broke_off_is_no_message():
    """A client would take it for a whole one."""
    recorded = b"".join(event.raw for event in events_of(json.dumps(MESSAGE).encode())[:-2])

    with pytest.raises(ValueError, match="not whole"):
        message_of(recorded)
