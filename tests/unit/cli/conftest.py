"""A command line with a home of its own, and a repository to point it at."""

import asyncio
from pathlib import Path

import pytest

from supervisor.demo import create_sample_repository
from tests.fakes.command_line import CommandLine


@pytest.fixture
def andon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Return a command line with a home of its own."""
    return CommandLine(tmp_path / "home", capsys)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a fresh git repository."""
    path = tmp_path / "notes"
    asyncio.run(create_sample_repository(path))
    return path
