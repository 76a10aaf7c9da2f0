"""Reaches a socket of the host from sandboxes of an engine that does not carry sockets: a container beside, a volume, two streams.

Where the engine runs in a virtual machine (Docker Desktop), a bound directory shows our socket and nobody answers at it. Then a second
container of the agent image, with every wall of a sandbox and no other mount than a volume, listens in that volume (`inside/relay`); the
sandbox has the volume read-only at `/gw`; what is said there comes through the engine's own connection to us, and we say it to the
gateway's socket. The gateway then sees one caller, us: who calls inside cannot be told, and the record says so.
"""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from sandbox.contract.errors import EngineError
from sandbox.contract.job import Limits
from sandbox.inside.relay import CHUNK_BYTES_MAX, DATA, END, FRAME, OPEN, READY
from sandbox.runtime.container_spec import GATEWAY, PROGRAM, SlotSpec
from sandbox.runtime.docker import attach, remove
from sandbox.runtime.engine import Engine
from sandbox.runtime.hardening import create_request

RELAYED = "no bound sockets: the engine does not carry them (a virtual machine?); the gateway is reached by a container beside the sandbox"
READY_S = 30.0
FRAME_BYTES_MAX = 1 << 20
LIMITS = Limits(memory_mib=128, workspace_mib=16, cpus=1.0, pids_max=96)
_HEADER_BYTES = 8
_STDOUT = 1


@asynccontextmanager
async def relayed(engine: Engine, slot: SlotSpec, image_id: str) -> AsyncIterator[SlotSpec]:
    """Carry `slot.gateway/gateway.sock` and yield the slot whose sandbox reaches it; the container and its volume are gone afterwards.

    Raises:
        EngineError: The engine refused, or the container did not say that it is ready.
    """
    name = f"andon-{slot.instance}-{slot.slot}-relay-{secrets.token_hex(4)}"
    what = "cannot start the container that carries the gateway's socket"
    try:
        stream = await engine.call(what, lambda: _create_and_attach(engine, slot, image_id, name))
        with stream:
            connect = asyncio.open_unix_connection if stream.family == socket.AF_UNIX else asyncio.open_connection
            reader, writer = await connect(sock=stream, limit=FRAME_BYTES_MAX)
            carrier = Carrier(reader, writer, slot.gateway / "gateway.sock")
            await engine.call(what, lambda: engine.client.start(name))
            async with carrier.carrying():
                yield slot.model_copy(update={"gateway_from": name})
    finally:
        await asyncio.shield(
            engine.call("cannot remove the container that carries the gateway's socket", lambda: remove(engine.client, name))
        )


def _create_and_attach(engine: Engine, slot: SlotSpec, image_id: str, name: str) -> socket.socket:
    uid, _ = engine.facts.users.inside(slot.uid, slot.gid)
    engine.client.create_container_from_config(relay_request(slot, image_id, engine, uid), name=name)  # type: ignore[no-untyped-call]
    return attach(engine.client, name, with_input=True)


def relay_request(slot: SlotSpec, image_id: str, engine: Engine, uid: int) -> dict[str, Any]:
    """Return the body that creates the container: a sandbox without a slot's directories, whose `/gw` is a new volume of its own."""
    command = (*PROGRAM[:3], "sandbox.inside.relay", str(uid))
    plain = slot.model_copy(update={"limits": LIMITS, "command": command, "runtime": "runc"})
    body = create_request(plain, image_id, engine.facts, slot.task)
    # A new volume belongs to root; here it has no capability and nothing else to write to.
    body |= {"User": "0:0", "WorkingDir": "/", "AttachStdin": True, "OpenStdin": True, "StdinOnce": True}
    body["HostConfig"] |= {"Mounts": [{"Type": "volume", "Target": GATEWAY, "VolumeOptions": {"NoCopy": True}}]}
    return body


class Carrier:
    """The host's end: for each connection of the container one to the gateway's socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Path) -> None:
        """Carry between the container's attached streams and the socket `target`."""
        self._reader = reader
        self._writer = writer
        self._target = target
        self._open: dict[int, asyncio.StreamWriter] = {}
        self._buffer = bytearray()
        self._ready = asyncio.Event()
        self._sending = asyncio.Lock()

    @asynccontextmanager
    async def carrying(self) -> AsyncIterator[None]:
        """Carry until the block ends.

        Raises:
            EngineError: The container did not say in time that it listens.
        """
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(self._serve(tasks))
            try:
                waiting = asyncio.create_task(self._ready.wait())
                await asyncio.wait({serving, waiting}, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if not self._ready.is_set():
                    raise EngineError("the container that carries the gateway's socket did not start")
                yield
            finally:
                for writer in self._open.values():
                    writer.close()
                self._writer.close()
                serving.cancel()

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                header = await self._reader.readexactly(_HEADER_BYTES)
                data = await self._reader.readexactly(int.from_bytes(header[4:], "big"))
                if header[0] == _STDOUT:
                    self._buffer += data
                    await self._take_frames(tasks)

    async def _take_frames(self, tasks: asyncio.TaskGroup) -> None:
        while len(self._buffer) >= FRAME.size:
            kind, number, length = FRAME.unpack_from(self._buffer)
            if length > FRAME_BYTES_MAX:
                raise EngineError("the container that carries the gateway's socket says what it never says")
            if len(self._buffer) < FRAME.size + length:
                return
            data = bytes(self._buffer[FRAME.size : FRAME.size + length])
            del self._buffer[: FRAME.size + length]
            await self._take(tasks, kind, number, data)

    async def _take(self, tasks: asyncio.TaskGroup, kind: bytes, number: int, data: bytes) -> None:
        if kind == READY:
            self._ready.set()
        elif kind == OPEN:
            await self._connect(tasks, number)
        elif (writer := self._open.get(number)) is not None:
            with suppress(OSError):
                if kind == DATA:
                    writer.write(data)
                    await writer.drain()
                elif kind == END:
                    writer.write_eof()

    async def _connect(self, tasks: asyncio.TaskGroup, number: int) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(self._target)
        except OSError:  # the gateway's session is over
            await self._send(END, number)
            return
        self._open[number] = writer
        tasks.create_task(self._read(number, reader, writer))

    async def _read(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES_MAX):
                await self._send(DATA, number, data)
        with suppress(OSError):
            await self._send(END, number)
        self._open.pop(number, None)
        writer.close()

    async def _send(self, kind: bytes, number: int, data: bytes = b"") -> None:
        async with self._sending:
            self._writer.write(FRAME.pack(kind, number, len(data)) + data)
            await self._writer.drain()
