"""Recording model calls and answering from the recording, with the agent's own program and the scripted model server."""

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import pytest

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.cassette import Cassette, CassetteHeader, CassetteRecord, load_recording
from sandbox.contract.job import Assignment
from sandbox.gateway.caps import CAPS, Cap
from sandbox.gateway.cassette import Replay
from sandbox.gateway.policy import Policy
from sandbox.gateway.upstream import Upstream
from tests.fakes.gateway import CALL, HASTY, POLICY, Gateway, open_gateway
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.script import CUT, OVERLOADED, RATE_LIMITED, bash, single, submit
from tests.fakes.scripted_model import ScriptedModel
from tests.fakes.upstream import a_reply, fake_upstream, replying

REPOSITORY = Path(__file__).parents[3]
AGENT = AgentSpec(name="implement", model="claude-sonnet-5-5", system="the rules", prompt="the task")
STAGE: dict[str, Any] = {"stage": "implement", "round_": 2}
LABELS = {"x-andon-run": "0123456789", "x-andon-stage": "implement", "x-andon-round": "2", "x-andon-attempt": "1"}


async def run_agent(root: Path, gateway: Gateway) -> None:
    """Run the program of a sandbox against a gateway, as a process of its own."""
    for name in ("workspace", "task", "out", "tmp", "home/agent"):
        (root / name).mkdir(parents=True, exist_ok=True)
    environment = {"PATH": os.environ["PATH"]}
    gateway.session.assign(
        Assignment(
            job_id="0123456789-implement-2",
            stage="implement",
            round=2,
            attempt=1,
            kind="agent",
            agent=AGENT,
            tool_env=environment,
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            wall_s=60,
        )
    )
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from sandbox.inside.__main__ import main; main({str(root)!r})"
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", code, stdout=asyncio.subprocess.DEVNULL, env={})
    async with asyncio.timeout(60):
        assert await process.wait() == 0


def a_cassette(records: tuple[CassetteRecord, ...]) -> Cassette:
    cassette = Cassette(header=CassetteHeader(made_by="scripted"), records=records)
    return Cassette.load(cassette.dump())


async def test_the_agent_works_over_the_gateway_and_again_from_the_recording(tmp_path: Path):
    """The same turns at the same price, through trouble the first time, without a provider the second."""
    script = single(
        bash("echo one", thinking="let me see", fault=RATE_LIMITED),
        bash("echo two", fault=OVERLOADED),
        bash("echo three", fault=CUT),
        submit("done it"),
    )
    live, again = tmp_path / "live", tmp_path / "again"
    for root in (live, again):
        (root / "gw").mkdir(parents=True)

    async with (
        ScriptedModel(script) as model,
        open_gateway(
            live / "gw", Upstream.from_environment(model.environment()), policy=Policy.of(AGENT), headers=LABELS, record=True, **STAGE
        ) as recorded,
    ):
        await run_agent(live, recorded)
    records = load_recording(recorded.session.recording())
    replay = Replay(a_cassette(records), "implement", 2)
    async with open_gateway(again / "gw", replay, policy=Policy.of(AGENT), **STAGE) as replayed:
        await run_agent(again, replayed)

    assert recorded.session.submission is not None
    assert recorded.session.submission.summary == "done it"
    assert [record.key for record in records] == [("implement", 2, turn) for turn in (1, 2, 3, 4)]
    assert replayed.session.submission == recorded.session.submission
    assert replayed.session.failure is None
    assert replayed.session.divergences == 0
    assert replayed.session.cost_nano_usd == sum(record.cost_nano_usd for record in records)
    assert recorded.session.unsettled_calls >= 1  # the cut stream
    assert not model.violations


async def record_one(directory: Path, **fields: Any) -> tuple[CassetteRecord, ...]:
    """Record one call of stage spec, round 1."""
    directory.mkdir()
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(directory, upstream.base_url, record=True) as gateway:
        await gateway.ask(**fields)
        return load_recording(gateway.session.recording())


async def test_a_replay_pays_from_the_same_ledger(tmp_path: Path):
    """Reserved at its worst case, settled at what it once cost; without the money it is refused."""
    replay = Replay(a_cassette(await record_one(tmp_path / "live")), "spec", 1)
    poor = MemoryLedger(budget_nano_usd=1_000_000)

    async with open_gateway(tmp_path, replay) as gateway:
        message = await gateway.ask()
        assert message.usage.output_tokens == 50
        assert [(cost, unsettled) for _, cost, _, unsettled in gateway.ledger.settled] == [(700_000, False)]
        assert gateway.calls[0].is_replay
    async with open_gateway(tmp_path, replay, ledger=poor) as gateway:
        with pytest.raises(anthropic.RateLimitError):
            await gateway.ask()


@pytest.mark.parametrize("is_replay", [True, False])
async def test_a_replay_is_not_slowed_down(tmp_path: Path, is_replay: bool):
    """A recording is played as fast as the host can, until the attempt's own cap; a live call beyond the minute's is refused."""
    records = await record_one(tmp_path / "live")
    tuning = replace(HASTY, caps={**CAPS, "/v1/messages": Cap(burst=2, per_minute=1)})
    policy = POLICY.model_copy(update={"calls_max": 5})

    async with fake_upstream(replying(a_reply())) as upstream:
        model = Replay(a_cassette(records), "spec", 1) if is_replay else upstream.base_url
        async with open_gateway(tmp_path, model, policy=policy, tuning=tuning) as gateway:
            ends = []
            for _ in range(6):
                try:
                    ends.append((await gateway.ask()).stop_reason)
                except anthropic.RateLimitError:
                    ends.append(None)

    assert ends.count("end_turn") == (5 if is_replay else 2)


async def test_a_replay_is_judged_like_a_live_call(tmp_path: Path):
    """The same policy, before the cassette is asked."""
    replay = Replay(a_cassette(await record_one(tmp_path / "live")), "spec", 1)

    async with open_gateway(tmp_path, replay) as gateway:
        with pytest.raises(anthropic.BadRequestError, match="metadata"):
            await gateway.ask(metadata={"user_id": "x"})
        assert gateway.session.failure is None


async def test_a_turn_may_be_asked_for_again(tmp_path: Path):
    """A client that lost its reply gets the same one."""
    replay = Replay(a_cassette(await record_one(tmp_path / "live")), "spec", 1)

    async with open_gateway(tmp_path, replay) as gateway:
        assert (await gateway.ask()).content == (await gateway.ask()).content


@pytest.mark.abuse("W18")
@pytest.mark.parametrize(
    "changed",
    [
        {"system": "other rules"},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ]
        },
    ],
    ids=["system", "tools", "turn"],
)
async def test_another_conversation_means_a_stale_cassette(tmp_path: Path, changed: dict[str, Any]):
    """400 to the agent, a failure that says what to do, and nothing spent."""
    replay = Replay(a_cassette(await record_one(tmp_path / "live")), "spec", 1)

    async with open_gateway(tmp_path, replay) as gateway:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await gateway.ask(**changed)

        assert caught.value.response.headers["x-should-retry"] == "false"
        assert gateway.session.failure is not None
        assert gateway.session.failure.kind == "stale_cassette"
        assert "the cassette is stale at stage spec, round 1, turn" in gateway.session.failure.message
        assert gateway.session.failure.message.endswith("make cassette")
        assert gateway.ledger.spent_nano_usd == 0


async def test_markers_and_the_prompt_may_differ(tmp_path: Path):
    """Cache markers move, and the first message holds what is volatile: neither makes a cassette stale."""
    replay = Replay(a_cassette(await record_one(tmp_path / "live", system=[{"type": "text", "text": "s"}])), "spec", 1)
    marked = [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]

    async with open_gateway(tmp_path, replay) as gateway:
        await gateway.ask(system=marked, messages=[{"role": "user", "content": "another day"}])

        assert gateway.session.failure is None
        assert gateway.session.divergences == 0


@pytest.mark.parametrize(("now", "divergences"), [("2 passed in 0.07s", 0), ("1 passed, 1 failed in 0.02s", 1)])
async def test_other_tool_output_is_counted_not_refused(tmp_path: Path, now: str, divergences: int):
    """Durations do not count; a turn that is asked for twice counts once."""

    def a_turn(output: str) -> dict[str, Any]:
        call = {"type": "tool_use", "id": "t1", "name": "bash", "input": {}}
        return {
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": [call]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": output}]},
            ]
        }

    replay = Replay(a_cassette(await record_one(tmp_path / "live", **a_turn("2 passed in 0.02s"))), "spec", 1)
    async with open_gateway(tmp_path, replay) as gateway:
        await gateway.ask(**a_turn(now))
        await gateway.ask(**a_turn(now))

        assert gateway.session.divergences == divergences


@pytest.mark.abuse("W18")
async def test_a_stage_the_cassette_does_not_know_ends_it(tmp_path: Path):
    """No record for the stage and round: another failure than staleness (DECISIONS G11)."""
    records = await record_one(tmp_path / "live")

    async with open_gateway(tmp_path, Replay(a_cassette(records), "spec", 2)) as gateway:
        with pytest.raises(anthropic.BadRequestError):
            await gateway.ask()

        assert gateway.session.failure is not None
        assert gateway.session.failure.kind == "no_record"


async def test_only_whole_replies_are_recorded(tmp_path: Path):
    """A reply that broke off is made again, and only then kept; errors are not."""
    events = a_reply()[:-2]
    async with fake_upstream(replying(events)) as upstream, open_gateway(tmp_path, upstream.base_url, record=True) as gateway:
        with pytest.raises(anthropic.APIStatusError):
            await gateway.ask()

        assert gateway.session.recording() == b""


async def test_nothing_is_recorded_unasked(tmp_path: Path):
    """Prompts and replies stay nowhere by default."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        await gateway.ask()

        assert gateway.session.recording() == b""


async def test_what_is_replayed_is_what_was_streamed(tmp_path: Path):
    """Byte for byte."""
    records = await record_one(tmp_path / "live")
    body = json.dumps({**CALL, "stream": True}).encode()

    async with open_gateway(tmp_path, Replay(a_cassette(records), "spec", 1)) as gateway:
        reply = await gateway.post("/v1/messages", body)

    chunks = reply.split(b"\r\n\r\n", 1)[1].split(b"\r\n")[1::2]
    assert b"".join(chunks) == b"".join(a_reply()) == records[0].sse.encode()
