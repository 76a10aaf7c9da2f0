"""The trace route: what an OpenTelemetry SDK sends is taken, bounded, told apart by its sender, and judged off the loop."""

import gzip
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.gateway.caps import CAPS, OF_TOOLS, TRACES, Cap
from sandbox.gateway.otlp_body import UNPACKED_BYTES_MAX, TracesBody
from sandbox.gateway.traces_route import BYTES_MAX, INLINE_BYTES_MAX
from tests.fakes.gateway import HASTY, Gateway, from_another_process, open_gateway

PROTOBUF = "content-type: application/x-protobuf\r\n"
GZIP = "content-encoding: gzip\r\n"


def a_request(body: bytes, headers: str = "", target: str = TRACES) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def sent(gateway: Gateway, *, by_tool: bool, body: bytes = b"{}", headers: str = "") -> int:
    """Send a body as the program or as another process, and return the status."""
    request = a_request(body, headers)
    reply = await (from_another_process(gateway.socket, request) if by_tool else gateway.raw(request))
    return int(reply[9:12])


@pytest.mark.parametrize(
    ("body", "headers", "taken"),
    [
        (b"{}", "", TracesBody(b"{}")),
        (b"{}", "content-type: application/json; charset=utf-8\r\n", TracesBody(b"{}")),
        (b"\x0a\x00", PROTOBUF, TracesBody(b"\x0a\x00", is_protobuf=True)),
        (gzip.compress(b"{}"), GZIP, TracesBody(b"{}")),
        (gzip.compress(b"\x0a\x00"), PROTOBUF + GZIP, TracesBody(b"\x0a\x00", is_protobuf=True)),
    ],
    ids=["bare", "json", "protobuf", "gzip", "protobuf-gzip"],
)
async def test_json_and_protobuf_are_taken_with_and_without_gzip(tmp_path: Path, body: bytes, headers: str, taken: TracesBody):
    """And answered in kind, as SDKs expect it."""
    async with open_gateway(tmp_path, None) as gateway:
        reply = await gateway.raw(a_request(body, headers))

        assert gateway.traces == [taken]
    head, _, answer = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    kind = b"application/x-protobuf" if taken.is_protobuf else b"application/json"
    assert (b"content-type: " + kind in head.lower(), answer) == (True, b"" if taken.is_protobuf else b"{}")


@pytest.mark.abuse("P03")
@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (gzip.compress(bytes(UNPACKED_BYTES_MAX + 1)), GZIP, 413),
        (gzip.compress(bytes(64 << 20)), GZIP, 413),
        (b"{}", GZIP, 400),
        (gzip.compress(b"{}")[:-1], GZIP, 400),
        (gzip.compress(b"{}"), GZIP + GZIP, 400),
        (b"{}", "content-encoding: br\r\n", 400),
        (b"{}", "content-type: text/plain\r\n", 415),
        (b"{}", PROTOBUF + "content-type: application/json\r\n", 415),
    ],
    ids=["one-byte-too-many", "bomb", "not-gzip", "cut", "twice", "brotli", "text", "two-types"],
)
async def test_what_makes_no_sense_or_too_much_is_refused_for_good(tmp_path: Path, body: bytes, headers: str, status: int):
    """No exporter waits to try again; a right body is still taken then."""
    async with open_gateway(tmp_path, None) as gateway:
        reply = await gateway.raw(a_request(body, headers))

        assert int(reply[9:12]) == status
        assert b"x-should-retry: false" in reply.lower()
        assert gateway.traces == []
        assert await sent(gateway, by_tool=False) == 200


async def test_a_body_of_4_mib_unpacked_is_taken(tmp_path: Path):
    """The companion of the bomb."""
    async with open_gateway(tmp_path, None) as gateway:
        assert await sent(gateway, by_tool=False, body=gzip.compress(bytes(UNPACKED_BYTES_MAX)), headers=GZIP) == 200


async def test_other_routes_take_no_gzip(tmp_path: Path):
    """What they judge is what came."""
    async with open_gateway(tmp_path, None) as gateway:
        reply = await gateway.raw(a_request(gzip.compress(b"{}"), GZIP, "/andon/submit"))

    assert reply.startswith(b"HTTP/1.1 400 ")


@pytest.mark.abuse("P03")
async def test_tools_use_up_nothing_of_the_programs(tmp_path: Path):
    """Neither its bytes nor its requests; and what they send is marked as theirs."""
    tight = replace(HASTY, caps={**CAPS, OF_TOOLS: Cap(burst=4, per_minute=1)})
    packed = gzip.compress(bytes(BYTES_MAX // 3))
    async with open_gateway(tmp_path, None, tuning=tight) as gateway:
        await gateway.get("/andon/assignment")  # whoever asks for it is the program

        statuses = [await sent(gateway, by_tool=True, body=packed, headers=GZIP) for _ in range(5)]
        ours = await sent(gateway, by_tool=False)

        assert statuses == [200, 200, 200, 413, 429]
        assert ours == 200
        assert [body.is_from_program for body in gateway.traces] == [False] * 3 + [True]
        assert gateway.session.dropped["traces"] == 1
        assert gateway.session.dropped["requests"] == 1


async def test_large_bodies_are_judged_off_the_loop(tmp_path: Path):
    """The loop keeps leases; the program's own bodies are far smaller, and need no thread."""
    judged_in: list[str] = []

    def judge(_: TracesBody) -> None:
        judged_in.append("loop" if threading.current_thread() is threading.main_thread() else "thread")

    async with open_gateway(tmp_path, None, on_traces=judge) as gateway:
        for size, headers in ((INLINE_BYTES_MAX, ""), (INLINE_BYTES_MAX + 1, ""), (2, PROTOBUF)):
            assert await sent(gateway, by_tool=False, body=b" " * size, headers=headers) == 200

    assert judged_in == ["loop", "thread", "thread"]
