"""`andon resume` and `andon stop`: only what is new counts, and what is over is not touched."""

import importlib.resources
from pathlib import Path

import pytest

from supervisor.pipeline import events as ev
from supervisor.pipeline.submit import Answer
from tests.fakes import run_events
from tests.fakes.command_line import CommandLine
from tests.fakes.run_events import RUN
from tests.fakes.scripted_client import Hang

DEFAULT_PIPELINE = importlib.resources.files("supervisor.pipeline").joinpath("default.yaml").read_text()


def resumed(log: list[ev.AnyEvent]) -> ev.RunResumed:
    """Return the event a supervisor writes when a person goes on."""
    return ev.RunResumed(run_id=RUN, at=log[-1].at, seq=log[-1].seq + 1, reason="resumed", budget_nano_usd=5 * 10**9)


def the_rest(log: list[ev.AnyEvent], after: int) -> list[ev.AnyEvent]:
    """Return the end of the happy line, numbered on."""
    story = run_events.Story(log=list(log), at=log[-1].at).dispatched("docs").started("docs").ended("docs").judged("docs").landed()
    return [event.model_copy(update={"seq": after + number}) for number, event in enumerate(story.log[len(log) :], 1)]


def test_a_parked_run_goes_on_and_its_old_end_does_not_count(andon: CommandLine) -> None:
    """History is not shown again; only what follows `resumed` ends the command."""
    log = run_events.parked_on_budget()
    andon.has_run(log)
    go_on = resumed(log)
    andon.bootstrap.client.script = log
    andon.bootstrap.client.after_resume = [go_on, *the_rest(log, go_on.seq)]

    ended = andon("resume", RUN[:5], "--budget", "5")

    assert ended.code == 0
    assert ended.out.startswith("[andon] resumed: resumed\n[docs] started on host-1 (parallel)\n")
    assert "Landed: add-rate-limiting" in ended.out
    assert andon.bootstrap.client.resumes[0].budget_nano_usd == 5_000_000_000


def test_an_old_end_does_not_count_even_before_resumed_is_seen(andon: CommandLine) -> None:
    """The log is read from its beginning: the parking in it is the old one, whether this host had heard of it or not."""
    log = run_events.parked_on_budget()
    go_on = resumed(log)
    park = ev.RunParked(run_id=RUN, at=go_on.at, seq=go_on.seq + 1, reason="still too dear", exit_code=4)
    andon.has_run(log[:-1])
    andon.bootstrap.client.script = log
    andon.bootstrap.client.after_resume = [go_on, park]

    ended = andon("resume", RUN)

    assert ended.code == 4
    assert "[andon] resumed: resumed\n[andon] parked: still too dear\n" in ended.out


def test_a_run_whose_supervisor_died_is_watched_to_its_end(andon: CommandLine) -> None:
    """It was never parked, so nobody writes `resumed`; its end counts."""
    log = run_events.happy()
    andon.has_run(log[:12])
    andon.bootstrap.client.script = [*log, Hang()]

    ended = andon("resume", RUN)

    assert ended.code == 0
    assert "Landed" in ended.out


@pytest.mark.parametrize(("log", "code"), [(run_events.happy(), 0), (run_events.failed(), 1)], ids=["landed", "failed"])
def test_a_run_that_is_over_is_shown_and_nothing_is_started(andon: CommandLine, log: list[ev.AnyEvent], code: int) -> None:
    """The object is the same, the exit code is the run's own."""
    andon.has_run(log)

    ended = andon("resume", RUN, "--json")

    assert ended.code == code
    assert ended.json["exit_code"] == code
    assert "there is nothing to go on with" in ended.err
    assert andon.bootstrap.connections == 0


def test_a_delivery_that_failed_is_tried_again(andon: CommandLine) -> None:
    """The run is won; only the last step is repeated."""
    log = run_events.conflict()
    andon.has_run(log)
    andon.bootstrap.client.script = log
    go_on = ev.RunResumed(run_id=RUN, at=0, seq=log[-1].seq + 1)
    done = ev.RunDelivered(run_id=RUN, at=0, seq=log[-1].seq + 2, branch="andon/add-rate-limiting", commit="d" * 40)
    andon.bootstrap.client.after_resume = [go_on, done]

    assert andon("resume", RUN).code == 0


def test_a_refused_resume_keeps_its_exit_code(andon: CommandLine) -> None:
    """One line; with --json the object of the run as it is."""
    andon.has_run(run_events.parked_on_budget())
    andon.bootstrap.client.answer = Answer(ok=False, error="the budget of $1.00 is exhausted; give a larger one with --budget", exit_code=4)

    ended = andon("resume", RUN, "--json")

    assert ended.code == 4
    assert ended.err == "andon: error: the budget of $1.00 is exhausted; give a larger one with --budget\n"
    assert ended.json["state"] == "parked"


def test_a_wrong_budget_is_exit_code_2(andon: CommandLine) -> None:
    """As in `run`."""
    andon.has_run(run_events.parked_on_budget())

    ended = andon("resume", RUN, "--budget", "-3")

    assert ended.code == 2
    assert "flag --budget: '-3' is not an amount" in ended.err


def test_stop_parks_and_cancel_cancels(andon: CommandLine) -> None:
    """The reason is kept for the record."""
    andon.has_run(run_events.happy()[:12])

    parked = andon("stop", RUN)
    cancelled = andon("stop", RUN, "--cancel", "--reason", "wrong branch")

    assert parked.out == f"run {RUN} is being parked; go on with: andon resume {RUN}\n"
    assert cancelled.out == f"run {RUN} is being cancelled\n"
    assert [(each.how, each.reason) for each in andon.bootstrap.client.stops] == [("park", ""), ("cancel", "wrong branch")]


def test_stopping_what_is_over_does_nothing(andon: CommandLine) -> None:
    """A second stop is no error; a parked run may still be cancelled."""
    andon.has_run(run_events.happy())

    assert andon("stop", RUN).out == f"run {RUN} is landed already\n"
    assert andon.bootstrap.connections == 0
    andon.has_run(run_events.happy())


def test_a_parked_run_may_be_cancelled_but_not_parked_again(andon: CommandLine) -> None:
    """Parking twice changes nothing."""
    andon.has_run(run_events.parked_on_budget())

    andon("stop", RUN)
    andon("stop", RUN, "--cancel")

    assert [each.how for each in andon.bootstrap.client.stops] == ["cancel"]


@pytest.mark.parametrize("option", ["--spec", "--pipeline"])
def test_a_file_that_was_given_and_has_changed_is_a_conflict(andon: CommandLine, repository: Path, option: str) -> None:
    """Whoever edited it expects something else than what would go on; --force goes on with what the run began with."""
    log = run_events.parked_on_budget()
    file = repository.parent / "given.yaml"
    file.write_text(DEFAULT_PIPELINE if option == "--pipeline" else "description: limit the rate\n")
    andon.bootstrap.client.script = log
    andon("run", "Add rate limiting", "--repo", str(repository), option, str(file))
    andon.has_run(log)
    andon.bootstrap.client.after_resume = [resumed(log), *the_rest(log, log[-1].seq + 1)]

    unchanged = andon("resume", RUN)
    file.write_text(file.read_text() + "# more\n")
    changed = andon("resume", RUN)
    forced = andon("resume", RUN, "--force")

    assert (unchanged.code, changed.code, forced.code) == (0, 6, 0)
    assert changed.err.startswith(f"andon: error: {option} {file} has changed since run {RUN} began; ")


def test_a_file_that_was_given_and_is_gone_is_only_said(andon: CommandLine, repository: Path) -> None:
    """The run has its own copy, and nobody expects another."""
    log = run_events.parked_on_budget()
    file = repository.parent / "given.yaml"
    file.write_text("description: limit the rate\n")
    andon.bootstrap.client.script = log
    andon("run", "--repo", str(repository), "--spec", str(file))
    andon.has_run(log)
    andon.bootstrap.client.after_resume = [resumed(log), *the_rest(log, log[-1].seq + 1)]
    file.unlink()

    ended = andon("resume", RUN)

    assert ended.code == 0
    assert ended.err == f"andon: --spec {file} is gone; the run goes on with what it held\n"
