"""What the host does with what a sandbox left, by the very functions jobs' outputs go through, and by careless ones as control."""

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from sandbox.contract.errors import AndonError, RejectedTree
from sandbox.executor.outputs import read_report
from sandbox.executor.prove.attack.plants import GIT_TREE
from sandbox.executor.prove.report import Said
from sandbox.executor.prove.scene import Scene
from sandbox.executor.slots import Slot
from sandbox.workspace.provision import Manifest
from sandbox.workspace.seal import seal

_EXPECTED = {".gitattributes", "notes.txt"}
_PROMPT_S = 2.0
_STUCK_S = 0.3
"""A read that takes as long waits for a writer that never comes."""


async def read_plants(scene: Scene, slot: Slot, manifest: Manifest, *, is_planted: bool) -> dict[str, Said]:
    """Seal each tree the attack left, read each report, and say what was executed, followed or waited for.

    `is_planted` says that FIFOs and sockets were made inside; a runtime may keep them to itself.
    """
    return {
        "git.executed": await _looked(_sealed_git(scene, slot, manifest)),
        "outputs.link": await _looked(_read_links(scene, slot, manifest)),
        "outputs.fifo": await _looked(_read_fifos(scene, slot, manifest, is_planted=is_planted)),
    }


async def read_carelessly(scene: Scene, slot: Slot) -> dict[str, Said]:
    """Read the same reports as one does who trusts what is there: the control. Only while they are there."""
    link, fifo = slot.out / "link.xml", slot.out / "fifo.xml"
    return {
        "outputs.link": await asyncio.to_thread(_followed, link, scene.secret_file),
        "outputs.fifo": await _stuck(fifo if fifo.is_fifo() else _fifo_of_ours(scene)),
    }


def kernel_release() -> str:
    """Return the release of this host's kernel."""
    return os.uname().release


async def _looked(look: Coroutine[Any, Any, Said]) -> Said:
    """Return what a look came to; one that broke off shows nothing, e.g. because nothing was planted."""
    try:
        return await look
    except (AndonError, OSError) as error:
        return Said(won=False, said=f"nothing is proved: {error}", made=False)


async def _sealed_git(scene: Scene, slot: Slot, manifest: Manifest) -> Said:
    sealed = await seal(scene.mirror, manifest, slot.workspace / GIT_TREE, message="prove")
    if scene.canary.exists():
        return Said(won=True, said="sealing executed what lay in the tree")
    found = {change.path for change in sealed.changes}
    if found != _EXPECTED:
        return Said(won=True, said=f"the commit holds {sorted(found)}")
    nested = await _refusal(scene, slot, manifest, "git-nested")
    if not nested or scene.canary.exists():
        return Said(won=True, said="a repository inside the tree was taken in")
    return Said(won=False, said=f"sealed byte for byte, nothing executed; inside a tree: {nested}")


async def _read_links(scene: Scene, slot: Slot, manifest: Manifest) -> Said:
    refused = await _refusal(scene, slot, manifest, "link")
    if not refused:
        return Said(won=True, said="a link out of the tree was taken in")
    report = await _report_refusal(slot, "link.xml")
    return Said(won=not report, said=f"{refused}; report: {report}" if report else "a link was followed and read as a report")


async def _read_fifos(scene: Scene, slot: Slot, manifest: Manifest, *, is_planted: bool) -> Said:
    if is_planted and not [path for name in ("fifo", "socket") for path in (slot.workspace / name).iterdir()]:
        return Said(won=False, said="made inside, never seen by the host")
    began = time.monotonic()
    refused = [await _refusal(scene, slot, manifest, name) for name in ("fifo", "socket")]
    report = await _report_refusal(slot, "fifo.xml")
    took_s = time.monotonic() - began
    if not all(refused) or not report:
        return Said(won=True, said="a special file was taken in")
    return Said(won=took_s > _PROMPT_S, said=f"{'; '.join(refused)}; report: {report}; in {took_s * 1000:.0f} ms")


async def _refusal(scene: Scene, slot: Slot, manifest: Manifest, name: str) -> str:
    """Return why a tree was refused; empty: it was taken in."""
    try:
        await seal(scene.mirror, manifest, slot.workspace / name, message="prove")
    except RejectedTree as refused:
        return str(refused)
    return ""


async def _report_refusal(slot: Slot, name: str) -> str:
    try:
        await asyncio.wait_for(asyncio.to_thread(read_report, slot, name), _PROMPT_S)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return str(error)
    return ""


def _followed(link: Path, secret: Path) -> Said:
    try:
        is_read = link.read_text() == secret.read_text()
    except OSError as error:
        return Said(won=False, said=f"the careless read failed too: {error.strerror}")
    return Said(won=is_read, said="open() read a file of the host through it")


def _fifo_of_ours(scene: Scene) -> Path:
    fifo = scene.home / "control" / "fifo"
    os.mkfifo(fifo)
    return fifo


async def _stuck(fifo: Path) -> Said:
    """Open a FIFO for reading like a file, see that it waits, and then let it go by opening the other end."""
    reading = asyncio.ensure_future(asyncio.to_thread(fifo.read_bytes))
    await asyncio.wait({reading}, timeout=_STUCK_S)
    was_stuck = not reading.done()
    deadline = time.monotonic() + _PROMPT_S
    while not reading.done() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # nobody reads yet
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        await asyncio.wait({reading}, timeout=0.02)
    await reading
    return Said(won=was_stuck, said="open() waited for it, and would have for ever" if was_stuck else "the careless read did not wait")
