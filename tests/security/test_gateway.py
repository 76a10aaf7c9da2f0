"""The W rows but the registries': what a sandbox tries at the gateway. Each test shows first that a gateway without the wall gives in.

That is the control: `tests/fakes/naive_gateway`, a gateway as one writes it in an hour. More cases of each row, without it:
`tests/integration/gateway`, `tests/unit/gateway`.
"""

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract.cassette import Cassette, CassetteHeader, load_recording
from sandbox.gateway.cassette import Replay
from sandbox.gateway.policy import Policy
from tests.fakes.gateway import CALL, KEY, MODEL, from_another_process, open_gateway, wait_until
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.naive_gateway import naive_gateway, send
from tests.fakes.upstream import (
    FakeUpstream,
    Request,
    a_reply,
    a_start,
    an_end,
    event,
    fake_upstream,
    refusing,
    replying,
    send_error,
    some_text,
)

OUTPUT_NANO_USD = 10_000
CHEAP_NANO_USD = 10**9
"""What a test's budget is, where money is not what it is about: one dollar."""


def a_post(body: bytes, target: str = "/v1/messages", **headers: str) -> bytes:
    """Return a request as bytes."""
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"POST {target} HTTP/1.1\r\nhost: g\r\nconnection: close\r\n{extra}content-length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


def a_body(**fields: Any) -> bytes:
    """Return the body of an allowed call, with changes."""
    return json.dumps({**CALL, "stream": True, **fields}).encode()


def status_of(reply: bytes) -> int:
    """Return a reply's status, 0 if there is none."""
    return int(reply.split(b" ")[1]) if reply else 0


def seen_by(upstream: FakeUpstream) -> int:
    """Return how many requests arrived, and forget them."""
    count = len(upstream.requests)
    upstream.requests.clear()
    return count


@pytest.mark.abuse("W01")
async def test_the_key_is_not_in_what_comes_back(tmp_path: Path):
    """The provider's error quotes the key it was sent. The control passes the error on; we make it anew."""

    async def quoting(request: Request, writer: asyncio.StreamWriter) -> None:
        await send_error(writer, 401, "authentication_error", f"invalid key {request.headers['authorization']}", x_request_key=KEY)

    async with fake_upstream(quoting) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        async with naive_gateway(tmp_path, upstream.base_url, KEY) as control:
            assert KEY.encode() in await send(control.socket, a_post(a_body()))
        reply = await gateway.raw(a_post(a_body()))

        assert seen_by(upstream) == 2
        assert status_of(reply) == 401
        assert KEY.encode() not in reply
        assert KEY not in str(gateway.session.failure)


@pytest.mark.abuse("W01")
async def test_the_key_is_not_in_this_process_of_the_attackers(tmp_path: Path):
    """A second program looks for it in its environment and on every route. The control: a program that is given the key has it."""
    look = (
        b"GET /debug HTTP/1.1\r\nhost: g\r\n\r\nGET /healthz HTTP/1.1\r\nhost: g\r\n\r\nGET /andon/assignment HTTP/1.1\r\nhost: g\r\n\r\n"
    )
    process = await asyncio.create_subprocess_exec(
        "cat", "/proc/self/environ", env={"ANTHROPIC_API_KEY": KEY}, stdout=asyncio.subprocess.PIPE
    )
    assert KEY.encode() in (await process.communicate())[0]

    async with open_gateway(tmp_path, "http://127.0.0.1:9") as gateway:
        said = await from_another_process(gateway.socket, look + b"GET / HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n")

    assert said.count(b"HTTP/1.1 ") == 4
    assert KEY.encode() not in said


@pytest.mark.abuse("W02")
@pytest.mark.parametrize("header", ["authorization", "x_api_key", "anthropic_base_url", "x_forwarded_host", "anthropic_workspace_id"])
async def test_headers_of_the_client_choose_nothing(tmp_path: Path, header: str):
    """The control sends the attacker's own credentials and hosts along; of ours the provider sees only our own."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        async with naive_gateway(tmp_path, upstream.base_url, KEY) as control:
            await send(control.socket, a_post(a_body(), **{header: "sk-attacker"}))
        await gateway.raw(a_post(a_body(), **{header: "sk-attacker"}))

        theirs, ours = upstream.requests
    assert theirs.headers[header.replace("_", "-")] == "sk-attacker"
    assert ours.headers["authorization"] == f"Bearer {KEY}"
    assert "sk-attacker" not in ours.headers.values()


@pytest.mark.abuse("W03")
@pytest.mark.parametrize("target", ["//{evil}/", "http://{evil}/v1/messages", "//{evil}/v1/messages", "//x@{evil}/"])
async def test_a_path_does_not_choose_the_host(tmp_path: Path, target: str):
    """The control joins it to its upstream and hands our key to another server; we answer 404 and connect to nobody."""
    async with (
        fake_upstream(replying(a_reply())) as evil,
        fake_upstream(replying(a_reply())) as upstream,
        open_gateway(tmp_path, upstream.base_url) as gateway,
    ):
        request = a_post(a_body(), target.format(evil=evil.base_url.removeprefix("http://")))
        async with naive_gateway(tmp_path, upstream.base_url, KEY) as control:
            await send(control.socket, request)
        assert [one.headers["authorization"] for one in evil.requests] == [f"Bearer {KEY}"]
        evil.requests.clear()
        reply = await gateway.raw(request)

        assert status_of(reply) == 404
        assert (evil.requests, upstream.requests) == ([], [])


_EGRESS: dict[str, Any] = {
    "tools": [{"type": "web_fetch_20260209", "name": "web_fetch"}],
    "mcp_servers": [{"type": "url", "url": "https://evil.example/sse", "name": "x"}],
    "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://evil.example/?d=secret"}}]}],
    "container": "container_011",
    "fallbacks": [{"model": "claude-opus-5-5"}],
    "thread": {"id": "thread_01"},
}


@pytest.mark.abuse("W04")
@pytest.mark.parametrize("field", list(_EGRESS))
async def test_a_request_that_makes_the_provider_reach_out_is_refused_by_name(tmp_path: Path, field: str):
    """The control forwards it, and the provider would fetch, run or remember for the sandbox; we name the field."""
    body = a_body(**{field: _EGRESS[field]})
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        async with naive_gateway(tmp_path, upstream.base_url, KEY) as control:
            await send(control.socket, a_post(body))
        assert seen_by(upstream) == 1
        reply = await gateway.raw(a_post(body))

        assert (status_of(reply), seen_by(upstream)) == (400, 0)
        assert field.encode() in reply


@pytest.mark.abuse("W04", "W09")
@pytest.mark.parametrize(
    "target", ["/v1/files", "/v1/agents", "/v1/messages/batches", "/v1/deployments", "/v1/complete", "/v1/organizations/x"]
)
async def test_no_other_route_of_the_provider_exists(tmp_path: Path, target: str):
    """Files, batches, deployments: the control forwards them with our key, where no budget counts; we have no such route."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        async with naive_gateway(tmp_path, upstream.base_url, KEY) as control:
            await send(control.socket, a_post(b"{}", target))
        assert seen_by(upstream) == 1

        assert (status_of(await gateway.raw(a_post(b"{}", target))), seen_by(upstream)) == (404, 0)


@pytest.mark.abuse("W05")
async def test_calls_at_once_do_not_pass_the_budget(tmp_path: Path):
    """Twenty calls of $0.25 with $1. The control looks at what was spent before each: all go out. Over two hosts: `test_fleet_money`."""
    policy = Policy(model=MODEL, output_tokens_max=29_000)
    reply = [a_start(), *some_text(), an_end(output_tokens=25_000)]
    request = a_post(a_body(max_tokens=29_000))
    async with (
        fake_upstream(replying(reply, pause_s=0.01)) as upstream,
        open_gateway(tmp_path, upstream.base_url, policy=policy, ledger=MemoryLedger(budget_nano_usd=CHEAP_NANO_USD)) as gateway,
    ):
        async with naive_gateway(tmp_path, upstream.base_url, KEY, budget_usd=1.0) as control:
            await asyncio.gather(*(send(control.socket, request) for _ in range(20)))
        assert (seen_by(upstream), round(control.spent_usd, 2)) == (20, 5.0)
        replies = await asyncio.gather(*(gateway.raw(request) for _ in range(20)))

        assert seen_by(upstream) == 3
        assert sorted(status_of(reply) for reply in replies) == [200] * 3 + [429] * 17
        assert gateway.ledger.most_nano_usd <= CHEAP_NANO_USD


@pytest.mark.abuse("W06")
async def test_a_stream_that_is_abandoned_is_paid(tmp_path: Path):
    """The client leaves after the first words of 4,000 tokens. The control counts one; we read to the end and count all."""
    reply = [a_start(), *some_text("word " * 40), an_end(output_tokens=4_000)]

    async def leave_early(socket: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(str(socket))
        writer.write(a_post(a_body()))
        await reader.readuntil(b"text_delta")
        writer.close()

    async with (
        fake_upstream(replying(reply, pause_s=0.01)) as upstream,
        open_gateway(tmp_path, upstream.base_url) as gateway,
        naive_gateway(tmp_path, upstream.base_url, KEY) as control,
    ):
        await leave_early(control.socket)
        await wait_until(lambda: control.spent_usd > 0, "the control has counted")
        await leave_early(gateway.socket)
        await wait_until(lambda: bool(gateway.ledger.settled), "the call is settled")

        assert control.spent_usd == pytest.approx(1e-5)
        assert gateway.ledger.settled[0][1] == 4_000 * OUTPUT_NANO_USD + 100 * 2_000


@pytest.mark.abuse("W07")
@pytest.mark.parametrize("figure", ["NaN", "-5000000", '"0"'])
async def test_a_figure_that_is_no_count_costs_the_whole_reservation(tmp_path: Path, figure: str):
    """A forged usage, by a provider or on its way. The control has spent its budget to the cent and never notices; ours is charged."""
    forged = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": "FIGURE"}).replace(
        b'"FIGURE"', figure.encode()
    )
    reply = [a_start(), *some_text(), forged, event("message_stop")]
    async with fake_upstream(replying(reply)) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        async with naive_gateway(tmp_path, upstream.base_url, KEY, budget_usd=0.01) as control:
            control.spent_usd = 0.01
            for _ in range(3):
                await send(control.socket, a_post(a_body()))
        assert seen_by(upstream) == 3
        await gateway.raw(a_post(a_body()))

        [(_, cost, usage, unsettled)] = gateway.ledger.settled
    assert unsettled
    assert cost > 1_000 * OUTPUT_NANO_USD
    assert usage.output_tokens >= 0


@pytest.mark.abuse("W07")
async def test_a_submission_says_nothing_about_money(tmp_path: Path):
    """The control: a model that takes any field. Ours has no place for usage, and counts what the provider said."""
    claim = {"status": "done", "usage": {"output_tokens": -5_000_000}, "cost": float("nan")}
    assert json.loads(json.dumps(claim))["usage"]["output_tokens"] < 0
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        await gateway.ask()
        replies = [await gateway.post("/andon/submit", json.dumps(part).encode()) for part in (claim, {**claim, "cost": 0})]

        assert [status_of(reply) for reply in replies] == [400, 400]
        assert (gateway.session.submission, gateway.session.cost_nano_usd) == (None, 700_000)


_DEARER: dict[str, bytes] = {
    "another model": a_body(model="claude-opus-5-5"),
    "the model twice": a_body().replace(b'{"model":', b'{"model": "claude-opus-5-5", "model":', 1),
    "the model twice, ours last": a_body(model="claude-opus-5-5").replace(b'"stream"', b'"model": "%s", "stream"' % MODEL.encode()),
    "speed": a_body(speed="fast"),
    "service_tier": a_body(service_tier="priority"),
    "more output": a_body(max_tokens=1_001),
    "inference_geo": a_body(inference_geo="us"),
}


@pytest.mark.abuse("W08")
@pytest.mark.parametrize("how", list(_DEARER))
async def test_a_dearer_call_is_refused(tmp_path: Path, how: str):
    """Another model, a key that two parsers read differently, a dearer level. The control forwards each as it is."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        async with naive_gateway(tmp_path, upstream.base_url, KEY) as control:
            await send(control.socket, a_post(_DEARER[how]))
        assert seen_by(upstream) == 1

        assert (status_of(await gateway.raw(a_post(_DEARER[how]))), seen_by(upstream)) == (400, 0)


@pytest.mark.abuse("W10")
async def test_a_storm_of_tiny_calls_ends(tmp_path: Path):
    """Three hundred calls in a moment. The control makes them all; ours has a cap for the minute and one for the attempt."""
    policy = Policy(model=MODEL, output_tokens_max=1, calls_max=10_000)
    request = a_post(a_body(max_tokens=1))
    async with fake_upstream(refusing(400)) as upstream, open_gateway(tmp_path, upstream.base_url, policy=policy) as gateway:
        async with naive_gateway(tmp_path, upstream.base_url, KEY) as control:
            for _ in range(30):
                await asyncio.gather(*(send(control.socket, request) for _ in range(10)))
        assert seen_by(upstream) == 300
        began = time.monotonic()
        replies = [reply for _ in range(30) for reply in await asyncio.gather(*(gateway.raw(request) for _ in range(10)))]
        took_s = time.monotonic() - began

        passed = seen_by(upstream)
        assert 120 <= passed <= 120 + 2 * took_s + 1
        assert sum(status_of(reply) == 429 for reply in replies) == 300 - passed == gateway.session.dropped["requests"]
        assert b"retry-after: 1" in replies[-1]


@pytest.mark.abuse("W10")
async def test_a_storm_of_another_process_does_not_use_up_the_agents_calls(tmp_path: Path):
    """The tools' process is refused before it is counted. The control: the agent itself is counted, and out of calls."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        await gateway.ask()
        one = b"GET /andon/assignment HTTP/1.1\r\nhost: g\r\n\r\n"
        storm = one * 299 + one.replace(b"host: g", b"host: g\r\nconnection: close")
        refused = await from_another_process(gateway.socket, storm)
        message = await gateway.ask()

        assert (refused.count(b"HTTP/1.1 403"), message.stop_reason) == (300, "end_turn")
        assert gateway.session.dropped["requests"] == 0
        for _ in range(10):
            await gateway.post("/andon/submit", b"{}")
        assert status_of(await gateway.post("/andon/submit", b"{}")) == 429


@pytest.mark.abuse("W11")
async def test_idle_and_slow_connections_do_not_keep_the_agent_out(tmp_path: Path):
    """Three hundred of them, half with half a header. The control serves 128 at once and waits for each; ours drops who is idle."""

    async def besiege(socket: Path) -> list[asyncio.StreamWriter]:
        idle = [await asyncio.open_unix_connection(str(socket)) for _ in range(300)]
        for _, writer in idle[::2]:
            writer.write(b"POST /v1/mess")
        return [writer for _, writer in idle]

    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        async with naive_gateway(tmp_path, upstream.base_url, KEY) as control:
            writers = await besiege(control.socket)
            assert await send(control.socket, a_post(a_body()), wait_s=1.0) == b""
        writers += await besiege(gateway.socket)
        began = time.monotonic()
        reply = await gateway.raw(a_post(a_body()))
        took_s = time.monotonic() - began
        for writer in writers:
            writer.close()

    assert status_of(reply) == 200
    assert took_s < 2.0


@pytest.mark.abuse("W12")
@pytest.mark.parametrize(
    "lines",
    ["content-length: {n}\r\ntransfer-encoding: chunked", "content-length: 99\r\ncontent-length: {n}", "content-length: {n}\r\nx: a\0b"],
    ids=["two framings", "two lengths", "nul"],
)
async def test_a_request_hidden_in_anothers_body_is_not_seen(tmp_path: Path, lines: str):
    """The control takes one of the framings, and a proxy before it the other: a second request goes by unseen. Ours refuses both."""
    hidden = b"POST /v1/files HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\n\r\n"
    length = 5 if "chunked" in lines else 4
    head = f"POST /v1/messages HTTP/1.1\r\nhost: g\r\n{lines.format(n=length)}\r\n\r\n".encode()
    data = head + (b"0\r\n\r\n" if "chunked" in lines else b"{}  ") + hidden
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        async with naive_gateway(tmp_path, upstream.base_url, KEY) as control:
            await send(control.socket, data, wait_s=0.5)
        assert [request.line.split(" ")[1] for request in upstream.requests] == ["/v1/messages", "/v1/files"]
        seen_by(upstream)
        reply = await gateway.raw(data)

        assert (status_of(reply), reply.count(b"HTTP/1.1 "), seen_by(upstream)) == (400, 1, 0)


@pytest.mark.abuse("W18")
async def test_a_recorded_reply_answers_only_the_call_it_was_made_for(tmp_path: Path):
    """The agent of `spec` asks what it wants, and its reply is recorded. Replayed: another stage, another round, another conversation
    get nothing, and nothing is added. The control: a store by the words of the last message, which answers all of them.
    """
    for name in ("live", "other"):
        (tmp_path / name).mkdir()
    async with (
        fake_upstream(replying(a_reply("poison"))) as upstream,
        open_gateway(tmp_path / "live", upstream.base_url, record=True) as live,
    ):
        await live.ask()
        records = load_recording(live.session.recording())
    control = {CALL["messages"][-1]["content"]: records[0]}
    assert "poison" in control["hi"].sse
    cassette = Cassette(header=CassetteHeader(made_by="scripted"), records=records)
    before = cassette.dump()

    ends = {}
    for stage, round_, fields in (("spec", 1, {}), ("test", 1, {}), ("spec", 2, {}), ("spec", 1, {"system": "another job"})):
        async with open_gateway(tmp_path / "other", Replay(cassette, stage, round_), stage=stage, round_=round_, record=True) as gateway:
            ends[stage, round_, len(fields)] = await gateway.raw(a_post(a_body(**fields)))

    assert [status_of(reply) for reply in ends.values()] == [200, 400, 400, 400]
    assert [b"poison" in reply for reply in ends.values()] == [True, False, False, False]
    assert cassette.dump() == before


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory another user can reach, as a slot's is."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.abuse("W19")
@pytest.mark.root
async def test_another_sandboxes_uid_is_not_served(public_directory: Path):
    """A program of another slot's uid finds the socket. The control, a socket as a server makes it with the usual rights, serves it."""
    health = b"GET /healthz HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n"
    ours, theirs = 200_001, 200_002
    async with fake_upstream(replying(a_reply())) as upstream, naive_gateway(public_directory, upstream.base_url, KEY) as control:
        control.socket.chmod(0o777)
        assert status_of(await from_another_process(control.socket, health, uid=theirs)) == 200
    async with open_gateway(public_directory, None, peer_uid=ours) as gateway:
        stranger = await from_another_process(gateway.socket, health, uid=theirs)
        gateway.socket.chmod(0o777)  # even if the mode were wrong
        known = await from_another_process(gateway.socket, health, uid=theirs)
        own = await from_another_process(gateway.socket, health, uid=ours)

    assert (stranger, status_of(known), status_of(own)) == (b"", 403, 200)
    assert os.geteuid() == 0
