"""The views of a run: pure functions of its state."""

import pytest

from sandbox.contract.result import Outcome
from supervisor.api.views import board, counted_tests, is_over, resolve_run_id, result_of, stages_in_order, usd
from supervisor.errors import UnknownRun
from supervisor.pipeline import events as ev
from supervisor.pipeline.fold import fold
from tests.fakes import run_events
from tests.fakes.run_events import AT, RUN, Story, until_implement


def test_money_is_rounded_once_to_a_millionth() -> None:
    """Half a millionth goes to the even side, no float noise shows."""
    assert [usd(each) for each in (0, 1, 499, 1_500, 123_456_789, 650_000_000)] == [0.0, 0.0, 0.0, 2e-06, 0.123457, 0.65]


def test_the_object_of_a_run_under_way_has_nulls_where_nothing_is_known() -> None:
    """No exit code, no commit, no end of the attempt, no container yet."""
    result = result_of(fold(run_events.happy()[:13]), None)

    last = result.stages[-1]
    assert (result.exit_code, result.commit, result.report) == (None, None, None)
    assert last.verdict is None
    assert (last.attempts[0].outcome, last.attempts[0].container_id, last.attempts[0].ended_at) == (None, None, None)


def test_tests_are_those_of_the_last_validate() -> None:
    """Not of the first, and not of the baseline; zeros before there is one."""
    assert counted_tests(fold(run_events.rework())).passed == 12
    assert counted_tests(fold(run_events.failed())).failed == 1
    assert counted_tests(fold(run_events.happy()[:12])) == ev.TestCounts()


@pytest.mark.parametrize(
    ("log", "over"),
    [
        (run_events.happy(), True),
        (run_events.happy()[:-1], False),
        (run_events.happy()[:-2], False),
        (run_events.failed(), True),
        (run_events.parked_on_budget(), True),
        (run_events.conflict(), True),
        (run_events.happy()[:1], False),
    ],
    ids=["delivered", "landed, not yet delivered", "not yet landed", "failed", "parked", "not deliverable", "queued"],
)
def test_a_run_is_over_when_only_a_person_can_go_on(log: list[ev.AnyEvent], over: bool) -> None:
    """A landed run still has to be delivered."""
    assert is_over(fold(log)) is over


def test_reserved_stages_stand_where_they_run() -> None:
    """Baseline first, red-check between test and validate; both only once they exist."""
    assert stages_in_order(fold(run_events.happy())) == [
        *("baseline", "spec", "interface", "implement", "test", "red-check", "validate", "docs", "land")
    ]
    assert stages_in_order(fold(run_events.happy()[:1]))[0] == "spec"


def test_every_row_of_a_parked_run_stands_still() -> None:
    """Nothing is shown as running, and time does not go on."""
    run = fold(run_events.parked_on_budget())

    rows = {row.stage: row for row in board(run, {}, AT + 10_000)}

    assert rows["implement"].state == "stopped"
    assert rows["implement"].why == "attempt 1 ended: budget: the call would pass the budget"
    assert rows["implement"].elapsed_s < 60
    assert rows["land"].state == "stopped"


def test_an_attempt_that_was_lost_says_so_while_the_next_is_awaited() -> None:
    """A person sees why a stage begins again."""
    story = until_implement(Story()).dispatched("implement").started("implement")
    story.ended("implement", outcome=Outcome.LOST, reason="host-1 went away")

    row = next(row for row in board(fold(story.log), {}, story.at) if row.stage == "implement")

    assert (row.state, row.why) == ("judging", "attempt 1 ended: lost: host-1 went away")


def test_a_given_specification_is_a_stage_that_passed() -> None:
    """With `--spec` nothing waits for the spec stage."""
    story = Story().accepted()
    accepted = story.log[0]
    assert isinstance(accepted, ev.RunAccepted)
    given = accepted.model_copy(update={"intent": accepted.intent.model_copy(update={"given_spec": "feature: x"})})

    rows = board(fold([given]), {}, AT)

    assert [(row.state, row.why) for row in rows[:2]] == [("passed", "given"), ("waiting", "")]


def test_a_run_is_named_by_a_unique_prefix() -> None:
    """Four characters at least; an exact id always counts."""
    known = [RUN, "01jd8m7zzz"]

    assert resolve_run_id("01JD8M6", known) == RUN
    assert resolve_run_id(RUN, known) == RUN
    for given in ("01j", "", "zzzz", "01jd8m"):
        with pytest.raises(UnknownRun):
            resolve_run_id(given, known)


def test_at_most_ten_matches_are_listed() -> None:
    """The message stays one line."""
    known = [f"01jd8m6w{number:02d}" for number in range(30)]

    with pytest.raises(UnknownRun) as refused:
        resolve_run_id("01jd", known)

    assert str(refused.value).count("01jd8m6w") == 10
    assert str(refused.value).endswith(", ...")
