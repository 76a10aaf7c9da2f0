"""The stack's log has a bound, although its processes hold it open for as long as they live."""

import stat
from pathlib import Path

import pytest

from supervisor.stack.log_file import LOG_BYTES_MAX, keep_bounded


@pytest.mark.parametrize(("size_bytes", "is_moved"), [(0, False), (LOG_BYTES_MAX, False), (LOG_BYTES_MAX + 1, True)])
def test_a_log_is_emptied_beyond_its_limit(tmp_path: Path, size_bytes: int, is_moved: bool):
    """What was in it lies beside it, for its owner only."""
    log = tmp_path / "stack.log"
    log.write_bytes(b"a" * size_bytes)

    assert keep_bounded(log) is is_moved

    aside = tmp_path / "stack.log.1"
    assert (log.stat().st_size, aside.exists()) == (0 if is_moved else size_bytes, is_moved)
    if is_moved:
        assert (aside.stat().st_size, stat.S_IMODE(aside.stat().st_mode)) == (size_bytes, 0o600)


def test_whoever_holds_it_open_goes_on_at_its_beginning(tmp_path: Path):
    """No hole of zeros, and the older content is replaced, not added to."""
    log = tmp_path / "stack.log"
    with log.open("ab", buffering=0) as held:
        for letter in b"xy":
            held.write(bytes([letter]) * (LOG_BYTES_MAX + 1))
            assert keep_bounded(log)
        held.write(b"after\n")

    assert log.read_bytes() == b"after\n"
    assert (tmp_path / "stack.log.1").read_bytes() == b"y" * (LOG_BYTES_MAX + 1)


def test_without_a_log_there_is_nothing_to_do(tmp_path: Path):
    """A stack started by somebody else's hand writes elsewhere."""
    assert not keep_bounded(tmp_path / "stack.log")
