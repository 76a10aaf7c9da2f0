"""The state directory: whose it is, which version, and the directory of the sockets."""

import os
from pathlib import Path

import pytest

from supervisor.config import StateDirectory, write_atomically
from supervisor.errors import NewerState, UsageError


def test_a_new_state_directory_is_its_owners_alone(tmp_path: Path) -> None:
    """0700, with a version."""
    state = StateDirectory.open(tmp_path / "a" / "andon")

    assert state.root.stat().st_mode & 0o777 == 0o700
    assert (state.root / "VERSION").read_text() == "1\n"


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    """An older release must not touch what it does not understand, not even to read."""
    (tmp_path / "VERSION").write_text("7\n")

    for enter in (StateDirectory.open, StateDirectory.reading):
        with pytest.raises(NewerState, match="has version 7, this andon knows 1"):
            enter(tmp_path)


def test_an_older_version_is_migrated_step_by_step(tmp_path: Path) -> None:
    """Each step is recorded, so that a crash in between goes on from there."""
    (tmp_path / "VERSION").write_text("1\n")
    seen: list[str] = []

    def step(name: str) -> None:
        seen.append(f"{name} from {(tmp_path / 'VERSION').read_text().strip()}")

    StateDirectory.open(tmp_path, version=3, migrations={1: lambda _: step("one"), 2: lambda _: step("two")})

    assert seen == ["one from 1", "two from 2"]
    assert (tmp_path / "VERSION").read_text() == "3\n"


def test_an_unreadable_version_is_not_overwritten(tmp_path: Path) -> None:
    """Somebody else's directory stays as it is."""
    (tmp_path / "VERSION").write_text("12-beta\n")

    with pytest.raises(UsageError, match="holds '12-beta', not a number"):
        StateDirectory.open(tmp_path)
    assert (tmp_path / "VERSION").read_text() == "12-beta\n"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    """A directory that belongs to someone else is never used."""
    os.chown(tmp_path, 12345, 12345)

    with pytest.raises(UsageError, match="belongs to another user"):
        StateDirectory.open(tmp_path)


def test_reading_makes_nothing(tmp_path: Path) -> None:
    """A reading verb on a fresh machine leaves no trace."""
    state = StateDirectory.reading(tmp_path / "andon")

    assert state.run_ids() == []
    assert not (tmp_path / "andon").exists()


def test_only_run_ids_are_runs(tmp_path: Path) -> None:
    """Stray files among the runs are ignored; ids are in order of time."""
    state = StateDirectory.open(tmp_path)
    for name in ("01jd8m6w2z", "01jd8m6w2x", "notes.txt", "01jd8m6w2il", ".tmp"):
        (state.runs / name).mkdir(parents=True)

    assert state.run_ids() == ["01jd8m6w2x", "01jd8m6w2z"]


def test_consent_is_to_exact_bytes(tmp_path: Path) -> None:
    """Another digest is not trusted."""
    state = StateDirectory.open(tmp_path)

    state.trust("a" * 64, "/home/ada/notes at 1234")

    assert state.trusts("a" * 64)
    assert not state.trusts("b" * 64)


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """No half-written file and no left-over; the owner alone reads it."""
    write_atomically(tmp_path / "x", b"old")
    write_atomically(tmp_path / "x", b"new")

    assert (tmp_path / "x").read_bytes() == b"new"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
