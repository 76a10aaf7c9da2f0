"""`andon history`: from a real SQLite file, as the supervisor writes it."""

import sqlite3
from typing import Any

import pytest

from supervisor.pipeline.events import AnyEvent
from supervisor.store.history.projection import Projection
from supervisor.store.log.event_log import Head
from tests.fakes.command_line import CommandLine
from tests.fakes.run_events import AT, RUN, failed, happy, parked_on_budget, rework

HOUR = 3_600


def has_history(andon: CommandLine, *logs: list[AnyEvent]) -> None:
    """Let these runs be in the history, each an hour after the one before."""
    after = 0
    with Projection.at(andon.state.history) as projection:
        projection.prepare(Head("log", 10_000), 0)
        for number, log in enumerate(logs):
            moved = [_moved(event, number, after + place) for place, event in enumerate(log, start=1)]
            after = projection.apply(moved, after, "log")


def _moved(event: AnyEvent, number: int, seq: int) -> AnyEvent:
    run = run_named(number)
    job = {"job_id": event.job_id.replace(event.run_id, run)} if hasattr(event, "job_id") else {}
    return event.model_copy(update={"run_id": run, "at": event.at + number * HOUR, "seq": seq, **job})


def run_named(number: int) -> str:
    return f"{RUN[:-2]}{number:02}"


def test_runs_are_shown_newest_first_with_what_they_came_to(andon: CommandLine) -> None:
    """One line a run, then the sum of all."""
    has_history(andon, happy(), rework(), failed())

    ended = andon("history")

    lines = ended.out.splitlines()
    assert ended.code == 0
    assert [line.split()[0] for line in lines[:-1]] == [run_named(2), run_named(1), run_named(0)]
    assert [line.split()[3] for line in lines[:-1]] == ["failed", "landed", "landed"]
    assert "add-rate-limiting" in lines[0]
    assert "host-1" in lines[0]
    assert lines[-1] == "3 runs, 2 landed (67 %), $1.97 in all"


def test_the_object_has_every_figure(andon: CommandLine) -> None:
    """Cost, tokens, time, reworks and executors of each run, and the summary."""
    has_history(andon, rework())

    told: dict[str, Any] = andon("history", "--json").json

    [run] = told["runs"]
    assert told["summary"] == {"runs": 1, "landed": 1, "landed_share": 1.0, "cost_usd": 0.71}
    assert (run["run_id"], run["state"], run["reworks"], run["executors"]) == (run_named(0), "landed", 1, ["host-1"])
    assert (run["cost_usd"], run["usage"]["input_tokens"], run["usage"]["output_tokens"]) == (0.71, 33_000, 3_300)
    assert (run["accepted_at"], run["duration_s"]) == ("2025-01-01T00:00:00.000Z", run["duration_s"])
    assert 30 < run["duration_s"] < 60


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--state", "parked"), [2]),
        (("--feature", "add-rate-limiting"), [2, 1, 0]),
        (("--feature", "add-*"), [2, 1, 0]),
        (("--feature", "add"), []),
        (("--feature", "add_rate%"), []),
        (("--limit", "2"), [2, 1]),
        (("--since", "1h"), [2, 1]),
        (("--since", "2025-01-01T01:30:00+00:00"), [2]),
        (("--since", "60m", "--state", "landed"), [1]),
    ],
)
def test_runs_can_be_chosen(andon: CommandLine, options: tuple[str, ...], expected: list[int]) -> None:
    """By state, feature and time; a wildcard is a star and nothing else."""
    has_history(andon, happy(), rework(), parked_on_budget())
    andon.now = AT + 2 * HOUR

    told = andon("history", "--json", *options).json

    assert [run["run_id"] for run in told["runs"]] == [run_named(number) for number in expected]  # type: ignore[attr-defined]


def test_the_sum_counts_what_the_limit_hides(andon: CommandLine) -> None:
    """Otherwise a total would depend on how much is shown."""
    has_history(andon, happy(), failed(), failed())

    ended = andon("history", "-n", "1")

    assert ended.out.splitlines()[-1].startswith("3 runs, the newest 1 shown, 1 landed (33 %), $")


def test_without_a_history_one_line_says_so(andon: CommandLine) -> None:
    """Nothing is made by asking, and a program gets an empty object."""
    ended, told = andon("history"), andon("history", "--json").json

    assert (ended.code, ended.out) == (0, "")
    assert ended.err == "no history is kept here yet; a supervisor makes it with its first run\n"
    assert told == {"runs": [], "summary": {"runs": 0, "landed": 0, "landed_share": None, "cost_usd": 0}}
    assert not andon.state.history.exists()


def test_it_reads_while_the_supervisor_writes(andon: CommandLine) -> None:
    """An open transaction of the writer hides nothing that was there before, and delays nobody."""
    has_history(andon, happy())
    with Projection.at(andon.state.history) as projection, projection._engine.begin() as writing:
        writing.exec_driver_sql("UPDATE andon_runs SET state = 'failed'")

        ended = andon("history", "--json")

    assert [run["state"] for run in ended.json["runs"]] == ["landed"]  # type: ignore[attr-defined]


def test_it_changes_nothing(andon: CommandLine) -> None:
    """The history is opened for reading only: neither rows nor bytes change."""
    has_history(andon, happy())
    before = andon.state.history.read_bytes()

    andon("history")

    assert andon.state.history.read_bytes() == before


def test_a_history_of_another_version_is_not_misread(andon: CommandLine) -> None:
    """One line and exit code 5, instead of wrong figures."""
    has_history(andon, happy())
    with sqlite3.connect(andon.state.history) as raw:
        raw.execute("UPDATE andon_position SET schema_version = 99")
    raw.close()

    ended = andon("history")

    assert ended.code == 5
    assert "version 99" in ended.err


@pytest.mark.parametrize("since", ["yesterday", "5x", "-3d", "2025-13-01", "99999999d"])
def test_a_time_that_is_none_is_refused(andon: CommandLine, since: str) -> None:
    """With what would be one."""
    ended = andon("history", "--since", since)

    assert ended.code == 2
    assert "7d" in ended.err


def test_a_password_is_in_no_error(andon: CommandLine) -> None:
    """A server that does not answer is named by what it said, not by its address."""
    andon.environ["ANDON_DATABASE_URL"] = "postgresql://ada:hush@127.0.0.1:1/andon"

    ended = andon("history")

    assert ended.code == 5
    assert "cannot be read" in ended.err
    assert "hush" not in ended.err
