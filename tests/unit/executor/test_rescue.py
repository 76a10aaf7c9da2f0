"""The note of a slot: there while an attempt runs, only its owner's to read, and worth something only where its workspace is."""

from pathlib import Path
from typing import Any, cast

import pytest

from sandbox.contract.wire import ClaimReply, Delivery
from sandbox.executor.rescue import left_in, remembered
from sandbox.executor.slots import Slot
from sandbox.runtime.container_spec import Sandbox
from sandbox.workspace.provision import Manifest
from tests.fakes.wire_data import SHA, a_job


class Box:
    container_id = "c0ffee"
    missing = ("no AppArmor",)


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    made = Slot(0, None, tmp_path, tmp_path / "s")
    made.workspace.mkdir()
    return made


def noting(slot: Slot) -> Any:
    delivery = Delivery(job=a_job("implement"), ack_subject="$JS.ACK.1")
    grant = ClaimReply(decision="granted", attempt=2, token="secret")
    return remembered(slot, delivery, grant, Manifest(commit=SHA, files=1, bytes_written=1), cast(Sandbox, Box()))


async def test_an_attempt_that_was_cut_off_is_found_and_one_that_ended_is_not(slot: Slot):
    """The note says which attempt, with which token, and is 0600; a copy from the middle of the block stands for a kill."""
    async with noting(slot):
        note, mode = slot.lease_file.read_bytes(), slot.lease_file.stat().st_mode & 0o777
    assert left_in(slot) is None

    slot.lease_file.write_bytes(note)

    found = left_in(slot)
    assert found is not None
    assert (found.attempt, found.token, found.container_id, found.delivery.job.stage) == (2, "secret", "c0ffee", "implement")
    assert mode == 0o600


async def test_another_workspace_at_the_same_path_is_nobodys_work(slot: Slot):
    """After a reboot or an unmount the directory is empty: to seal it would say that the agent deleted everything."""
    async with noting(slot):
        note = slot.lease_file.read_bytes()
    slot.lease_file.write_bytes(note)
    slot.workspace.rename(slot.home / "elsewhere")
    slot.workspace.mkdir()

    assert left_in(slot) is None


@pytest.mark.parametrize("text", ["", "{", "{}", "null"])
def test_a_torn_note_is_none(slot: Slot, text: str):
    """A crash may leave anything."""
    slot.lease_file.write_text(text)

    assert left_in(slot) is None
