"""The sample as a git repository."""

import os
import subprocess
from pathlib import Path

import pytest

from sandbox.contract.errors import ConflictError
from sandbox.contract.ids import slug_of
from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST, create_sample_repository, sample_files


def git(repository: Path, *args: str) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(["git", "-C", str(repository), *args], env=env, check=True, capture_output=True, text=True).stdout.strip()


async def test_it_is_one_clean_commit_on_main(tmp_path: Path) -> None:
    """A person can go on in it as in any repository."""
    await create_sample_repository(tmp_path / "sample")

    assert git(tmp_path / "sample", "status", "--porcelain", "--branch") == "## main"
    assert git(tmp_path / "sample", "log", "--format=%an %ae %at %s") == "andon andon@localhost 1735689600 Notes API 1.0.0"
    assert git(tmp_path / "sample", "ls-files").splitlines() == list(sample_files())
    assert git(tmp_path / "sample", "fsck", "--strict") == ""


async def test_every_copy_is_the_same_commit(tmp_path: Path) -> None:
    """So that one cassette fits all."""
    await create_sample_repository(tmp_path / "one")
    await create_sample_repository(tmp_path / "two")

    assert git(tmp_path / "one", "rev-parse", "HEAD") == git(tmp_path / "two", "rev-parse", "HEAD")


async def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    """An empty one is fine, one with files is not ours."""
    (tmp_path / "mine.txt").write_text("mine")

    with pytest.raises(ConflictError, match="not empty"):
        await create_sample_repository(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_sample_carries_no_litter() -> None:
    """What running its tests leaves behind is not part of it."""
    assert not [name for name in sample_files() if "__pycache__" in name or name.endswith(".pyc")]
    assert {"quality.toml", "README.md", "CHANGELOG.md", "docs/api.md", "notes_api/app.py"} <= sample_files().keys()


def test_the_slug_is_the_one_a_run_derives() -> None:
    """The scripts and the cassette name it."""
    assert slug_of(SAMPLE_REQUEST) == SAMPLE_FEATURE
