"""What is assigned, submitted and relayed through a gateway besides model calls."""

import asyncio
import json
from pathlib import Path

import pytest

from sandbox.contract.job import Assignment, Submission
from tests.fakes.gateway import Gateway, open_gateway

ASSIGNMENT = Assignment(
    job_id="0123456789-validate-1",
    stage="validate",
    round=1,
    attempt=1,
    kind="checks",
    tool_env={"LANG": "C.UTF-8"},
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    wall_s=60,
)


def body_of(reply: bytes) -> bytes:
    return reply.split(b"\r\n\r\n", 1)[1]


async def submit(gateway: Gateway, **fields: object) -> bytes:
    return await gateway.post("/andon/submit", json.dumps(fields).encode())


async def test_a_poll_waits_for_the_assignment(tmp_path: Path):
    """The program may be there first: it is answered as soon as there is work."""
    async with open_gateway(tmp_path, None) as gateway:
        poll = asyncio.ensure_future(gateway.get("/andon/assignment"))
        await asyncio.sleep(0.05)
        gateway.session.assign(ASSIGNMENT)
        reply = await poll

        assert Assignment.model_validate_json(body_of(reply)) == ASSIGNMENT


async def test_a_poll_is_bounded(tmp_path: Path):
    """204: ask again. The second poll finds the assignment; so does a third, after a lost reply."""
    async with open_gateway(tmp_path, None) as gateway:
        first = await gateway.get("/andon/assignment")
        gateway.session.assign(ASSIGNMENT)
        second, third = await gateway.get("/andon/assignment"), await gateway.get("/andon/assignment")

        assert first.startswith(b"HTTP/1.1 204 ")
        assert body_of(second) == body_of(third) != b""


async def test_an_attempt_is_assigned_once(tmp_path: Path):
    """Anything else is a bug of ours."""
    async with open_gateway(tmp_path, None) as gateway:
        gateway.session.assign(ASSIGNMENT)
        with pytest.raises(RuntimeError):
            gateway.session.assign(ASSIGNMENT)


async def test_a_session_that_ends_answers_nobody(tmp_path: Path):
    """A poll that still waits does not hold up the end."""
    async with asyncio.timeout(1):
        async with open_gateway(tmp_path, None) as gateway:
            poll = asyncio.ensure_future(gateway.get("/andon/assignment"))
            while gateway.session.first_byte_at is None:
                await asyncio.sleep(0.005)
        assert await poll == b""


async def test_the_first_byte_is_noted(tmp_path: Path):
    """It tells when the program's first instruction ran."""
    async with open_gateway(tmp_path, None) as gateway:
        before = gateway.session.first_byte_at
        await gateway.get("/healthz")
        first = gateway.session.first_byte_at
        await gateway.get("/healthz")

        assert before is None
        assert first is not None
        assert gateway.session.first_byte_at == first


async def test_a_submission_ends_the_wait(tmp_path: Path):
    """It is recorded as it was said; what it claims decides nothing."""
    async with open_gateway(tmp_path, None) as gateway:
        waiting = asyncio.ensure_future(gateway.session.wait_submitted())
        reply = await submit(gateway, status="done", summary="made it", steps=3)

        assert reply.startswith(b"HTTP/1.1 200 ")
        assert await waiting == gateway.session.submission == Submission(status="done", summary="made it", steps=3)


async def test_only_one_submission_counts(tmp_path: Path):
    """The same one again is a repetition after a lost reply; another one is refused."""
    async with open_gateway(tmp_path, None) as gateway:
        await submit(gateway, status="done", summary="a")
        same = await submit(gateway, status="done", summary="a")
        other = await submit(gateway, status="done", summary="b")

        assert same.startswith(b"HTTP/1.1 200 ")
        assert other.startswith(b"HTTP/1.1 409 ")
        assert gateway.session.submission == Submission(status="done", summary="a")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "not JSON"),
        (b"{}", "status"),
        (b'{"status": "landed"}', "status"),
        (b'{"status": "done", "status": "blocked"}', "twice"),
        (b'{"status": "done", "verdict": "pass"}', "verdict"),
        (b'{"status": "checked", "exits": [{"name": "t", "exit_code": 0, "duration_s": NaN}]}', "NaN"),
        (b'{"status": "checked", "exits": [{"name": "t", "exit_code": 0, "duration_s": 1e999}]}', "too large"),
    ],
)
async def test_a_submission_that_makes_no_sense_is_refused(tmp_path: Path, body: bytes, field: str):
    """400 with what is wrong; a right one may still follow."""
    async with open_gateway(tmp_path, None) as gateway:
        reply = await gateway.post("/andon/submit", body)

        assert reply.startswith(b"HTTP/1.1 400 ")
        assert field.encode() in reply
        assert gateway.session.submission is None
        assert (await submit(gateway, status="done")).startswith(b"HTTP/1.1 200 ")


async def test_traces_are_handed_on_and_bounded(tmp_path: Path):
    """10 MiB in one attempt, as bytes; what comes after is refused and counted."""
    async with open_gateway(tmp_path, None) as gateway:
        replies = [await gateway.post("/v1/traces", bytes(1 << 20)) for _ in range(11)]

        assert [reply[9:12] for reply in replies] == [b"200"] * 10 + [b"413"]
        assert [len(body.data) for body in gateway.traces] == [1 << 20] * 10
        assert gateway.session.dropped == {"records": 0, "traces": 1, "requests": 0}


async def test_a_session_leaves_nothing_behind(tmp_path: Path):
    """And replaces what a crashed one left."""
    (tmp_path / "gateway.sock").write_text("stale")
    async with open_gateway(tmp_path, None) as gateway:
        assert (await gateway.get("/healthz")).startswith(b"HTTP/1.1 200 ")

    assert list(tmp_path.iterdir()) == []
