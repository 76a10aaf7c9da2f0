"""Slots: numbers leased by flock, socket paths that fit, and uids that no two executors share."""

import asyncio
import os
from pathlib import Path

import pytest

from sandbox.contract.errors import UsageError
from sandbox.executor.slots import SOCKET_PATH_BYTES_MAX, UID_BASE, SlotPool, private_directory


def test_two_executors_on_one_host_never_share_a_uid(tmp_path: Path):
    """The numbers are leased in one directory, so the second pool gets the next ones."""
    locks, sockets = tmp_path / "locks", Path("/tmp") / tmp_path.name[:8]
    first = SlotPool.lease(2, state=tmp_path / "a", sockets=sockets, locks=locks)
    second = SlotPool.lease(2, state=tmp_path / "b", sockets=sockets, locks=locks)

    uids = [slot.uid for slot in (*first.slots, *second.slots)]

    assert uids == [UID_BASE, UID_BASE + 1, UID_BASE + 2, UID_BASE + 3]
    first.close()
    second.close()


def test_a_closed_pool_gives_its_numbers_back(tmp_path: Path):
    """A number is free again as soon as its holder is gone."""
    sockets = Path("/tmp") / tmp_path.name[:8]
    SlotPool.lease(1, state=tmp_path, sockets=sockets, locks=tmp_path / "l").close()

    again = SlotPool.lease(1, state=tmp_path, sockets=sockets, locks=tmp_path / "l")

    assert again.slots[0].uid == UID_BASE
    again.close()


def test_without_root_a_slot_has_no_uid_of_its_own(tmp_path: Path):
    """The caller's uid serves, and the record will say so."""
    pool = SlotPool.lease(1, state=tmp_path, sockets=Path("/tmp") / tmp_path.name[:8], locks=None)

    assert pool.slots[0].uid is None
    pool.close()


def _sockets_of_length(path_bytes: int) -> Path:
    tail = "/0/gateway.sock"
    return Path("/tmp/" + "x" * (path_bytes - len("/tmp/") - len(tail)))


def test_a_socket_path_of_exactly_the_limit_is_taken_and_one_byte_more_is_refused(tmp_path: Path):
    """sockaddr_un holds 108 bytes; ours stay at 60 on both sides of the mount."""
    fits = _sockets_of_length(SOCKET_PATH_BYTES_MAX)
    pool = SlotPool.lease(1, state=tmp_path, sockets=fits, locks=None)
    pool.close()

    assert not fits.exists()

    with pytest.raises(UsageError, match="longer than 60 bytes"):
        SlotPool.lease(1, state=tmp_path, sockets=_sockets_of_length(SOCKET_PATH_BYTES_MAX + 1), locks=None)


def test_a_directory_somebody_else_prepared_is_refused(tmp_path: Path):
    """In /tmp anybody may make the name first: as a link, or open to all; a new one is ours alone."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)

    for name in ("open", "link"):
        with pytest.raises(UsageError, match="only you may enter"):
            private_directory(tmp_path / name)
    assert private_directory(tmp_path / "new").stat().st_mode & 0o777 == 0o700


async def test_a_slot_serves_one_attempt_at_a_time(tmp_path: Path):
    """A second taker waits until the first is done."""
    pool = SlotPool.lease(1, state=tmp_path, sockets=Path("/tmp") / tmp_path.name[:8], locks=None)

    async with pool.take():
        waiting = asyncio.create_task(pool.take().__aenter__())
        await asyncio.sleep(0.02)
        assert not waiting.done()

    assert (await waiting).number == 0
    pool.close()


def test_the_slots_of_an_earlier_process_are_left_over_when_others_took_its_numbers(tmp_path: Path):
    """After a kill the next process may get other numbers: what lies in the old ones still has to be salvaged and cleaned."""
    sockets, locks = Path("/tmp") / f"left-{os.getpid()}", tmp_path / "locks"
    killed = SlotPool.lease(2, state=tmp_path / "a", sockets=sockets, locks=locks)
    for descriptor in killed._locks:
        os.close(descriptor)
    neighbour = SlotPool.lease(1, state=tmp_path / "b", sockets=sockets / "n", locks=locks)

    again = SlotPool.lease(2, state=tmp_path / "a", sockets=sockets, locks=locks)

    assert [slot.number for slot in again.slots] == [1, 2]
    assert [(slot.number, slot.home) for slot in again.left_over] == [(0, tmp_path / "a" / "slots" / "0")]
    for pool in (neighbour, again):
        pool.close()
    assert not sockets.exists()
