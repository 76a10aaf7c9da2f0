"""How requests are framed and how large they may be, against a raw client."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import anthropic
import pytest

from sandbox.gateway.connection import HEADER_BYTES_MAX
from tests.fakes.gateway import CALL, HASTY, open_gateway
from tests.fakes.upstream import (
    a_reply,
    fake_upstream,
    replying,
)

BODY = json.dumps({**CALL, "stream": True}).encode()
POST = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY


def status_of(reply: bytes) -> int:
    """Return a reply's status, 0 if there is none."""
    return int(reply.split(b" ")[1]) if reply else 0


@pytest.mark.abuse("W12")
@pytest.mark.parametrize(
    "data",
    [
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
        b"GET /healthz HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nbad header: 1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\0y\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=["both lengths", "two lengths", "negative", "gzip", "two hosts", "no host", "blank in name", "nul", "http 0.9", "tls"],
)
async def test_odd_framing_is_refused(tmp_path: Path, data: bytes):
    """Two parsers must not see two requests."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        assert status_of(await gateway.raw(data)) == 400
        assert upstream.requests == []


async def test_a_chunked_body_is_a_body(tmp_path: Path):
    """The companion: one framing at a time is fine."""
    head = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        reply = await gateway.raw(head + f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n")

        assert status_of(reply) == 200
        assert upstream.requests[0].body == BODY


async def test_requests_sent_ahead_are_answered_in_order(tmp_path: Path):
    """Pipelining is legal; a body is never taken for the next request."""
    one = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    async with open_gateway(tmp_path, None) as gateway:
        reply = await gateway.raw(one + one + last)

    assert [int(part[:3]) for part in reply.split(b"HTTP/1.1 ")[1:]] == [200, 200, 404]


@pytest.mark.parametrize(
    ("target", "size", "status"),
    [
        ("/v1/messages", (32 << 20) + 1, 413),
        ("/andon/submit", (64 << 10) + 1, 413),
        ("/v1/traces", (1 << 20) + 1, 413),
        ("/v1/traces", 1 << 20, 200),
    ],
)
async def test_bodies_have_a_size(tmp_path: Path, target: str, size: int, status: int):
    """A larger one is refused by its announced length, before it is read."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        assert status_of(await gateway.post(target, b"x" * size)) == status


async def test_a_chunked_body_has_a_size_too(tmp_path: Path):
    """Its length is not announced: it is counted."""
    head = b"POST /andon/submit HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with open_gateway(tmp_path, None) as gateway:
        assert status_of(await gateway.raw(head + b"10000\r\n" + b"x" * 65_536 + b"\r\n1\r\nx\r\n0\r\n\r\n")) == 413


async def test_the_sdk_learns_that_a_request_is_too_large(tmp_path: Path):
    """It is still sending when the answer comes."""
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url) as gateway:
        with pytest.raises(anthropic.RequestTooLargeError):
            await gateway.ask(messages=[{"role": "user", "content": "x" * (33 << 20)}])


async def test_a_header_has_a_size(tmp_path: Path):
    """16 KiB."""
    async with open_gateway(tmp_path, None) as gateway:
        reply = await gateway.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"y" * HEADER_BYTES_MAX + b"\r\n\r\n")

    assert status_of(reply) == 431


async def test_bodies_that_wait_have_a_size_together(tmp_path: Path):
    """Three times 30 MB at once: the third is told to come again."""
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: {30 << 20}\r\n\r\n".encode()
    tuning = replace(HASTY, client=replace(HASTY.client, body_s=3.0))  # a busy machine needs more than a second for 90 MB
    async with fake_upstream(replying(a_reply())) as upstream, open_gateway(tmp_path, upstream.base_url, tuning=tuning) as gateway:
        replies = await asyncio.gather(*(gateway.raw(head + b" " * ((30 << 20) - 1), wait_s=20) for _ in range(3)))

    assert sorted(status_of(reply) for reply in replies) == [408, 408, 503]
