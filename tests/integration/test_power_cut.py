"""A power cut: what the broker acknowledged is on the disk, not in a cache; the disk is an image copied while events are appended.

The server is stopped in mid-flight and the image copied before anything more can reach it: what was only in the file system's
cache is lost, as it would be without current. Commits of the file system on its own are put off, so that nothing but the
server's own fsync carries data to the image.
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from sandbox.bus import NatsSupervisorLink
from sandbox.contract.errors import BrokerError
from supervisor.store.broker.admission import admit_executor, admitted, prepare
from supervisor.store.broker.child import bound_to_us
from supervisor.store.broker.embedded import find_server
from supervisor.store.broker.listen import Listen
from supervisor.store.broker.site import Site
from supervisor.store.log.jetstream import JetStreamEventLog
from tests.fakes.wire_data import RUN, an_event, number_of

IMAGE_MIB = 384
EVENTS = 120
SYNCED = "sync_interval: always\n"

pytestmark = pytest.mark.root


@pytest.mark.parametrize("synced", [True, False], ids=["as we configure it", "control: the server's default"])
async def test_no_acknowledged_event_is_lost(tmp_path: Path, synced: bool) -> None:
    """Every event that was acknowledged before the cut is in the log afterwards, in order; by the server's default some are not."""
    image, copy = tmp_path / "disk", tmp_path / "disk-after-the-cut"
    _make_image(image)
    with _mounted(image, tmp_path / "before") as before:
        acknowledged = await _append_until_the_cut(before / "nats", image, copy, synced=synced)
    with _mounted(copy, tmp_path / "after") as after:
        stored = await _read_all(after / "nats")

    assert len(acknowledged) >= EVENTS
    if synced:
        assert stored[: len(acknowledged)] == acknowledged
    else:
        assert stored != acknowledged == list(range(len(acknowledged)))
        assert len(stored) < len(acknowledged)


async def test_an_admission_survives_too(tmp_path: Path) -> None:
    """Whose key was handed out is still known after the cut."""
    image, copy = tmp_path / "disk", tmp_path / "disk-after-the-cut"
    _make_image(image)
    with _mounted(image, tmp_path / "before") as before:
        prepare(before / "nats", Listen(port=_free_port()))
        await admit_executor(before / "nats", "ex1")
        key = Site.there(before / "nats").supervisor
        _copy(image, copy)
    with _mounted(copy, tmp_path / "after") as after:
        assert [user.name for user in admitted(after / "nats")] == ["ex1"]
        assert Site.there(after / "nats").supervisor == key


async def _append_until_the_cut(directory: Path, image: Path, copy: Path, *, synced: bool) -> list[int]:
    """Append events one after the other; in the middle, copy the disk. Return what was acknowledged until then."""
    acknowledged: list[int] = []
    async with _server(directory, synced=synced) as pid, NatsSupervisorLink.connect(Site.there(directory).supervisor) as link:
        log = JetStreamEventLog(link.connection)

        async def append() -> None:
            seq = 0
            with suppress(BrokerError):  # the cut
                for number in range(100 * EVENTS):
                    seq = await log.append(an_event(number), seq)
                    acknowledged.append(number)

        appending = asyncio.create_task(append())
        async with asyncio.timeout(60):
            while len(acknowledged) < EVENTS:
                await asyncio.sleep(0.001)
        until_now = list(acknowledged)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.to_thread(_copy, image, copy)
        os.kill(pid, signal.SIGCONT)
        appending.cancel()
        await asyncio.wait({appending})
    return until_now


async def _read_all(directory: Path) -> list[int]:
    async with _server(directory, synced=True), NatsSupervisorLink.connect(Site.there(directory).supervisor) as link:
        return [number_of(event) for event in await JetStreamEventLog(link.connection).read(RUN)]


@asynccontextmanager
async def _server(directory: Path, *, synced: bool) -> AsyncIterator[int]:
    """Run a broker as we configure it, or with the server's default; yield its process id."""
    config = prepare(directory, Listen(port=_free_port()))
    text = config.read_text()
    assert SYNCED in text
    config.write_text(text if synced else text.replace(SYNCED, ""))
    server = await asyncio.create_subprocess_exec(
        *bound_to_us([str(find_server(None)), "-c", str(config)]), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield server.pid
    finally:
        server.terminate()
        await server.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _make_image(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
    _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))


@contextmanager
def _mounted(image: Path, where: Path) -> Iterator[Path]:
    where.mkdir()
    _run("mount", "-o", "loop,commit=300", str(image), str(where))
    try:
        yield where
    finally:
        _run("umount", str(where))


def _copy(image: Path, copy: Path) -> None:
    _run("cp", "--sparse=always", str(image), str(copy))


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
