"""Too little room on the disk holds the intake, says so, and lets go again; on a real small file system."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.executor.disk import DiskWatch, free_mib
from sandbox.executor.readiness import Readiness
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.fakes.wire_data import wait_until
from tests.unit.executor.a_host import a_host
from tests.unit.executor.test_daemon import Desk, pulls, working


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.root
@pytest.mark.parametrize(("used_mib", "is_held"), [(12, False), (13, True)])
def test_jobs_are_held_just_below_the_floor(small: Path, used_mib: int, is_held: bool):
    """At 20 MiB free with a floor of 20 they are taken, at 19 not."""
    ready = Readiness()
    (small / "file").write_bytes(bytes(used_mib << 20))

    DiskWatch(small, 20, ready, 1).look()

    assert free_mib(small) == 32 - used_mib
    assert bool(ready.held) is is_held


def test_a_floor_of_zero_holds_nothing_and_a_disk_that_cannot_be_read_does(tmp_path: Path):
    """Nobody knows whether there is room."""
    ready = Readiness()

    DiskWatch(tmp_path, 0, ready, 1).look()
    assert ready.held == ""
    DiskWatch(tmp_path / "gone", 0, ready, 1).look()

    assert "cannot be read" in ready.held


@pytest.mark.root
async def test_a_full_disk_stops_the_pulling_and_room_starts_it_again(small: Path):
    """The daemon on that file system: the pull that waits is given up, the life sign says why, and then it goes on."""
    broker = MemoryBroker(desk=Desk())

    async def said(text: str) -> bool:
        return text in broker.life_signs["ex1"][1].held if text else broker.life_signs["ex1"][1].held == ""

    async def pulling(count: int) -> bool:
        return pulls(broker) == count

    async with MemoryExecutorLink.connect(broker, "ex1") as link, a_host(small, link, disk_floor_mib=20) as host, working(host):
        await wait_until(lambda: pulling(1), "it pulls")

        (small / "ballast").write_bytes(bytes(20 << 20))
        await wait_until(lambda: said("disk below its floor"), "it says so")
        await wait_until(lambda: pulling(0), "the pull is given up")
        (small / "ballast").unlink()

        await wait_until(lambda: pulling(1), "it pulls again")
        await wait_until(lambda: said(""), "it says so")
