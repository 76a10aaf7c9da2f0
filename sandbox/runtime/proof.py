"""One container before the first job, to see that this engine can serve us: it writes a file and knocks at a socket (DECISIONS G15).

What fails here would fail every job later with a worse message: an engine on another machine, one that maps users, a
security module that keeps containers off sockets. Not a test of the walls: those are `tests/security`.
"""

import asyncio
import os
import shutil
from pathlib import Path

from sandbox.contract.errors import EngineError
from sandbox.runtime.container_spec import GATEWAY, PROGRAM, WORKSPACE, EngineFacts, Runtime, SlotSpec

DOCUMENT = "docs/engines.md"
PROOF_S = 60.0
_WROTE = "written"
_PROGRAM = f"""
import socket
for what, attempt in (
    ("write", lambda: open("{WORKSPACE}/proof", "w").write("{_WROTE}")),
    ("connect", lambda: socket.socket(socket.AF_UNIX).connect("{GATEWAY}/gateway.sock")),
):
    try:
        attempt()
    except OSError as error:
        print(what + ": " + str(error.strerror))
"""


async def prove_engine(runtime: Runtime, image_id: str, *, instance: str, state: Path, sockets: Path, uid: int, gid: int) -> None:
    """Run one sandbox in directories like those of a slot and see that it reaches them; takes as long as one cold start.

    Args:
        runtime: The engine in question.
        image_id: The agent image.
        instance: Label of the container.
        state: Where slots' directories live; a directory `proof` is made in it and removed.
        sockets: Where slots' sockets live; likewise.
        uid: A slot's user.
        gid: A slot's group.

    Raises:
        EngineError: What failed, and where to read what to do.
    """
    home, gateway = state / "proof", sockets / "proof"
    slot = SlotSpec(
        instance=instance,
        slot=0,
        uid=uid,
        gid=gid,
        workspace=home / "workspace",
        task=home / "task",
        gateway=gateway,
        out=home / "out",
        deadline=0,
        command=(*PROGRAM[:2], "-c", _PROGRAM),
    )
    try:
        await asyncio.to_thread(_make, slot)
        said = await _run(runtime, slot, image_id)
        wrote = await asyncio.to_thread(_read, slot.workspace / "proof")
    finally:
        await asyncio.to_thread(_unmake, (home, gateway))
    _judge(await runtime.facts(), slot, said, wrote=wrote == _WROTE)


async def _run(runtime: Runtime, slot: SlotSpec, image_id: str) -> str:
    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(hang_up, slot.gateway / "gateway.sock")
    async with server:
        (slot.gateway / "gateway.sock").chmod(0o666)
        box = await runtime.stand_by(slot, image_id)
        try:
            async with asyncio.timeout(PROOF_S):
                await box.wait()
            return (await box.log()).decode(errors="replace")
        except TimeoutError as error:
            raise EngineError(f"a first container did not end within {PROOF_S:.0f} s; see the engine's log and {DOCUMENT}") from error
        finally:
            await box.remove()


def _judge(facts: EngineFacts, slot: SlotSpec, said: str, *, wrote: bool) -> None:
    problems = " and ".join(line for line in said.splitlines() if line)
    where = f"the engine at {facts.endpoint} cannot serve here"
    if problems:
        raise EngineError(f"{where}: in a first container, {problems} (as uid {slot.uid}); see {DOCUMENT}")
    if not wrote:
        raise EngineError(f"{where}: what a container writes does not arrive in {slot.workspace}; is it on another machine? see {DOCUMENT}")


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
