"""The supervisor's log lines about a run: one for each event, with ids and figures, and nobody's words."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from sandbox.contract.ids import attempt_path, span_id, trace_id
from sandbox.contract.job import Submission
from sandbox.contract.result import Outcome
from supervisor.api.said import say
from supervisor.pipeline.events import AnyEvent, AttemptEnded, JobJudged, RunAccepted
from supervisor.pipeline.fold import apply
from supervisor.pipeline.run import RunState
from tests.fakes.log_lines import Lines, listening
from tests.fakes.run_events import RUN, Story, conflict, failed, happy, parked_on_budget

Said = list[dict[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What was said."""
    with listening("supervisor.api.said", "andon-sup") as heard:
        yield heard


def tell(log: Iterable[AnyEvent]) -> None:
    run: RunState | None = None
    for event in log:
        run = apply(run, event)
        say(run, event)


def of(said: Said, event: str) -> dict[str, Any]:
    return next(line for line in said if line["event"] == event)


def test_each_event_is_one_line_of_its_trace(lines: Lines):
    """Named by what happened; of an attempt, with its stage's span."""
    tell(happy())

    assert len(lines.said) == len(happy())
    assert {line["trace_id"] for line in lines.said} == {trace_id(RUN)}
    assert {line["trace_flags"] for line in lines.said} == {"01"}
    accepted, ended = of(lines.said, "run.accepted"), of(lines.said, "attempt.ended")
    assert accepted["span_id"] == span_id(RUN)
    assert (ended["stage"], ended["round"], ended["attempt"]) == ("baseline", 1, 1)
    assert ended["span_id"] == span_id(attempt_path(RUN, "baseline", 1, 1))
    assert of(lines.said, "run.landed")["level"] == "info"


def test_a_run_that_is_not_sampled_says_so_on_each_line(lines: Lines):
    """Whoever follows the id into Jaeger finds nothing there."""
    accepted, *others = happy()
    tell([accepted.model_copy(update={"sampled": False}), *others])

    assert {line["trace_flags"] for line in lines.said} == {"00"}


def test_what_goes_wrong_is_a_warning_with_its_kind(lines: Lines):
    """By the check, the outcome or the step, and with the exit code people see."""
    tell(failed())
    tell(parked_on_budget())
    tell(conflict())

    wrong = {(line["event"], line.get("error.type"), line.get("exit_code")) for line in lines.said if line["level"] == "warning"}
    assert wrong == {
        ("run.failed", "pytest", 1),
        ("attempt.ended", "budget", None),
        ("run.parked", "run_parked", 4),
        ("delivery.failed", "delivery_failed", 6),
    }


def test_calls_of_the_model_are_said_at_debug_alone(lines: Lines):
    """Two lines a call would bury the others."""
    tell(parked_on_budget())

    assert {line["event"] for line in lines.said if line["level"] == "debug"} == {"budget.reserved", "budget.settled"}


def test_nobodys_words_are_in_a_line(lines: Lines):
    """Neither the request, nor what an agent said of its end, nor what a gate quoted; the control: the log of events has them."""
    secret = "the words of somebody"
    story = (
        Story().accepted().dispatched("spec").started("spec").ended("spec", outcome=Outcome.BLOCKED, reason=secret).judged("spec", "fail")
    )
    submission = Submission(status="blocked", summary=secret)

    def quoting(event: AnyEvent) -> AnyEvent:
        match event:
            case RunAccepted():
                return event.model_copy(update={"intent": event.intent.model_copy(update={"request": secret})})
            case AttemptEnded():
                return event.model_copy(update={"submission": submission})
            case JobJudged():
                return event.model_copy(update={"notes": (secret,)})
            case _:
                return event

    log = [quoting(event) for event in story.log]
    tell(log)

    assert sum(secret in event.model_dump_json() for event in log) == 3, "the control"
    assert of(lines.said, "attempt.ended")["error.type"] == "blocked"
    assert secret not in lines.text


def test_why_an_attempt_was_lost_is_said_in_our_own_words(lines: Lines):
    """Without a submission the reason is the executor's or the supervisor's."""
    tell(Story().accepted().dispatched("spec").started("spec").ended("spec", outcome=Outcome.LOST, reason="executor ex1 is gone").log)

    assert of(lines.said, "attempt.ended")["error.message"] == "executor ex1 is gone"
