"""What a foreign agent asks of the gateway besides ours: betas, a query, replies that are not streamed; each judged, metered, recorded."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract.cassette import Cassette, CassetteHeader, load_recording
from sandbox.gateway.cassette import Replay
from sandbox.gateway.driver_policy import driver_policy
from sandbox.gateway.policy import Policy
from tests.fakes.gateway import KEY, MODEL, Gateway, open_gateway
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.upstream import Behaviour, Request, a_reply, fake_upstream, hang_up, replying, send_head, then

BETAS = "claude-code-20250219,interleaved-thinking-2025-05-14"
CLAUDE = Policy(model=MODEL, output_tokens_max=1_000, driver=driver_policy("claude-code"))
COMMAND = Policy(model=MODEL, output_tokens_max=1_000, driver=driver_policy("command"))
MESSAGE: dict[str, Any] = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "content": [{"type": "text", "text": "hello"}, {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls"}}],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 100, "output_tokens": 50},
}


def whole(body: bytes) -> Behaviour:
    """Return a behaviour that answers with this body, as one piece of JSON."""

    async def behaviour(_: Request, writer: asyncio.StreamWriter) -> None:
        await send_head(writer, kind="application/json")
        writer.write(body)
        await writer.drain()

    return behaviour


REPLIES = whole(json.dumps(MESSAGE).encode())


async def ask(gateway: Gateway, query: str = "", betas: str = "", **fields: Any) -> tuple[int, dict[str, str], Any]:
    """Make one call as such a program does; return status, headers and JSON body (None: a stream)."""
    body = json.dumps({"model": MODEL, "max_tokens": 1_000, "messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    head = f"POST /v1/messages{query} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    raw = await gateway.raw((head + (f"anthropic-beta: {betas}\r\n" if betas else "") + "\r\n").encode() + body)
    top, _, rest = raw.partition(b"\r\n\r\n")
    line, *lines = top.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (item.partition(":") for item in lines)}
    return int(line.split()[1]), headers, json.loads(rest) if headers["content-type"] == "application/json" else None


async def test_a_named_beta_and_query_go_as_far_as_they_may(tmp_path: Path):
    """The betas reach the provider, the query does not; `metadata` is forwarded as it was judged."""
    async with (
        fake_upstream(replying(a_reply())) as upstream,
        open_gateway(tmp_path, upstream.base_url, policy=CLAUDE) as gateway,
    ):
        status, _, _ = await ask(gateway, "?beta=true", BETAS, stream=True, metadata={"user_id": "x"})

    assert status == 200
    assert upstream.requests[0].line == "POST /v1/messages HTTP/1.1"
    assert upstream.requests[0].headers["anthropic-beta"] == BETAS
    assert json.loads(upstream.requests[0].body)["metadata"] == {"user_id": "x"}


async def test_another_beta_or_query_is_refused_by_name(tmp_path: Path):
    """One in a list of allowed ones is enough; and our own agent has none at all."""
    async with (
        fake_upstream(replying(a_reply())) as upstream,
        open_gateway(tmp_path, upstream.base_url, policy=CLAUDE) as gateway,
    ):
        status, _, reply = await ask(gateway, "?beta=true", f"{BETAS}, files-api-2025-04-14", stream=True)
        assert (status, "files-api-2025-04-14" in reply["error"]["message"]) == (400, True)
        assert (await ask(gateway, "?beta=false", stream=True))[0] == 404

    (tmp_path / "ours").mkdir()
    async with open_gateway(tmp_path / "ours", upstream.base_url) as gateway:
        assert (await ask(gateway, "?beta=true", stream=True))[0] == 404
        assert (await ask(gateway, "", BETAS, stream=True))[0] == 400
    assert upstream.requests == []


async def test_a_whole_reply_is_charged_recorded_and_replayed(tmp_path: Path):
    """Every field of it, at the provider's figures; the replay costs what the call once did."""
    (tmp_path / "again").mkdir()
    async with (
        fake_upstream(REPLIES) as upstream,
        open_gateway(tmp_path, upstream.base_url, policy=COMMAND, record=True) as gateway,
    ):
        status, headers, reply = await ask(gateway)
        records = load_recording(gateway.session.recording())

    assert (status, headers["content-length"], reply) == (200, str(len(json.dumps(reply, ensure_ascii=False))), MESSAGE)
    assert upstream.requests[0].headers["accept"] == "application/json"
    assert [(cost, unsettled) for _, cost, _, unsettled in gateway.ledger.settled] == [(700_000, False)]
    assert (gateway.session.view.tool, gateway.calls[0].stop_reason) == ("bash", "tool_use")
    replay = Replay(Cassette(header=CassetteHeader(made_by="scripted"), records=records), "spec", 1)
    async with open_gateway(tmp_path / "again", replay, policy=COMMAND) as again:
        assert (await ask(again))[2] == MESSAGE
        assert again.session.cost_nano_usd == 700_000


async def test_a_whole_reply_that_makes_no_sense_is_charged_in_full_and_tried_again(tmp_path: Path):
    """Broken JSON, no message, or hung up in the middle: the client sees only the good one."""
    bad = (whole(b'{"type": "mess'), whole(b"[]"), hang_up)
    async with (
        fake_upstream(then(*bad, REPLIES)) as upstream,
        open_gateway(tmp_path, upstream.base_url, policy=COMMAND) as gateway,
    ):
        assert (await ask(gateway))[2] == MESSAGE
        assert len(upstream.requests) == 4
        assert [unsettled for _, _, _, unsettled in gateway.ledger.settled] == [True, True, True, False]


async def test_a_stream_in_answer_to_no_stream_is_not_taken(tmp_path: Path):
    """It is another thing than what was asked for: charged in full, said as an error."""
    async with (
        fake_upstream(replying(a_reply())) as upstream,
        open_gateway(tmp_path, upstream.base_url, policy=COMMAND) as gateway,
    ):
        status, _, reply = await ask(gateway)

    assert (status, reply["error"]["type"]) == (502, "api_error")
    assert gateway.session.unsettled_calls == 1


@pytest.mark.abuse("W01")
async def test_a_whole_reply_that_holds_our_key_does_not_pass(tmp_path: Path):
    """Wherever in it the key stands; the control is the same reply without it."""
    leaky = MESSAGE | {"content": [{"type": "text", "text": f"the key is {KEY}"}]}
    async with (
        fake_upstream(then(whole(json.dumps(leaky).encode()), REPLIES)) as upstream,
        open_gateway(tmp_path, upstream.base_url, policy=COMMAND, record=True) as gateway,
    ):
        status, _, reply = await ask(gateway)

        assert status == 502
        assert KEY not in json.dumps(reply)
        assert KEY.encode() not in gateway.session.recording()
        assert (await ask(gateway))[0] == 200


@pytest.mark.abuse("W05")
async def test_a_whole_reply_is_paid_for_before_it_is_asked(tmp_path: Path):
    """Without the money nothing goes out, and the client is told in the one shape all clients obey."""
    async with (
        fake_upstream(REPLIES) as upstream,
        open_gateway(tmp_path, upstream.base_url, policy=COMMAND, ledger=MemoryLedger(budget_nano_usd=1_000_000)) as gateway,
    ):
        status, headers, reply = await ask(gateway)

    assert (status, headers["x-should-retry"], reply["error"]["type"]) == (429, "false", "billing_error")
    assert upstream.requests == []


async def test_what_a_policy_file_calls_volatile_is_not_compared(tmp_path: Path):
    """Another count in the first line of the system prompt replays; another system prompt does not."""
    (tmp_path / "again").mkdir()
    system = [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.329.d0d;"}, {"type": "text", "text": "the rules"}]
    async with (
        fake_upstream(replying(a_reply())) as upstream,
        open_gateway(tmp_path, upstream.base_url, policy=CLAUDE, record=True) as gateway,
    ):
        await ask(gateway, stream=True, system=system)
        records = load_recording(gateway.session.recording())

    replay = Replay(Cassette(header=CassetteHeader(made_by="scripted"), records=records), "spec", 1)
    system[0] = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330.aaa;"}
    async with open_gateway(tmp_path / "again", replay, policy=CLAUDE) as again:
        assert (await ask(again, stream=True, system=system))[0] == 200
        assert (await ask(again, stream=True, system=[*system, {"type": "text", "text": "more"}]))[0] == 400
        assert again.session.failure is not None
        assert again.session.failure.kind == "stale_cassette"
