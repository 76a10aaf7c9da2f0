"""The append-only conversation and its cache markers."""

import copy
from typing import Any

import pytest

from sandbox.inside.agent.transcript import Block, Message, Transcript, result_block, text_block
from tests.fakes.prompt_cache import PromptCache


def a_transcript(task_text: str = "the bundle", **changed: Any) -> Transcript:
    values: dict[str, Any] = {"system": "the rules", "prompt": "the task", "cache_ttl": "5m", **changed}
    return Transcript(values["system"], task_text, values["prompt"], values["cache_ttl"])


def add_turn(transcript: Transcript, number: int, results: int = 1) -> None:
    calls: list[Block] = [{"type": "tool_use", "id": f"t{number}.{at}", "name": "bash", "input": {}} for at in range(results)]
    transcript.add_assistant(calls)
    transcript.add_user([result_block(call["id"], f"{number} " * 200, is_error=False) for call in calls])


def marked(messages: list[Message]) -> list[tuple[int, int]]:
    return [
        (at, block_at)
        for at, message in enumerate(messages)
        for block_at, block in enumerate(message["content"])
        if "cache_control" in block
    ]


def test_the_first_request_marks_system_task_text_and_prompt() -> None:
    """The task text has its own marker, so that a retry with another prompt reads it from the cache."""
    system, messages = a_transcript().wire()

    assert system == [{"type": "text", "text": "the rules", "cache_control": {"type": "ephemeral"}}]
    assert marked(messages) == [(0, 0), (0, 1)]


def test_later_requests_mark_the_last_two_user_turns() -> None:
    """Four markers in all, however long the conversation is."""
    transcript = a_transcript()
    for number in range(5):
        add_turn(transcript, number, results=3)

    system, messages = transcript.wire()

    assert marked(messages) == [(0, 0), (8, 2), (10, 2)]
    assert "cache_control" in system[0]


def test_without_task_text_the_prompt_is_the_first_block() -> None:
    """An empty block would be refused."""
    _, messages = a_transcript(task_text="").wire()

    assert [block["text"] for block in messages[0]["content"]] == ["the task"]


def test_a_longer_ttl_is_spelled_out_everywhere() -> None:
    """The API wants longer ones first; ours are all alike."""
    system, messages = a_transcript(cache_ttl="1h").wire()

    assert {block["cache_control"]["ttl"] for block in [*system, *messages[0]["content"]]} == {"1h"}


def test_what_was_said_never_changes() -> None:
    """Markers move on copies: each request, markers aside, is the last one and more."""
    transcript = a_transcript()
    before: list[Message] = []
    for number in range(4):
        _, messages = transcript.wire()
        plain = copy.deepcopy(messages)
        for message in plain:
            for block in message["content"]:
                block.pop("cache_control", None)
        assert plain[: len(before)] == before
        before = plain
        add_turn(transcript, number)


def test_an_empty_reply_is_left_out() -> None:
    """The API refuses an empty assistant turn; two user turns in a row are fine."""
    transcript = a_transcript()
    transcript.add_assistant([])
    transcript.add_user([text_block("go on")])

    assert [message["role"] for message in transcript.wire()[1]] == ["user", "user"]


@pytest.mark.parametrize("results", [1, 12, 30])
def test_every_call_after_the_first_reads_nearly_everything_from_the_cache(results: int) -> None:
    """However many blocks a turn adds: the look-back of 20 blocks starts at the turn before."""
    transcript, cache = a_transcript("x" * 8_000), PromptCache()
    last_total = 0
    for number in range(10):
        system, messages = transcript.wire()
        usage = cache.charge({"model": "m", "system": system, "messages": messages})
        assert usage.uncached == 0
        if number:
            assert usage.read >= last_total
        last_total = usage.read + usage.written
        add_turn(transcript, number, results)
