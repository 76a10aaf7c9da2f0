"""One container before the first job, to see that engine and runtime serve us, and what they cannot give (DECISIONS G15).

It writes a file, says a word to a socket and hears one back, from two processes. What fails here would fail every job later with a worse
message: an engine on another machine, one that maps users, a security module or a virtual machine between containers and sockets. What
it shows of the walls goes into the record of every job. Not a test of the walls: that is `andon doctor --prove`.
"""

import asyncio
import json
import os
import shutil
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.contract.errors import EngineError
from sandbox.runtime.container_spec import GATEWAY, PROGRAM, WORKSPACE, EngineFacts, Runtime, SlotSpec
from sandbox.runtime.protections import NO_FILTER, NO_LANDLOCK, NO_PIN

DOCUMENT = "docs/engines.md"
PROOF_S = 60.0
_WROTE = "written"
Relay = Callable[[SlotSpec, str], AbstractAsyncContextManager[SlotSpec]]
"""Makes a slot's gateway socket reachable for a sandbox of an image, while it lasts."""
_SAID_BYTES_MAX = 64 << 10
_LANDLOCK_CREATE_RULESET, _VERSION_FLAG = 444, 1
"""landlock(7): with the flag it answers the version the kernel offers, at least 1."""
SHOWN_VERSION = 2
"""Raised with each thing more that a first container shows: what was remembered before is not enough then."""
_PROGRAM = f"""
import ctypes, json, os, socket

def write():
    open("{WORKSPACE}/proof", "w").write("{_WROTE}")

def connect():
    talk = socket.socket(socket.AF_UNIX)
    talk.settimeout(10)
    talk.connect("{GATEWAY}/gateway.sock")
    talk.sendall(b"?")
    if talk.recv(1) != b"!":
        raise OSError(0, "no answer comes back")

def attempt(act):
    try:
        act()
    except OSError as error:
        return error.strerror or str(error)

said = {{"write": attempt(write), "connect": attempt(connect)}}
if os.fork() == 0:
    attempt(connect)
    os._exit(0)
os.wait()
said["vsock"] = attempt(lambda: socket.socket(40).close())
said["root"] = attempt(lambda: open("/proof", "w"))
said["landlock"] = ctypes.CDLL(None).syscall({_LANDLOCK_CREATE_RULESET}, None, ctypes.c_size_t(0), ctypes.c_uint32({_VERSION_FLAG}))
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
said["capabilities"] = int(status.get("CapEff", "0"), 16)
said["interfaces"] = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
print(json.dumps(said))
"""


class NoSocketError(EngineError):
    """Files arrive in a container and a socket of ours does not answer there."""


@dataclass(frozen=True)
class Place:
    """Where a first container may be tried, as a slot is."""

    instance: str
    """Label of the container."""
    state: Path
    """Where slots' directories live; a directory `proof` is made in it and removed."""
    sockets: Path
    """Where slots' sockets live; likewise."""
    uid: int
    """A slot's user."""
    gid: int
    number: int = 0
    """The slot's, for the label."""


async def prove_engine(runtime: Runtime, image_id: str, place: Place, *, name: str = "runc", relay: Relay | None = None) -> tuple[str, ...]:
    """Run one sandbox in directories like those of a slot and return what it does without, one line each; takes as long as one cold start.

    Args:
        runtime: The engine in question.
        image_id: The agent image.
        place: Where.
        name: The engine's runtime to try.
        relay: Carries the socket into a sandbox, where the engine does not.

    Raises:
        EngineError: What failed, and where to read what to do.
    """
    home, gateway = place.state / "proof", place.sockets / "proof"
    slot = SlotSpec(
        instance=place.instance,
        slot=place.number,
        uid=place.uid,
        gid=place.gid,
        workspace=home / "workspace",
        task=home / "task",
        gateway=gateway,
        out=home / "out",
        deadline=0,
        runtime=name,
        command=(*PROGRAM[:2], "-c", _PROGRAM),
    )
    try:
        await asyncio.to_thread(_make, slot)
        said, peers, missing = await _run(runtime, slot, image_id, relay or _bound)
        wrote = await asyncio.to_thread(_read, slot.workspace / "proof")
    finally:
        await asyncio.to_thread(_unmake, (home, gateway))
    _judge(await runtime.facts(), slot, said, wrote=wrote == _WROTE)
    return tuple(dict.fromkeys((*missing, *_shown(slot.runtime, said, peers))))


@asynccontextmanager
async def _bound(slot: SlotSpec, _image_id: str) -> AsyncIterator[SlotSpec]:
    yield slot


async def _run(runtime: Runtime, slot: SlotSpec, image_id: str, relay: Relay) -> tuple[dict[str, Any], list[int], tuple[str, ...]]:
    """Return what the container said, the processes that called, as the host sees them, and what the engine itself says is missing."""
    peers: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(_pid_of(writer.get_extra_info("socket")))
        if await reader.read(1):
            writer.write(b"!")
        writer.close()

    server = await asyncio.start_unix_server(answer, slot.gateway / "gateway.sock")
    (slot.gateway / "gateway.sock").chmod(0o666)
    async with server, relay(slot, image_id) as reachable:
        box = await runtime.stand_by(reachable, image_id)
        try:
            async with asyncio.timeout(PROOF_S):
                await box.wait()
            return _said((await box.log())[:_SAID_BYTES_MAX].decode(errors="replace")), peers, box.missing
        except TimeoutError as error:
            raise EngineError(f"a first container did not end within {PROOF_S:.0f} s; see the engine's log and {DOCUMENT}") from error
        finally:
            await box.remove()


def _pid_of(connection: socket.socket) -> int:
    """Return the caller's process as seen from here, 0 if it is not visible."""
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def _said(log: str) -> dict[str, Any]:
    """Return what the program printed; a program that did not get so far leaves what stopped it."""
    try:
        said = json.loads(log)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"start": " ".join(log.split())[-300:] or "it printed nothing"}


def _judge(facts: EngineFacts, slot: SlotSpec, said: dict[str, Any], *, wrote: bool) -> None:
    """Raise what makes every job fail, or a wall we promise that this runtime does not make."""
    which = "" if slot.runtime == "runc" else f" with runtime {slot.runtime}"
    where = f"the engine at {facts.endpoint}{which} cannot serve here"
    problems = " and ".join(f"{what}: {said[what]}" for what in ("start", "write", "connect") if said.get(what))
    if problems.startswith("connect: ") and slot.runtime not in facts.gvisor:
        raise NoSocketError(f"{where}: in a first container, {problems} (as uid {slot.uid}); see {DOCUMENT}")
    if problems:
        raise EngineError(f"{where}: in a first container, {problems} (as uid {slot.uid}); see {DOCUMENT}")
    if not wrote:
        raise EngineError(f"{where}: what a container writes does not arrive in {slot.workspace}; is it on another machine? see {DOCUMENT}")
    walls = {
        "it has a network interface": bool(set(said.get("interfaces") or ()) - {"lo"}),
        "it has capabilities": bool(said.get("capabilities")),
        "its root is not read-only": said.get("root") is None,
    }
    broken = " and ".join(wall for wall, is_broken in walls.items() if is_broken)
    if broken:
        raise EngineError(f"{where}: a first container shows that {broken}; see {DOCUMENT}")


def _shown(runtime: str, said: dict[str, Any], peers: list[int]) -> list[str]:
    """Return which protections the container showed to be missing."""
    lines = []
    if len(peers) < 2 or 0 in peers or len(set(peers)) < len(peers):
        lines.append(NO_PIN.format(runtime=runtime))
    if said.get("vsock") != os.strerror(1):  # our filter's own answer; a kernel that has no such sockets answers otherwise
        lines.append(NO_FILTER.format(runtime=runtime))
    if said.get("landlock", 0) < 1:
        lines.append(NO_LANDLOCK.format(runtime=runtime))
    return lines


def _make(slot: SlotSpec) -> None:
    _unmake((slot.workspace.parent, slot.gateway))
    for directory in (slot.workspace, slot.task, slot.out, slot.gateway):
        directory.mkdir(parents=True, mode=0o711)
        if os.geteuid() == 0:
            os.chown(directory, slot.uid, slot.gid)


def _read(path: Path) -> str:
    try:
        return path.read_text()[:100]
    except OSError:
        return ""


def _unmake(directories: tuple[Path, ...]) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
