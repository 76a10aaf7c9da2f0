"""What was said in a model call, as the convention wants it: bounded, valid JSON, newest first kept, no secrets."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.gateway.content import ATTRIBUTE_BYTES_MAX, PARTS_MAX, SWITCH, Capture, is_wanted
from sandbox.scrub import Scrub
from tests.fakes.upstream import a_reply, a_start, a_tool_call, an_end

SYSTEM, INPUT, OUTPUT = "gen_ai.system_instructions", "gen_ai.input.messages", "gen_ai.output.messages"
CALL: dict[str, Any] = {
    "system": [{"type": "text", "text": "You write specifications."}],
    "messages": [
        {"role": "user", "content": "Limit each client."},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "A file first.", "signature": "x"},
                {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "app.py"}]}]},
    ],
}


def captured(request: dict[str, Any] = CALL, sse: bytes = b"", secrets: tuple[str, ...] = ()) -> dict[str, Any]:
    found = Capture(Scrub(secrets)).of(request, sse)
    assert all(len(text.encode("utf-8", "replace")) <= ATTRIBUTE_BYTES_MAX for text in found.values())
    return {name: json.loads(text) for name, text in found.items()}


def asking(*texts: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


def test_a_conversation_is_told_in_the_conventions_shape():
    """Parts by type, tool calls beside their responses, the role `tool` for what tools said."""
    found = captured()

    assert found[SYSTEM] == [{"type": "text", "content": "You write specifications."}]
    assert found[INPUT] == [
        {"role": "user", "parts": [{"type": "text", "content": "Limit each client."}]},
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "A file first."},
                {"type": "tool_call", "id": "toolu_1", "name": "bash", "arguments": {"command": "ls"}},
            ],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "toolu_1", "response": "app.py"}]},
    ]
    assert OUTPUT not in found


def test_a_reply_is_told_with_the_reason_of_its_end():
    """Whatever pieces it came in."""
    (message,) = captured(sse=b"".join(a_reply("I am done.")))[OUTPUT]

    assert message == {"role": "assistant", "parts": [{"type": "text", "content": "I am done."}], "finish_reason": "stop"}
    (message,) = captured(sse=b"".join([a_start(), *a_tool_call("bash", "toolu_01", '{"command": "ls"}'), an_end(stop_reason="tool_use")]))[
        OUTPUT
    ]
    assert message["finish_reason"] == "tool_call"
    assert message["parts"][0]["arguments"] == {"command": "ls"}


def test_a_reply_that_broke_off_is_not_told():
    """Nobody should take a part of it for what the model said."""
    assert OUTPUT not in captured(sse=a_start())


def test_a_text_that_does_not_fit_is_cut_and_says_so():
    """The newest message keeps as much as fits."""
    (whole,) = captured(asking("a" * 15_000))[INPUT]
    (cut,) = captured(asking("b" * 60_000))[INPUT]

    assert whole["parts"][0]["content"] == "a" * 15_000
    assert cut["parts"][0]["content"] == "b" * 4_096 + "… [55904 characters cut]"


def test_the_newest_messages_are_kept_and_the_others_counted():
    """Those before are in the spans of earlier calls."""
    found = captured(asking(*(f"{number} " + "x" * 900 for number in range(100))))[INPUT]

    left_out = 100 - (len(found) - 1)
    assert found[0] == {"role": "system", "parts": [{"type": "text", "content": f"[{left_out} messages left out]"}]}
    assert found[1]["parts"][0]["content"].startswith(f"{left_out} ")
    assert found[-1]["parts"][0]["content"].startswith("99 ")
    assert left_out < 90


def test_parts_beyond_a_bound_are_counted():
    """At the bound all are there, one more and the last says so."""
    block = {"type": "text", "text": "x"}

    (full,) = captured({"messages": [{"role": "user", "content": [block] * PARTS_MAX}]})[INPUT]
    (over,) = captured({"messages": [{"role": "user", "content": [block] * (PARTS_MAX + 1)}]})[INPUT]

    assert full["parts"] == [{"type": "text", "content": "x"}] * PARTS_MAX
    assert over["parts"][-1] == {"type": "text", "content": "[1 parts left out]"}


def test_a_large_tool_input_becomes_cut_text():
    """It stays JSON around it."""
    block = {"type": "tool_use", "id": "t", "name": "bash", "input": {"lines": ["y" * 50] * 2_000}}

    (message,) = captured({"messages": [{"role": "assistant", "content": [block]}]})[INPUT]

    assert message["parts"][0]["arguments"].endswith("characters cut]")


@pytest.mark.abuse("W01")
def test_secrets_are_taken_out_of_every_part():
    """System, text, tool input by key and value, tool output, the reply: wherever a model may see one."""
    secret = "correct horse battery"
    call = {
        "system": f"s {secret}",
        "messages": [
            {"role": "user", "content": f"u {secret}"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": f"r {secret}", "signature": ""}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "bash", "input": {secret: [{"a": secret}]}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": f"o {secret}"}]},
        ],
    }
    found = captured(call, b"".join(a_reply(secret)), secrets=(secret,))

    assert set(found) == {SYSTEM, INPUT, OUTPUT}
    assert "horse" not in json.dumps(found)
    assert json.dumps(found).count("[secret]") == 7


@given(texts=st.lists(st.text(max_size=40).map(lambda text: text * 400), min_size=1, max_size=12))
def test_any_text_gives_valid_json_within_the_bound(texts: list[str]):
    """Also what needs many bytes for a character, and what no encoder takes."""
    captured(asking(*texts, "\ud800" * 9_000))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("true", True), ("TRUE", True), ("span_only", True), ("false", False), ("", False), ("1", False), ("event_only", False)],
)
def test_only_a_clear_yes_is_one(value: str, wanted: bool):
    """Off by default, and whatever makes no sense is off."""
    assert is_wanted({SWITCH: value}) is wanted
    assert not is_wanted({})
