"""`andon gc`: it says what it would remove, asks, and removes; what is found is `tests/integration/test_gc.py`'s."""

import fcntl
import os
from typing import Any

import pytest

from sandbox.executor.inputs import MARKER
from sandbox.executor.state_lock import LOCK_NAME
from supervisor.api.run_files import RunFiles
from supervisor.pipeline.fold import fold
from tests.fakes.command_line import CommandLine
from tests.fakes.run_events import AT, RUN, happy

DAY_S = 86_400


@pytest.fixture
def old_run(andon: CommandLine) -> RunFiles:
    """Let a run have landed 31 days ago, on a host without an engine."""
    andon.environ["DOCKER_HOST"] = "unix:///nonexistent/docker.sock"
    andon.now = AT + 31 * DAY_S
    files = andon.has_run(happy())
    files.write_result(fold(happy()))
    return files


def test_a_dry_run_says_what_would_go_and_removes_nothing(andon: CommandLine, old_run: RunFiles) -> None:
    """With its size and why, and what could not be looked at."""
    ended = andon("gc", "--dry-run")

    assert ended.code == 0
    assert ended.out.splitlines()[0].split()[0] == "run"
    assert f"{RUN}  landed 30 days ago" in ended.out
    assert "1 to remove, " in ended.out
    assert "containers and images are not looked at" in ended.err
    assert old_run.events_path.exists()


def test_it_removes_what_it_was_told_to(andon: CommandLine, old_run: RunFiles) -> None:
    """And has nothing to do the second time."""
    ended, again = andon("gc", "--yes"), andon("gc", "--yes")

    assert ended.out.splitlines()[-1] == "removed 1 of 1"
    assert not old_run.events_path.exists()
    assert (again.code, again.out) == (0, "nothing to remove\n")


def test_the_age_can_be_said(andon: CommandLine, old_run: RunFiles) -> None:
    """In days; the default is 30."""
    assert andon("gc", "--dry-run", "--older-than", "40").out == "nothing to remove\n"
    assert "1 to remove" in andon("gc", "--dry-run", "--older-than", "0").out


def test_the_object_says_what_went(andon: CommandLine, old_run: RunFiles) -> None:
    """One entry a thing."""
    told: dict[str, Any] = andon("gc", "--json", "--yes").json

    [item] = told["items"]
    assert (item["kind"], item["name"], item["removed"], item["error"]) == ("run", RUN, True, None)
    assert told["frees_bytes"] == item["frees_bytes"] > 1_000


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_without_a_terminal_nothing_goes_unasked(andon: CommandLine, old_run: RunFiles, arguments: tuple[str, ...]) -> None:
    """Exit code 2, and what to say."""
    ended = andon("gc", *arguments)

    assert ended.code == 2
    assert "--dry-run" in ended.err
    assert old_run.events_path.exists()


def test_what_cannot_be_removed_is_said_and_the_rest_goes(andon: CommandLine, old_run: RunFiles) -> None:
    """Exit code 5: here a slot, since an executor started in between; it holds its lock until the command has ended."""
    half = andon.state.root / ".stack.json.ab12cd_x"
    half.touch()
    os.utime(half, (AT, AT))
    executor = andon.state.root / "executors" / "ex1"
    slot = executor / "slots" / "1"
    (slot / "workspace").mkdir(parents=True)
    (slot / MARKER).touch()
    (executor / LOCK_NAME).touch()

    with (executor / LOCK_NAME).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # looks free to who looks, and cannot be taken
        ended = andon("gc", "--yes")

    assert ended.code == 5
    assert "another executor uses" in ended.err
    assert (slot / "workspace").exists()
    assert (half.exists(), old_run.events_path.exists()) == (False, False)
