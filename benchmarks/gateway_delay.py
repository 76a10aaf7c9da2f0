"""What the gateway adds to a model call until the first event of its reply: policy, reservation, key, and two more hops."""

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure
from sandbox.gateway.caps import CAPS, Cap
from sandbox.gateway.policy import Policy
from sandbox.gateway.session import SOCKET_NAME, Session
from sandbox.gateway.terms import Tuning
from sandbox.gateway.upstream import Upstream
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.upstream import Request, a_reply, fake_upstream, send_events, send_head

ROUNDS = 60
GOAL_S = 0.005
UNCAPPED = Tuning(caps=dict.fromkeys(CAPS, Cap(1_000_000, 1_000_000)))
"""One attempt may not ask so often; a host's attempts together do."""
_MODEL = "claude-sonnet-5-5"
_SYSTEM_CHARS = 20_000


def measure() -> Iterator[Figure]:
    """Yield the difference of the medians."""
    through_s, direct_s = asyncio.run(_in_turn())
    note = f"{through_s * 1000:.1f} ms through it, {direct_s * 1000:.1f} ms past it; ledger in memory"
    yield Figure("gateway: added time to the first byte", through_s - direct_s, GOAL_S, "s", note)


async def _in_turn() -> tuple[float, float]:
    async def reply(_: Request, writer: asyncio.StreamWriter) -> None:
        await send_head(writer)
        await send_events(writer, a_reply())

    through, direct = [], []
    with tempfile.TemporaryDirectory(prefix="andon-bench-") as directory:
        async with fake_upstream(reply) as provider:
            upstream = Upstream.from_environment({"ANTHROPIC_API_KEY": "sk-bench", "ANTHROPIC_BASE_URL": provider.base_url})
            policy = Policy(model=_MODEL, output_tokens_max=1_000)
            async with Session(Path(directory), policy, MemoryLedger(), upstream, stage="bench", round_=1, tuning=UNCAPPED):
                host, port = provider.base_url.removeprefix("http://").split(":")
                for what in ["through", "direct", *random.sample(["through", "direct"] * ROUNDS, 2 * ROUNDS)]:
                    if what == "through":
                        through.append(await _first_event_s(*await asyncio.open_unix_connection(Path(directory) / SOCKET_NAME)))
                    else:
                        direct.append(await _first_event_s(*await asyncio.open_connection(host, int(port))))
    return statistics.median(through[1:]), statistics.median(direct[1:])


async def _first_event_s(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    call = {
        "model": _MODEL,
        "max_tokens": 1_000,
        "stream": True,
        "system": [{"type": "text", "text": "x" * _SYSTEM_CHARS}],
        "messages": [{"role": "user", "content": "hi"}],
    }
    body = json.dumps(call).encode()
    head = f"POST /v1/messages HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    began = time.perf_counter()
    writer.write(head.encode() + body)
    await reader.readuntil(b"message_start")
    took_s = time.perf_counter() - began
    await reader.readuntil(b"message_stop")
    writer.close()
    await writer.wait_closed()
    return took_s
