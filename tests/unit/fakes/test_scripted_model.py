"""The scripted model is as strict as a provider, or tests against it would prove nothing."""

from typing import Any

import anthropic
import pytest

from tests.fakes.prompt_cache import PromptCache
from tests.fakes.script import RATE_LIMITED, Turn, bash, conversation, single, submit
from tests.fakes.scripted_model import ScriptedModel
from tests.fakes.scripts.rate_limit import HAPPY, REWORK_TWICE, STALLS_ONCE, VARIANTS

FIRST: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "for .andon/features/my-feature/spec.yaml"}]}


def a_request(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [FIRST, *messages], **fields}


async def ask(server: ScriptedModel, *messages: dict[str, Any], key: str | None = None, headers: dict[str, str] | None = None) -> Any:
    async with (
        anthropic.AsyncAnthropic(api_key=key or server.api_key, base_url=server.url, max_retries=0, open_telemetry=False) as client,
        client.messages.stream(**a_request(*messages), extra_headers=headers or {}) as stream,
    ):
        return await stream.get_final_message()


async def test_a_turn_comes_as_the_sdk_expects_it() -> None:
    """Blocks in order, arguments whole, the feature's slug filled in, usage of both events merged."""
    async with ScriptedModel(single(bash("ls .andon/features/{feature}", thinking="t", text="x", output_tokens=7))) as server:
        message = await ask(server)

    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].input == {"command": "ls .andon/features/my-feature"}
    assert (message.stop_reason, message.usage.output_tokens) == ("tool_use", 7)
    assert server.calls()[0].usage["output_tokens"] == 7


async def test_stage_round_and_attempt_choose_the_conversation() -> None:
    """By the headers the gateway adds."""
    script = single(submit("any")).with_first(
        "more", conversation("implement", submit("second"), rounds={2}), conversation("spec", submit("spec"))
    )
    said = []
    async with ScriptedModel(script) as server:
        for stage, round_ in (("implement", 1), ("implement", 2), ("spec", 1), ("implementation", 2)):
            message = await ask(server, headers={"x-andon-stage": stage, "x-andon-round": str(round_)})
            said.append(message.content[0].input["summary"])

    assert said == ["any", "second", "spec", "second"]


@pytest.mark.parametrize(
    "messages",
    [
        [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "bash", "input": {}}]},
            {"role": "user", "content": "go on"},
        ],
        [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]}],
        [{"role": "assistant", "content": []}, {"role": "user", "content": "go on"}],
        [{"role": "user", "content": [{"type": "text", "text": " "}]}],
    ],
)
async def test_a_conversation_the_api_refuses_is_refused(messages: list[dict[str, Any]]) -> None:
    """A call without its result, a result without its call, an empty turn, an empty text."""
    async with ScriptedModel(single(Turn(text="x"), endless=True)) as server:
        with pytest.raises(anthropic.BadRequestError):
            await ask(server, *messages)

    assert server.violations


async def test_a_conversation_that_was_changed_is_refused() -> None:
    """Preserved thinking would be bound to another conversation."""
    turns = [{"role": "assistant", "content": "one"}, {"role": "user", "content": "go on"}]
    async with ScriptedModel(single(Turn(text="x"), endless=True)) as server:
        await ask(server, *turns)
        with pytest.raises(anthropic.BadRequestError, match="changed, not continued"):
            await ask(server, {"role": "assistant", "content": "another"}, *turns[1:], *turns)


async def test_a_wrong_key_and_an_unknown_stage_are_refused() -> None:
    """As plain errors, not as a hang."""
    async with ScriptedModel(HAPPY) as server:
        with pytest.raises(anthropic.AuthenticationError):
            await ask(server, key="wrong", headers={"x-andon-stage": "spec"})
        with pytest.raises(anthropic.BadRequestError, match="no turn 0 of nowhere"):
            await ask(server, headers={"x-andon-stage": "nowhere"})


async def test_a_fault_is_due_once_for_each_turn() -> None:
    """And carries its retry-after."""
    async with ScriptedModel(single(Turn(text="x", fault=RATE_LIMITED))) as server:
        with pytest.raises(anthropic.RateLimitError) as limited:
            await ask(server)
        message = await ask(server)

    assert limited.value.response.headers["retry-after"] == "0.05"
    assert message.content[0].text == "x"


def test_the_cache_looks_back_twenty_blocks_and_no_further() -> None:
    """The trap of a single marker: a turn of more blocks never connects."""
    cache = PromptCache()

    def charge(blocks: int) -> int:
        content: list[dict[str, Any]] = [{"type": "text", "text": f"{number} " * 50} for number in range(blocks)]
        content[-1] = {**content[-1], "cache_control": {"type": "ephemeral"}}
        return cache.charge({"model": "m", "messages": [{"role": "user", "content": content}]}).read

    assert charge(1) == 0
    assert charge(21) > 0
    assert charge(42) == 0


def test_more_than_four_markers_are_refused() -> None:
    """As the API does."""
    block = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}

    with pytest.raises(ValueError, match="5 blocks"):
        PromptCache().charge({"model": "m", "messages": [{"role": "user", "content": [block] * 5}]})


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_every_variant_tells_every_stage_up_to_its_point(name: str) -> None:
    """The first round of each stage is there, and every script is named as scripted."""
    assert VARIANTS[name].name.startswith("scripted")
    assert all(VARIANTS[name].conversation(stage, 1, 1) for stage in ("spec", "interface", "implement", "test", "docs"))


def test_rounds_and_attempts_of_the_variants() -> None:
    """Rework ends in the third round; the second attempt of a stalled stage is the usual one."""
    assert REWORK_TWICE.conversation("implement", 4, 1) is None
    assert STALLS_ONCE.conversation("implement", 1, 2) == HAPPY.conversation("implement", 1, 1)
