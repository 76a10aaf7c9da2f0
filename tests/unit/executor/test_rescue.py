"""The note of a slot: there until the result is kept, only its owner's to read; what it finds is salvaged or said to be lost."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import cast

import pytest

from sandbox.contract.errors import InfrastructureError
from sandbox.contract.result import Outcome
from sandbox.contract.wire import ClaimReply, Delivery
from sandbox.executor.config import Host
from sandbox.executor.rescue import GONE, SALVAGED, Note, Place, left_in, promised, promised_in, remembered, rescued, unbegun
from sandbox.executor.slots import Slot
from sandbox.runtime.container_spec import Sandbox
from sandbox.workspace.provision import Manifest
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.fakes.wire_data import SHA, a_job, a_result
from tests.unit.executor.a_host import a_host

DELIVERY = Delivery(job=a_job("implement"), ack_subject="$JS.ACK.1")
GRANT = ClaimReply(decision="granted", attempt=2, token="secret")
MANIFEST = Manifest(commit=SHA, files=1, bytes_written=1)


class Box:
    container_id = "c0ffee"
    missing = ("no AppArmor",)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with MemoryExecutorLink.connect(MemoryBroker(), "ex1") as link, a_host(tmp_path, link) as made:
        yield made


@pytest.fixture
def slot(host: Host) -> Slot:
    made = host.slots.slots[0]
    made.workspace.mkdir()
    return made


def noting(host: Host, slot: Slot) -> AbstractAsyncContextManager[Note]:
    return remembered(host, slot, DELIVERY, GRANT, MANIFEST, cast(Sandbox, Box()))


async def cut_off(host: Host, slot: Slot) -> None:
    """Begin an attempt that nobody settles."""
    with pytest.raises(InfrastructureError):
        async with noting(host, slot):
            raise InfrastructureError("the engine broke")


async def test_an_attempt_that_was_cut_off_is_found(host: Host, slot: Slot):
    """The note says which attempt, with which token, and is 0600."""
    await cut_off(host, slot)

    found = left_in(slot)

    assert found is not None
    assert (found.attempt, found.token, found.container_id, found.delivery.job.stage) == (2, "secret", "c0ffee", "implement")
    assert slot.lease_file.stat().st_mode & 0o777 == 0o600
    assert slot.has_work()


async def test_a_settled_attempt_is_found_no_more_and_its_result_is_on_disk(host: Host, slot: Slot):
    """First the result, then the note: a crash in between delivers what a rescue would have found."""
    async with noting(host, slot) as note:
        await note.settle(a_result())

    assert left_in(slot) is None
    assert not slot.has_work()
    assert await host.outbox.left() == [a_result()]


async def test_a_result_that_cannot_be_kept_leaves_the_work_in_the_slot(host: Host, slot: Slot):
    """A full disk must not cost the work."""
    (host.config.state / "results").write_text("not a directory")

    with pytest.raises(InfrastructureError):
        async with noting(host, slot) as note:
            await note.settle(a_result())

    assert slot.has_work()


async def test_work_that_is_gone_is_said_to_be_lost(host: Host, slot: Slot):
    """After a reboot the directory is empty: to seal it would say that the agent deleted everything, to be silent that nothing was."""
    await cut_off(host, slot)
    slot.workspace.rename(slot.home / "elsewhere")
    slot.workspace.mkdir()

    lease = left_in(slot)
    assert lease is not None
    result = await rescued(host, slot, lease)

    assert (result.outcome, result.attempt, result.token, result.commit) == (Outcome.LOST, 2, "secret", None)
    assert GONE in result.reason


async def test_a_checks_job_has_nothing_to_seal(host: Host, slot: Slot):
    """Its workspace is only read; the attempt is lost, its work not."""
    await cut_off(host, slot)

    lease = left_in(slot)
    assert lease is not None
    result = await rescued(host, slot, lease, "the engine broke")

    assert result.reason == f"the engine broke; {SALVAGED}"


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({}, True),
        ({"inode": 2}, False),
        ({"device": 2}, False),
        ({"boot": "b", "device": 2}, True),
        ({"boot": "b", "inode": 2}, False),
        ({"boot": "b", "is_mounted": True}, False),
    ],
)
def test_a_plain_directory_outlives_a_reboot_and_a_mounted_one_does_not(changed: dict[str, object], same: bool):
    """Devices are numbered anew at each start; inodes of a disk are not."""
    then = Place(boot="a", device=1, inode=1, is_mounted=False)

    assert then.is_same(then.model_copy(update=changed)) is same


def test_a_mounted_workspace_is_the_same_only_within_one_boot():
    """It was memory."""
    then = Place(boot="a", device=1, inode=1, is_mounted=True)

    assert then.is_same(then)
    assert not then.is_same(then.model_copy(update={"boot": "b"}))


@pytest.mark.parametrize("text", ["", "{", "{}", "null"])
def test_a_torn_note_is_none(slot: Slot, text: str):
    """A crash may leave anything."""
    slot.lease_file.write_text(text)

    assert left_in(slot) is None


async def test_an_attempt_that_was_cut_off_before_its_sandbox_is_reported_as_lost(host: Host, slot: Slot):
    """Killed right after its grant, an executor that is back has to say so: it lives, so nobody else will."""
    with pytest.raises(InfrastructureError):
        async with promised(slot, DELIVERY, GRANT):
            raise InfrastructureError("killed")

    found = promised_in(slot)

    assert found is not None
    assert slot.grant_file.stat().st_mode & 0o777 == 0o600
    result = unbegun(host, slot, found)
    assert (result.job_id, result.attempt, result.token, result.outcome) == (DELIVERY.job.job_id, 2, "secret", Outcome.LOST)


async def test_an_attempt_that_went_on_leaves_no_promise(host: Host, slot: Slot):
    """Once there is a note it says more; a settled attempt must never be reported as one that had not begun."""
    async with promised(slot, DELIVERY, GRANT):
        async with noting(host, slot) as note:
            assert promised_in(slot) is None
            await note.settle(a_result())
        assert promised_in(slot) is None

    assert promised_in(slot) is None
    assert left_in(slot) is None
