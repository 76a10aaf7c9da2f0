"""A run's events become the supervisor's spans, the same ones whoever makes them and however often."""

from collections.abc import Iterable, Sequence

import pytest

from sandbox.contract.ids import attempt_path, process_span_id, program_span_id, span_id, trace_id
from sandbox.contract.result import Outcome
from sandbox.telemetry import Spans
from supervisor.api.traces.run_trace import RunTrace
from supervisor.pipeline import events as ev
from supervisor.pipeline.machine import apply
from supervisor.pipeline.run import RunState
from tests.fakes.run_events import RUN, Story, conflict, failed, happy, rework, until_implement
from tests.fakes.traces import SeenTrace

AT_ONCE_S = 1e-5
"""Less than this between two spans is no time; it is there, because a viewer takes two that touch for overlapping."""


def told(*lives: Sequence[ev.AnyEvent]) -> SeenTrace:
    """Follow a log in one or more supervisors, each folding what came before its own events first."""
    payloads: list[bytes] = []
    state: RunState | None = None
    for life in lives:
        trace = RunTrace(Spans("andon-sup", "1"), lambda _, payload: payloads.append(payload))
        for event in life:
            state = apply(state, event)
            trace.follow(state, event)
    return SeenTrace.of_payloads(payloads)


def stages(trace: SeenTrace) -> list[str]:
    return [span.name for span in trace.named("stage ")]


def test_a_run_that_lands_is_one_whole_trace_of_derived_ids():
    """Root, one span a stage with its publication, join and commit."""
    trace = told(happy())

    assert trace.faults() == []
    (root,) = trace.roots
    assert (root.name, root.span_id, root.trace_id, root.kind) == ("RUN feature", span_id(RUN), trace_id(RUN), 2)
    assert root.attributes["cicd.pipeline.result"] == "success"
    assert root.attributes["andon.run.id"] == root.attributes["cicd.pipeline.run.id"] == RUN
    assert sorted(stages(trace)) == sorted(
        f"stage {name}" for name in ("baseline", "spec", "interface", "implement", "test", "red-check", "validate", "docs")
    )
    for span in trace.named("stage "):
        name = span.name.removeprefix("stage ")
        assert span.span_id == span_id(attempt_path(RUN, name, 1, 1))
        assert span.parent_id == root.span_id
        assert span.attributes["cicd.pipeline.task.run.result"] == "success"
        (gate,) = [child for child in trace.named("gate ") if child.parent_id == span.span_id]
        assert (gate.name, gate.attributes["andon.verdict"], gate.end) == (f"gate {name}", "pass", span.end)
    assert len(trace.named("send andon.job.default")) == 8
    assert len(trace.named("commit")) == 1


def test_the_time_between_two_stages_is_the_supervisors():
    """From what allowed a job to the event that decides it, and from an executor's end to the judgement: nothing is unexplained."""
    trace = told(happy())

    for stage in trace.named("stage "):
        (before,) = trace.named(f"dispatch {stage.name.removeprefix('stage ')}")
        assert 0 < stage.start - before.end < AT_ONCE_S
        assert any(0 < before.start - end < AT_ONCE_S for end in (trace.roots[0].start, *(each.end for each in trace.spans)))
        (delivery,) = [child for child in trace.named("result delivery") if child.parent_id == stage.span_id]
        (gate,) = [child for child in trace.named("gate ") if child.parent_id == stage.span_id]
        assert 0 < gate.start - delivery.end < AT_ONCE_S
        assert stage.start <= delivery.start
    (commit,) = trace.named("commit")
    assert 0 < commit.start - trace.named("stage docs")[0].end < AT_ONCE_S


def test_a_supervisor_that_goes_on_after_a_crash_makes_the_same_spans():
    """What both made has one id, and the sink keeps it once; nothing is missing."""
    log = happy()
    whole = told(log)
    for cut in range(1, len(log)):
        both = told(log[:cut], log[cut:])
        assert {span.span_id for span in both.spans} >= {span.span_id for span in whole.named("stage ") + whole.roots}
        assert {span.span_id for span in both.spans if span.name != "merge"} <= whole.by_id.keys()
    assert told(log[:-4], log[-4:]).by_id.keys() == whole.by_id.keys()


def test_rework_is_a_second_span_of_the_stage():
    """Rounds are told apart."""
    trace = told(rework())

    assert trace.faults() == []
    rounds = [(s.attributes["andon.round"], s.attributes["cicd.pipeline.task.run.result"]) for s in trace.named("stage validate")]
    assert rounds == [(1, "failure"), (2, "success")]


def test_a_run_that_fails_ends_with_the_check_as_its_error():
    """The findings are events of the stage that failed."""
    trace = told(failed())

    assert trace.faults() == []
    assert trace.roots[0].attributes["error.type"] == "pytest"
    assert trace.roots[0].attributes["cicd.pipeline.result"] == "failure"
    assert trace.named("stage validate")[0].attributes["error.type"] == "verdict_fail"


def killed_and_again() -> Iterable[ev.AnyEvent]:
    story = Story().accepted().dispatched("spec").started("spec").ended("spec", outcome=Outcome.KILLED)
    story.started("spec", attempt=2).ended("spec", attempt=2).judged("spec")
    return story.landed().log


def test_the_time_between_two_attempts_is_named():
    """It is the pause before a retry and the wait for an executor, and else it would be nobody's."""
    story = Story().accepted().dispatched("spec").started("spec").ended("spec", outcome=Outcome.KILLED)
    story.at += 7.0
    story.started("spec", attempt=2).ended("spec", attempt=2).judged("spec").landed()

    trace = told(story.log)

    (wait,), (first, second) = trace.named("retry wait"), trace.named("stage spec")
    assert trace.faults() == []
    assert 0 < wait.start - first.end < AT_ONCE_S
    assert 0 < second.start - wait.end < AT_ONCE_S
    assert wait.end - wait.start > 7.0
    assert (wait.attributes["andon.attempt"], wait.attributes["andon.retry.after"]) == (2, "killed")


def test_a_retry_is_linked_to_the_attempt_before_it():
    """An attempt whose container died stays visible, as an error."""
    trace = told(list(killed_and_again()))

    first, second = trace.named("stage spec")

    assert trace.faults() == []
    assert (first.attributes["error.type"], first.attributes["andon.outcome"]) == ("killed", "killed")
    assert second.links == (first.span_id,)
    assert second.attributes["cicd.pipeline.task.run.result"] == "success"
    assert len(trace.named("send ")) == 1


def lost_and_again() -> Story:
    story = Story().accepted().dispatched("spec").started("spec").ended("spec", outcome=Outcome.LOST)
    return story.started("spec", attempt=2).ended("spec", attempt=2).judged("spec").landed()


def test_what_a_dead_executor_left_open_is_ended_for_it():
    """Its calls hang below a program that never ended: both are closed as lost, under the ids the executor had given them."""
    below: list[str] = []
    payloads: list[bytes] = []

    def container_below(_run: str, span: str) -> str | None:
        below.append(span)
        return "c0ffee"

    trace, state = RunTrace(Spans("andon-sup", "1"), lambda _, payload: payloads.append(payload), container_below), None
    for event in lost_and_again().log:
        state = apply(state, event)
        trace.follow(state, event)
    seen = SeenTrace.of_payloads(payloads)

    path = attempt_path(RUN, "spec", 1, 1)
    process, program = seen.by_id[process_span_id(path)], seen.by_id[program_span_id(path)]
    assert (process.parent_id, program.parent_id) == (span_id(path), process.span_id)
    assert [each.attributes["error.type"] for each in (process, program)] == ["executor_lost"] * 2
    assert (program.name, program.attributes["container.id"], program.attributes["andon.reaped"]) == ("invoke_agent spec", "c0ffee", True)
    assert program.end == process.end == seen.by_id[span_id(path)].end
    assert set(below) == {program_span_id(path)}


def test_a_lost_attempt_that_ends_a_run_is_closed_once():
    """The run's end closes its stage and what its executor left open in one breath."""
    story = Story().accepted().dispatched("spec").started("spec").ended("spec", outcome=Outcome.LOST)
    trace = told(story.add(ev.RunCancelled(run_id=RUN, at=story.at, reason="stopped")).log)

    assert trace.faults() == []
    assert len(trace.named("process ")) == 1


def test_a_program_nobody_heard_of_is_not_made_up():
    """The executor may have died before its container was there; a second attempt's spans are its own to send."""
    seen = told(lost_and_again().log)

    assert {span.attributes["andon.attempt"] for span in seen.named("process ")} == {1}
    assert seen.named("invoke_agent ") == []


def cut_short(how: str) -> list[ev.AnyEvent]:
    story = until_implement(Story()).dispatched("implement").dispatched("test").started("implement").started("test")
    story.ended("test").judged("test", "fail")
    if how == "failed":
        end: ev.AnyEvent = ev.RunFailed(run_id=RUN, at=story.at, exit_code=1, stage="test", check="pytest", reason="red")
    else:
        end = ev.RunCancelled(run_id=RUN, at=story.at, reason="stopped")
    return story.add(end).log


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_an_attempt_nobody_heard_the_end_of_is_closed_with_the_run(how: str):
    """Its executor's spans hang below it: without it they would be orphans."""
    trace = told(cut_short(how))

    assert trace.faults() == []
    (implement,) = trace.named("stage implement")
    assert implement.attributes["error.type"] == "lost"
    assert implement.end == trace.roots[0].end


def test_a_run_that_could_not_be_delivered_is_a_whole_trace():
    """The run was won; that the branch had moved does not leave its trace without a root."""
    assert told(conflict()).faults() == []


def test_a_resumed_run_says_so_and_keeps_its_root():
    """One root over both lives, from the first acceptance."""
    parked = until_implement(Story())
    parked.add(ev.RunParked(run_id=RUN, at=parked.at, reason="stopped", exit_code=130))
    before = len(parked.log)
    parked.add(ev.RunResumed(run_id=RUN, at=parked.at)).both().done("docs").landed()
    trace = told(parked.log[:before], parked.log[before:])

    whole = SeenTrace(list({span.span_id: span for span in trace.spans}.values()))
    assert whole.faults() == []
    assert whole.roots[0].start == parked.log[0].at
    assert len(whole.named("RUN feature (resumed)")) == 1


def test_a_callers_own_trace_is_linked_and_does_not_take_the_run_over():
    """A run started from a traced build is found from there; its root stays a root."""
    log = happy()
    accepted = log[0].model_copy(update={"traceparent_of_caller": f"00-{'a' * 32}-{'b' * 16}-01"})

    trace = told([accepted, *log[1:]])

    assert trace.faults() == []
    assert trace.named("RUN feature (started)")[0].links == ("b" * 16,)


def test_a_run_that_is_not_sampled_leaves_no_span():
    """Neither the announcement nor the root nor anything between them, on any way a run may go."""
    for log in (happy(), failed(), rework(), conflict()):
        accepted = log[0].model_copy(update={"sampled": False})

        assert told([accepted, *log[1:]]).spans == []
        assert told(log).spans
