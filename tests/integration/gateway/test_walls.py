"""Who may talk to a gateway, what gets through it, and what a hostile client cannot do to it."""

import asyncio
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.contract.cassette import Cassette, CassetteHeader
from sandbox.contract.errors import UsageError
from sandbox.gateway.cassette import Replay
from sandbox.gateway.otlp_body import TracesBody
from sandbox.gateway.policy import Policy
from sandbox.gateway.server import CONNECTIONS_MAX
from sandbox.gateway.session import Session
from sandbox.gateway.upstream import Upstream
from tests.fakes.gateway import CALL, KEY, from_another_process, open_gateway
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.upstream import (
    Request,
    a_reply,
    a_start,
    an_end,
    event,
    fake_upstream,
    refusing,
    replying,
    send_error,
    send_events,
    send_head,
    some_text,
)

BODY = json.dumps({**CALL, "stream": True}).encode()
POST = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory another user can reach, as a slot's is."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def status_of(reply: bytes) -> int:
    """Return a reply's status, 0 if there is none."""
    return int(reply.split(b" ")[1]) if reply else 0


# Peers


async def test_the_socket_belongs_to_one_user(tmp_path: Path):
    """Mode 0600: the kernel refuses others before we do."""
    async with open_gateway(tmp_path, None, peer_uid=os.geteuid()) as gateway:
        assert gateway.socket.stat().st_mode & 0o777 == 0o600
        assert status_of(await gateway.get("/healthz")) == 200


@pytest.mark.abuse("W19")
@pytest.mark.root
async def test_a_peer_of_another_uid_is_refused(public_directory: Path):
    """Root may connect to any socket, and is turned away all the same; the slot's own uid is served."""
    async with open_gateway(public_directory, None, peer_uid=65_534) as gateway:
        ours = await gateway.get("/healthz")
        theirs = await from_another_process(gateway.socket, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", uid=65_534)

        assert gateway.socket.stat().st_uid == 65_534
    assert (status_of(ours), status_of(theirs)) == (403, 200)


@pytest.mark.parametrize(
    "request_bytes",
    [POST, b"GET /andon/assignment HTTP/1.1\r\nhost: x\r\n\r\n", b"POST /andon/submit HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"],
)
async def test_a_second_process_of_the_same_user_is_refused(tmp_path: Path, request_bytes: bytes):
    """The routes of the program inside belong to the first process that used one (DECISIONS D18)."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        first = await gateway.ask()
        reply = await from_another_process(gateway.socket, request_bytes)
        again = await gateway.ask()

        assert (first.stop_reason, again.stop_reason) == ("end_turn", "end_turn")
        assert status_of(reply) == 403
        assert gateway.session.pinned_to == "process"
        assert gateway.session.submission is None
        assert len(upstream.requests) == 2


async def test_the_first_process_may_be_any(tmp_path: Path):
    """The companion: whoever asks first is the owner, and then we are the second."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        theirs = await from_another_process(gateway.socket, POST)
        ours = await gateway.raw(POST)

    assert (status_of(theirs), status_of(ours)) == (200, 403)


async def test_another_process_may_send_traces_and_ask_for_health(tmp_path: Path):
    """Those routes decide nothing."""
    async with open_gateway(tmp_path, None) as gateway:
        assert gateway.session.pinned_to == "nobody"
        await gateway.get("/andon/assignment")
        reply = await from_another_process(
            gateway.socket, b"POST /v1/traces HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
        )

        assert status_of(reply) == 200
        assert gateway.traces == [TracesBody(b"{}", is_from_program=False)]


# Routes


@pytest.mark.abuse("W03", "W09")
@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /", 404),
        ("GET /v1/models", 404),
        ("POST /v1/messages/batches", 404),
        ("POST /v1/messages?beta=true", 404),
        ("POST /v1/messages/", 404),
        ("POST //v1/messages", 404),
        ("POST /v1/./messages", 404),
        ("POST /V1/messages", 404),
        ("POST /v1%2Fmessages", 404),
        ("POST http://169.254.169.254/v1/messages", 404),
        ("GET //169.254.169.254/latest/meta-data", 404),
        ("GET /@evil/", 404),
        ("POST /v1/files", 404),
        ("GET /debug", 404),
        ("GET /v1/messages", 405),
        ("DELETE /v1/messages", 405),
        ("PUT /andon/submit", 405),
        ("POST /healthz", 405),
        ("CONNECT 169.254.169.254:80", 405),
    ],
)
async def test_only_literal_routes_exist(tmp_path: Path, line: str, status: int):
    """Nothing is decoded or joined, and no request leaves."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        reply = await gateway.raw(f"{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())

        assert status_of(reply) == status
        assert upstream.requests == []


async def test_a_job_without_a_model_has_no_model_route(tmp_path: Path):
    """A checks job cannot even be refused."""
    async with open_gateway(tmp_path, None, policy=None) as gateway:
        assert status_of(await gateway.raw(POST)) == 404
        assert status_of(await gateway.post("/v1/messages/count_tokens", b"{}")) == 404


# Floods


@pytest.mark.abuse("W11")
async def test_a_slow_header_is_cut_off(tmp_path: Path):
    """A byte now and then does not hold a connection."""
    async with open_gateway(tmp_path, None) as gateway:
        reader, writer = await asyncio.open_unix_connection(str(gateway.socket))
        started = time.monotonic()
        cut_after_s = None
        for _ in range(40):
            try:
                writer.write(b"G")
                await writer.drain()
            except ConnectionError:
                break
            if reader.at_eof():
                break
            await asyncio.sleep(0.05)
        cut_after_s = time.monotonic() - started
        writer.close()

    assert cut_after_s < 1.5


@pytest.mark.abuse("W11")
async def test_a_slow_body_is_cut_off(tmp_path: Path):
    """Its request is refused after the body's time."""
    async with open_gateway(tmp_path, None) as gateway:
        reply = await gateway.raw(b"POST /andon/submit HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx")

    assert status_of(reply) == 408


@pytest.mark.abuse("W11")
async def test_three_hundred_idle_connections_do_not_keep_the_agent_out(tmp_path: Path):
    """The oldest idle one gives way, so that a call goes through at once."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        idle = [await asyncio.open_unix_connection(str(gateway.socket)) for _ in range(300)]
        for _, writer in idle[::2]:
            writer.write(b"GET /heal")
        started = time.monotonic()
        message = await gateway.ask()
        took_s = time.monotonic() - started
        for _, writer in idle:
            writer.close()

    assert message.stop_reason == "end_turn"
    assert took_s < 2.0


@pytest.mark.abuse("W11")
async def test_more_requests_than_connections_are_told_to_come_again(tmp_path: Path):
    """All are busy, none is idle: 503, to be retried; nothing queues without bound."""
    release = asyncio.Event()

    async def waiting(request: Request, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await send_head(writer)
        await send_events(writer, a_reply())

    async with fake_upstream(waiting) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        busy = [asyncio.ensure_future(gateway.raw(POST, wait_s=20)) for _ in range(CONNECTIONS_MAX)]
        while len(upstream.requests) < CONNECTIONS_MAX:
            await asyncio.sleep(0.01)
        turned_away = await gateway.raw(POST)
        release.set()
        served = await asyncio.gather(*busy)

    assert status_of(turned_away) == 503
    assert b"x-should-retry: true" in turned_away
    assert {status_of(reply) for reply in served} == {200}


@pytest.mark.abuse("W11")
async def test_descriptors_sent_along_are_not_kept(tmp_path: Path):
    """SCM_RIGHTS from a hostile client fills nobody's table."""
    async with open_gateway(tmp_path, None) as gateway:
        before = len(list(Path("/proc/self/fd").iterdir()))
        with socket.socket(socket.AF_UNIX) as client, Path("/dev/null").open() as null:
            client.connect(str(gateway.socket))
            for _ in range(5):
                socket.send_fds(client, [b"G"], [null.fileno()] * 200)
            await asyncio.sleep(0.05)
            during = len(list(Path("/proc/self/fd").iterdir()))

    assert during - before <= 3  # the client, the accepted connection, /dev/null


# The key


@pytest.mark.abuse("W01")
async def test_the_key_is_nowhere_but_upstream(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Not in a reply, an error, the view, the recording, the reports or the log, even if the provider echoes it."""

    async def echoing(request: Request, writer: asyncio.StreamWriter) -> None:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        if request.number == 1:
            await send_error(writer, 401, KEY, f"bad key {KEY}", code=KEY, x_echo=KEY)
        elif request.number == 2:
            await send_head(writer, x_echo=KEY)
            await send_events(writer, [a_start(), *some_text(f"your key is {KEY} ok"), an_end()], pause_s=0.01)
        elif request.number == 3:
            await send_head(writer)
            await send_events(writer, [a_start(), event("error", error={"type": KEY, "message": KEY})], pause_s=0.01)
        else:
            await send_head(writer)
            await send_events(writer, a_reply())

    caplog.set_level(0)
    async with fake_upstream(echoing) as upstream, open_gateway(tmp_path, upstream.base_url, record=True) as gateway:
        seen = b"".join([await gateway.raw(POST) for _ in range(4)])
        session = gateway.session
        told = f"{session.view} {session.failure} {session.anomalies} {gateway.calls} {session!r}"

    assert len(upstream.requests) == 4
    assert b"hello" in seen
    for text in (seen.decode(), told, session.recording().decode(), caplog.text, str([record.__dict__ for record in caplog.records])):
        assert KEY not in text
        assert KEY.upper() not in text.upper()


@pytest.mark.abuse("W01")
async def test_a_key_that_looks_like_an_error_code_is_not_taken_for_one(tmp_path: Path):
    """A provider that echoes it where its code should be gains nothing."""
    key = "canarykey"
    async with fake_upstream(refusing(401, key, code=key)) as upstream:
        model = Upstream.from_environment({"ANTHROPIC_AUTH_TOKEN": key, "ANTHROPIC_BASE_URL": upstream.base_url})
        async with open_gateway(tmp_path, model) as gateway:
            reply = await gateway.raw(POST)

            assert status_of(reply) == 401
            assert key not in reply.decode() + str(gateway.session.failure)


# One bad request


async def test_a_fault_of_ours_ends_one_request(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A callback of the executor's that raises: 500, a line in the log, and the session goes on."""

    def broken(payload: TracesBody) -> None:
        raise RuntimeError("our bug")

    async with open_gateway(tmp_path, None, on_traces=broken) as gateway:
        reply = await gateway.post("/v1/traces", b"{}")
        after = await gateway.get("/healthz")

    assert (status_of(reply), status_of(after)) == (500, 200)
    assert b"our bug" not in reply
    assert [record.__dict__["event"] for record in caplog.records] == ["gateway.broke"]


def test_a_model_without_a_price_opens_no_gateway(tmp_path: Path):
    """Refused before a cent is spent (DECISIONS D13)."""
    replay = Replay(Cassette(header=CassetteHeader(made_by="scripted")), "spec", 1)
    with pytest.raises(UsageError, match=r"no price.*prices\.toml"):
        Session(tmp_path, Policy(model="gpt-5", output_tokens_max=1), MemoryLedger(), replay, stage="spec", round_=1)
