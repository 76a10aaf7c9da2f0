"""The files of a run: a copy of the log that survives a kill at any byte."""

from pathlib import Path

import pytest

from supervisor.api import run_files
from supervisor.api.run_files import RunFiles, files_of
from supervisor.config import StateDirectory
from supervisor.errors import InfrastructureError, UnknownRun, UsageError
from supervisor.pipeline.fold import fold
from tests.fakes import run_events
from tests.fakes.run_events import RUN


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    """Return the files of a run that has none yet."""
    return files_of(StateDirectory.open(tmp_path), RUN)


def again(files: RunFiles) -> RunFiles:
    """Return what another process sees."""
    return files_of(StateDirectory(files.directory.parent.parent), RUN)


def test_what_is_appended_is_read_back(files: RunFiles) -> None:
    """With the numbers of the log, so that equal events give an equal state."""
    log = run_events.happy()

    for event in log:
        files.append([event])

    assert again(files).events() == log
    assert again(files).run() == fold(log)


def test_appending_twice_changes_nothing(files: RunFiles) -> None:
    """A supervisor that starts again gives the whole log; only what is missing is written."""
    log = run_events.happy()
    files.append(log[:10])

    again(files).append(log)
    again(files).append(log)

    assert again(files).events() == log


@pytest.mark.parametrize("torn", [1, 40, 200])
def test_a_torn_last_line_is_ignored_and_then_replaced(files: RunFiles, torn: int) -> None:
    """A writer was killed inside a line."""
    log = run_events.happy()
    files.append(log[:10])
    path = files.events_path
    path.write_bytes(path.read_bytes()[:-torn])

    assert again(files).events() == log[:9]
    again(files).append(log)
    assert again(files).events() == log


def test_a_reader_sees_whole_events_only_and_goes_on_from_there(files: RunFiles) -> None:
    """While a line is being written it is not there."""
    log = run_events.happy()
    files.append(log[:3])
    seen, offset = files.read_from(0)
    with files.events_path.open("ab") as file:
        file.write(b'{"run_id": "01')

    assert (seen, files.read_from(offset)) == (log[:3], ([], offset))


def test_an_event_of_a_newer_release_is_named_not_skipped(files: RunFiles) -> None:
    """To leave one out would show a wrong state."""
    files.append(run_events.happy()[:1])
    with files.events_path.open("ab") as file:
        file.write(b'{"type": "approved", "run_id": "01jd8m6w2x", "at": 1, "seq": 9}\n')

    with pytest.raises(UsageError, match="a newer one wrote it"):
        files.run()


def test_a_run_without_events_is_unknown(files: RunFiles) -> None:
    """The directory alone is not a run."""
    with pytest.raises(UnknownRun, match="no events on this host"):
        files.run()


def test_a_missing_event_is_said_not_guessed(files: RunFiles) -> None:
    """A supervisor that was killed between log and file leaves a gap; the next one fills it."""
    log = run_events.happy()
    files.append([*log[:1], *log[2:]])

    with pytest.raises(InfrastructureError, match="is not whole"):
        files.run()
    files.rewrite(log[:-1])
    files.append(log[-1:])
    assert again(files).run() == fold(log)


def test_the_result_is_written_whole_and_the_same_each_time(files: RunFiles) -> None:
    """Supervisor and CLI both write it: the bytes are equal."""
    run = fold(run_events.happy())

    result = files.write_result(run)
    first = files.result_path.read_bytes(), files.report_path.read_bytes()
    again(files).write_result(run)

    assert (files.result_path.read_bytes(), files.report_path.read_bytes()) == first
    assert again(files).result() == result
    assert sorted(path.name for path in files.directory.iterdir()) == ["report.md", "result.json"]


def test_a_log_is_cut_in_the_middle_and_says_so(files: RunFiles) -> None:
    """Head and tail are what a person looks for."""
    data = b"head\n" + b"x" * run_files.LOG_BYTES_MAX + b"\ntail"

    kept = files.write_log("implement", 2, 1, data).read_bytes()

    assert len(kept) <= run_files.LOG_BYTES_MAX
    assert kept.startswith(b"head\n")
    assert kept.endswith(b"\ntail")
    assert b" bytes omitted ..." in kept
    assert files.log_path("implement", 2, 1).name == "implement-2-1.log"


def test_only_the_owner_can_read_a_run(files: RunFiles) -> None:
    """Logs and reports hold parts of the repository."""
    files.append(run_events.happy())
    files.write_log("spec", 1, 1, b"x")

    assert files.directory.stat().st_mode & 0o777 == 0o700
    assert files.events_path.stat().st_mode & 0o777 == 0o600
    assert files.log_path("spec", 1, 1).stat().st_mode & 0o777 == 0o600


def test_the_salvage_is_named_with_the_command_that_shows_it(files: RunFiles) -> None:
    """If the mirror is on this host."""
    run = fold(run_events.parked_on_budget())
    mirror = StateDirectory(files.directory.parent.parent).mirror
    mirror.mkdir(parents=True)

    files.write_result(run)

    ref = f"refs/andon/salvage/{RUN}/implement/1/1"
    assert f"- `git --git-dir {mirror} log -p -1 {ref}`" in files.report_path.read_text()
