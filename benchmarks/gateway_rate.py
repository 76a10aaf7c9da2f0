"""How many streamed replies a second the gateway passes on; provider and client are processes of their own, as they are in a run."""

import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from benchmarks.figure import Figure
from sandbox.gateway.caps import CAPS, Cap
from sandbox.gateway.policy import Policy
from sandbox.gateway.session import SOCKET_NAME, Session
from sandbox.gateway.terms import Tuning
from sandbox.gateway.upstream import Upstream
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.upstream import a_reply, fake_upstream, replying

REPLIES, AT_ONCE = 400, 4
WORDS = 200
"""Events of text in one reply; with those around them 206."""
GOAL_PER_S = 100.0
WAIT_S = 120.0
UNCAPPED = Tuning(caps=dict.fromkeys(CAPS, Cap(1_000_000, 1_000_000)))
"""One attempt may not ask so often; a host's attempts together do."""
_MODEL = "claude-sonnet-5-5"


def measure() -> Iterator[Figure]:
    """Yield the rate over one burst."""
    seconds = asyncio.run(_burst())
    events = len(a_reply("word " * WORDS))
    rate = f"{REPLIES * events / seconds:,.0f} events/s"
    note = f"{REPLIES} replies of {events} events, {AT_ONCE} at once; {rate}; load {os.getloadavg()[0]:.1f}"
    yield Figure("gateway: replies", REPLIES / seconds, GOAL_PER_S, "per s", note, is_rate=True)


async def _burst() -> float:
    fresh = multiprocessing.get_context("spawn")
    here, there = fresh.Pipe()
    provider = fresh.Process(target=_provide, args=(there,), daemon=True)
    provider.start()
    try:
        upstream = Upstream.from_environment({"ANTHROPIC_API_KEY": "sk-bench", "ANTHROPIC_BASE_URL": await asyncio.to_thread(here.recv)})
        policy = Policy(model=_MODEL, output_tokens_max=1_000, calls_max=2 * REPLIES)
        with tempfile.TemporaryDirectory(prefix="andon-bench-") as directory:
            async with Session(Path(directory), policy, MemoryLedger(), upstream, stage="bench", round_=1, tuning=UNCAPPED):
                client = fresh.Process(target=_ask, args=(there, f"{directory}/{SOCKET_NAME}"), daemon=True)
                client.start()
                seconds = await asyncio.to_thread(_received, here)
                await asyncio.to_thread(client.join)
    finally:
        provider.terminate()
        provider.join()
    return seconds


def _received(pipe: Pipe) -> float:
    if not pipe.poll(WAIT_S):
        raise RuntimeError(f"no {REPLIES} replies within {WAIT_S:.0f} s")
    return float(pipe.recv())


def _provide(pipe: Pipe) -> None:
    async def serve() -> None:
        async with fake_upstream(replying(a_reply("word " * WORDS))) as provider:
            pipe.send(provider.base_url)
            await asyncio.Event().wait()

    asyncio.run(serve())


def _ask(pipe: Pipe, socket: str) -> None:
    pipe.send(asyncio.run(_ask_all(socket)))


async def _ask_all(socket: str) -> float:
    """Return the seconds all replies took; connecting and one reply beforehand are not in it."""
    pairs = [await asyncio.open_unix_connection(socket) for _ in range(AT_ONCE)]
    await _replies(*pairs[0], 1)
    began = time.perf_counter()
    await asyncio.gather(*(_replies(reader, writer, REPLIES // AT_ONCE) for reader, writer in pairs))
    took_s = time.perf_counter() - began
    for _, writer in pairs:
        writer.close()
    return took_s


async def _replies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int) -> None:
    call = {"model": _MODEL, "max_tokens": 1_000, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    body = json.dumps(call).encode()
    head = f"POST /v1/messages HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    for _ in range(count):
        writer.write(head.encode() + body)
        status = await reader.readuntil(b"\r\n")
        if b" 200 " not in status:
            raise RuntimeError(status.decode())
        await reader.readuntil(b"\r\n0\r\n\r\n")  # the last chunk of the reply
