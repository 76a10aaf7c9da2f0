"""Reports are read from a directory an agent could write: nothing is followed, everything is bounded."""

import os
from pathlib import Path

import pytest

from sandbox.executor.outputs import REPORT_BYTES_MAX, read_report
from sandbox.executor.slots import Slot


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    made = Slot(0, None, tmp_path, tmp_path / "s")
    made.out.mkdir()
    return made


def test_a_regular_report_is_read(slot: Slot):
    """Also below a directory the check made."""
    (slot.out / "deep").mkdir()
    (slot.out / "deep" / "pytest.xml").write_bytes(b"<testsuites/>")

    assert read_report(slot, "deep/pytest.xml") == b"<testsuites/>"


@pytest.mark.parametrize("relative", ["../secret", "/etc/passwd", "a//b", "./x", ""])
def test_a_path_that_climbs_is_refused(slot: Slot, relative: str):
    """The path comes from the repository's configuration, which is not trusted either."""
    with pytest.raises(ValueError, match="climbs"):
        read_report(slot, relative)


def test_a_link_is_not_followed_at_any_component(slot: Slot, tmp_path: Path):
    """Neither the file nor a directory on the way may be a link."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("k")
    (slot.out / "report").symlink_to(tmp_path / "secret" / "key")
    (slot.out / "dir").symlink_to(tmp_path / "secret")

    for relative in ("report", "dir/key"):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
            read_report(slot, relative)


def test_a_fifo_and_a_hard_link_are_refused_at_once(slot: Slot):
    """A FIFO would hang an ordinary open; a second name may be somebody else's file."""
    os.mkfifo(slot.out / "fifo")
    (slot.out / "one").write_text("x")
    os.link(slot.out / "one", slot.out / "two")

    for relative in ("fifo", "two"):
        with pytest.raises(ValueError, match="regular file"):
            read_report(slot, relative)


def test_a_report_of_the_limit_is_read_and_a_larger_one_refused_unread(slot: Slot):
    """A sparse file of one byte more than 16 MiB is judged by its size."""
    (slot.out / "max").touch()
    os.truncate(slot.out / "max", REPORT_BYTES_MAX)
    (slot.out / "more").touch()
    os.truncate(slot.out / "more", REPORT_BYTES_MAX + 1)

    assert len(read_report(slot, "max")) == REPORT_BYTES_MAX
    with pytest.raises(ValueError, match="at most"):
        read_report(slot, "more")
