"""Opens a real gateway session for a test and gives it clients: the real SDK, raw bytes, other processes; it fakes nothing itself."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx2
from anthropic.types import Message

from sandbox.gateway.cassette import Replay
from sandbox.gateway.connection import Timeouts
from sandbox.gateway.otlp_body import TracesBody
from sandbox.gateway.policy import Policy
from sandbox.gateway.session import SOCKET_NAME, Session
from sandbox.gateway.tally import CallReport
from sandbox.gateway.terms import Tuning
from sandbox.gateway.upstream import Upstream
from tests.fakes.gateway_ledger import MemoryLedger

KEY = "sk-ant-canary-7f3a"
MODEL = "claude-sonnet-5-5"
POLICY = Policy(model=MODEL, output_tokens_max=1_000)
HASTY = Tuning(retry_pauses_s=(0.01, 0.02, 0.04), drain_s=5.0, assignment_poll_s=0.2, client=Timeouts(header_s=0.4, idle_s=5.0, body_s=0.5))
"""Short waits; otherwise as in earnest."""
CALL: dict[str, Any] = {"model": MODEL, "max_tokens": 1_000, "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class Gateway:
    """An open session and what it told."""

    session: Session
    ledger: MemoryLedger
    socket: Path
    calls: list[CallReport] = field(default_factory=list)
    traces: list[TracesBody] = field(default_factory=list)

    @asynccontextmanager
    async def sdk(self, **options: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
        """Yield the SDK as the agent uses it, without retries of its own."""
        transport = httpx2.AsyncHTTPTransport(uds=str(self.socket))
        async with httpx2.AsyncClient(transport=transport, timeout=20.0) as http:
            settings: dict[str, Any] = {"api_key": "none", "base_url": "http://gateway", "max_retries": 0, "open_telemetry": False}
            yield anthropic.AsyncAnthropic(http_client=http, **{**settings, **options})

    async def ask(self, **fields: Any) -> Message:
        """Make one whole call."""
        async with self.sdk() as sdk, sdk.messages.stream(**{**CALL, **fields}) as stream:
            return await stream.get_final_message()

    async def raw(self, data: bytes, *, wait_s: float = 5.0) -> bytes:
        """Send bytes on a connection of their own and return what comes until it is closed."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            writer.write(data)
            async with asyncio.timeout(wait_s):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def get(self, target: str) -> bytes:
        """Make one request without a body and return the whole reply."""
        return await self.raw(f"GET {target} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n".encode())

    async def post(self, target: str, body: bytes) -> bytes:
        """Make one request with a body and return the whole reply."""
        head = f"POST {target} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        return await self.raw(head.encode() + body)


async def wait_until(predicate: Callable[[], bool], what: str, wait_s: float = 5.0) -> None:
    """Wait for something another task does."""
    deadline = time.monotonic() + wait_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {wait_s} s: {what}"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def open_gateway(
    directory: Path,
    model: str | Upstream | Replay | None,
    *,
    policy: Policy | None = POLICY,
    ledger: MemoryLedger | None = None,
    tuning: Tuning = HASTY,
    **options: Any,
) -> AsyncIterator[Gateway]:
    """Open a session on a socket in `directory`; `model` may be the address of a provider."""
    upstream = model
    if isinstance(model, str):
        upstream = Upstream.from_environment({"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": model})
    ledger = ledger or MemoryLedger()
    calls: list[CallReport] = []
    traces: list[TracesBody] = []
    settings: dict[str, Any] = {
        "stage": "spec",
        "round_": 1,
        "on_call": calls.append,
        "on_traces": traces.append,
        "tuning": tuning,
        **options,
    }
    session = Session(directory, policy, ledger, upstream, **settings)  # type: ignore[arg-type]
    async with session:
        yield Gateway(session, ledger, directory / SOCKET_NAME, calls, traces)


async def from_another_process(socket: Path, data: bytes, *, uid: int | None = None) -> bytes:
    """Send bytes from a process of its own, as `uid`, and return the reply."""
    code = (
        "import os,socket,sys; uid=int(sys.argv[2])\n"
        "if uid != os.getuid(): os.setgroups([]); os.setgid(uid); os.setuid(uid)\n"
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.stdin.buffer.read())\n"
        "while d:=s.recv(65536): sys.stdout.buffer.write(d)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-c", code, str(socket), str(os.getuid() if uid is None else uid)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
    )
    async with asyncio.timeout(20):
        out, _ = await process.communicate(data)
    return out
