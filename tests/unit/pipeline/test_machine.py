"""What the line does next, by example; the invariants are in `test_machine_properties`."""

import pytest

from sandbox.contract.result import Outcome
from supervisor.pipeline import events as ev
from supervisor.pipeline.commands import Cancel, Deliver, Dispatch, Join, Judge, Land, Publish, Republish
from supervisor.pipeline.load import load_pipeline
from supervisor.pipeline.machine import fold, may_claim, pending
from supervisor.pipeline.run import JobState
from tests.fakes.line_driver import BASE, LineDriver, sha


def test_the_happy_line_runs_in_order_and_lands():
    """spec, interface, then implement beside test, red-check, join, validate, docs, land."""
    line = LineDriver()

    line.do("spec")
    line.do("interface")
    interface = line.commit("interface")
    assert {name: one.base_commit for name, one in line.dispatches.items()} == {"implement": interface, "test": interface}
    line.do("implement")
    test = line.do("test")
    assert line.dispatches["red-check"] == Dispatch(stage="red-check", role="red-check", round=1, kind="checks", base_commit=test.commit)
    line.do("red-check")
    assert line.named(Join) == [Join(stage="validate", round=1, base=interface, commits=(line.commit("implement"), test.commit))]
    joined = line.join()
    assert line.do("validate").base_commit == joined
    assert line.do("docs").base_commit == joined
    assert line.wanted == [Land(commit=line.commit("docs"))]
    line.land()

    assert (line.run.state, line.run.delivered, line.run.exit_code, line.wanted) == ("landed", True, 0, [])


def test_the_baseline_goes_before_everything():
    """Not one other job is dispatched until the checks ran on the base commit."""
    line = LineDriver(baseline=True)
    assert list(line.dispatches) == ["baseline"]
    job = line.dispatch("baseline")
    assert not line.dispatches
    line.start(job)
    line.end(job)
    line.judge(job)

    assert list(line.dispatches) == ["spec"]
    assert line.dispatches["spec"].base_commit == BASE


def test_a_baseline_that_is_the_repositorys_fault_ends_with_2():
    """A repository whose checks cannot run is a usage error, found before a model was called."""
    line = LineDriver(baseline=True)

    line.do("baseline", "fail", usage_error=True)

    assert (line.run.state, line.run.exit_code, line.run.end_stage, line.run.end_check) == ("failed", 2, "baseline", "pytest")


def test_a_given_spec_skips_the_spec_stage():
    """The line starts from the commit that holds the person's spec."""
    line = LineDriver(given_spec="feature: x", spec_commit="c" * 40)

    assert line.dispatches["interface"].base_commit == "c" * 40
    assert line.run.latest("spec") is None


def test_a_red_validate_sends_implement_back_with_feedback():
    """The rework starts at the previous implement commit and is joined again with the same tests."""
    line = LineDriver()
    line.to_validate()
    first = line.commit("implement")
    red = line.do("validate", "fail")

    assert line.dispatches["implement"] == Dispatch(
        stage="implement", role="implement", round=2, kind="agent", base_commit=first, feedback_from=red.job_id
    )
    again = line.do("implement")
    joins = line.named(Join)
    assert isinstance(joins[0], Join)
    assert (joins[0].round, joins[0].commits) == (2, (again.commit, line.commit("test")))
    assert joins[0].base == line.commit("interface")
    line.join()
    line.do("validate")
    assert list(line.dispatches) == ["docs"]


def test_rework_is_at_most_rework_max_more_jobs():
    """With 3, four implement jobs run; then the line stops and names validate, its check and the first finding."""
    line = LineDriver()
    line.to_validate()
    for _ in range(3):
        line.do("validate", "fail")
        line.do("implement")
        line.join()
    line.do("validate", "fail")

    assert line.run.state == "failed"
    assert (line.run.exit_code, line.run.end_stage, line.run.end_check) == (1, "validate", "pytest")
    assert line.run.end_reason == "validate is wrong"
    assert len([job for job in line.run.jobs.values() if job.stage == "implement"]) == 4


def test_a_failed_red_check_sends_test_back_twice_then_stops():
    """Tests that are green on stubs are written again at most twice, counted apart from implement."""
    line = LineDriver()
    line.do("spec")
    line.do("interface")
    line.do("implement")
    for round_ in (1, 2):
        tests = line.do("test")
        red = line.do("red-check", "fail")
        assert line.dispatches["test"].model_dump() == {
            "stage": "test",
            "role": "test",
            "round": round_ + 1,
            "kind": "agent",
            "base_commit": tests.commit,
            "feedback_from": red.job_id,
        }
    line.do("test")
    line.do("red-check", "fail")

    assert (line.run.state, line.run.end_stage) == ("failed", "red-check")


def test_a_red_check_after_rework_lets_the_line_go_on():
    """The second tests are joined, not the first."""
    line = LineDriver()
    line.do("spec")
    line.do("interface")
    line.do("implement")
    line.do("test")
    line.do("red-check", "fail")
    again = line.do("test")
    assert line.do("red-check").round == 2
    joins = line.named(Join)

    assert isinstance(joins[0], Join)
    assert joins[0].commits[1] == again.commit


def test_a_failed_stage_cancels_its_sibling_and_stops_the_line():
    """The run fails only when the sibling is back, and names stage, check and finding."""
    line = LineDriver()
    line.do("spec")
    line.do("interface")
    test = line.dispatch("test")
    line.start(test)
    line.do("implement", "fail")

    cancel = line.named(Cancel)
    assert [type(command) for command in line.wanted] == [Cancel]
    assert isinstance(cancel[0], Cancel)
    assert (cancel[0].job_id, cancel[0].executor) == (test.job_id, "host-1")
    assert line.run.state == "running"
    line.end(test, Outcome.KILLED, "cancelled")
    assert (line.run.state, line.run.exit_code, line.run.end_stage, line.run.end_reason) == ("failed", 1, "implement", "implement is wrong")


def test_a_queued_sibling_may_not_be_claimed_once_the_line_closes():
    """Its claim is refused, so nothing starts on a failed line."""
    line = LineDriver()
    line.do("spec")
    line.do("interface")
    test = line.dispatch("test")
    assert may_claim(line.run, line.run.jobs[test.job_id])
    line.do("implement", "fail")

    assert line.run.state == "failed"
    assert not may_claim(line.run, line.run.jobs[test.job_id])


@pytest.mark.parametrize("outcome", [Outcome.BLOCKED, Outcome.NO_SUBMIT, Outcome.REFUSED, Outcome.STEP_LIMIT, Outcome.TIMEOUT, Outcome.OOM])
def test_an_agent_that_did_not_submit_fails_its_stage(outcome: Outcome):
    """It is the agent's fault: no retry, exit 1, the outcome named."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    line.end(job, outcome, reason="why not")

    assert (line.run.state, line.run.exit_code, line.run.end_stage, line.run.end_check) == ("failed", 1, "spec", "outcome")
    assert "why not" in line.run.end_reason
    assert line.run.jobs[job.job_id].verdict == "fail"


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.OOM])
def test_checks_that_hang_are_judged_not_retried(outcome: Outcome):
    """Code that makes its tests hang is reworked like code that makes them fail."""
    line = LineDriver()
    line.to_validate()
    job = line.dispatch("validate")
    line.start(job)
    line.end(job, outcome)

    assert line.wanted == [Judge(job_id=job.job_id)]


def test_checks_that_never_reported_are_told_by_what_ended_them():
    """There is no evidence to judge; before the first model call that is the set-up's fault, exit 2, not a test that hangs."""
    line = LineDriver(baseline=True)
    job = line.dispatch("baseline")
    line.start(job)
    line.end(job, Outcome.NO_SUBMIT, reason="the program in the sandbox ended with exit code 1")

    assert (line.run.state, line.run.exit_code, line.run.end_stage, line.run.end_check) == ("failed", 2, "baseline", "outcome")
    assert "ended with exit code 1" in line.run.end_reason


def fall(line: LineDriver, job: JobState, outcome: Outcome, executor: str = "host-1") -> None:
    """Grant an attempt, end it badly, and publish the job again if that is wanted."""
    line.start(job, executor)
    line.end(job, outcome, reason="it fell", executor=executor)
    if line.named(Republish):
        line.record(ev.JobRepublished(run_id=line.run.run_id, at=0, job_id=job.job_id, reason=""))


def test_an_infrastructure_fault_is_tried_again_with_growing_delay_then_parks():
    """1 s, 2 s, 4 s, then the run is parked with exit 5 and can be resumed; the agent's own attempts are not touched."""
    line = LineDriver()
    job = line.dispatch("spec")
    assert line.published == [job.job_id]
    for delay_s in (1.0, 2.0, 4.0):
        line.start(job)
        line.end(job, Outcome.KILLED, reason="engine gone")
        assert line.wanted == [Republish(job_id=job.job_id, delay_s=delay_s, reason="engine gone")]
        line.record(ev.JobRepublished(run_id=line.run.run_id, at=0, job_id=job.job_id, reason=""))
    assert line.wanted == [Publish(job_id=job.job_id, publication=4)]
    line.start(job)
    line.end(job, Outcome.KILLED)

    assert (line.run.state, line.run.exit_code) == ("parked", 5)
    line.ask(ev.RunResumed)
    assert line.wanted == [Publish(job_id=job.job_id, publication=5)]
    line.start(job)
    line.end(job, Outcome.LOST)
    assert line.wanted == [Republish(job_id=job.job_id, delay_s=1.0, reason="lost")]


@pytest.mark.parametrize(
    ("executors", "is_poison"),
    [
        (["a", "b", "c"], True),
        (["a", "a", "a"], True),
        (["a", "b", "a"], False),
        (["a", "a"], False),
    ],
)
def test_a_job_lost_with_three_executors_or_thrice_with_one_is_dead_lettered(executors: list[str], is_poison: bool):
    """Its own event says with whom, before the run parks with 5 and says what to do; two of a kind are only retried."""
    line = LineDriver()
    job = line.dispatch("spec")
    for name in executors:
        fall(line, job, Outcome.LOST, name)
    letters = [event for event in line.log if isinstance(event, ev.JobDeadLettered)]

    assert [letter.executors for letter in letters] == ([tuple(executors)] if is_poison else [])
    assert line.run.state == ("parked" if is_poison else "running")
    if is_poison:
        assert line.run.exit_code == 5
        assert f"andon resume {line.run.run_id}" in line.run.end_reason


def test_a_dead_letter_is_opened_again_by_resume():
    """What was held against the job is forgotten; it takes three more to be poison once more, and a second letter."""
    line = LineDriver()
    job = line.dispatch("spec")
    for _ in range(3):
        fall(line, job, Outcome.LOST)
    line.ask(ev.RunResumed)
    assert line.wanted == [Publish(job_id=job.job_id, publication=4)]
    for _ in range(2):
        fall(line, job, Outcome.LOST)
    assert line.run.state == "running"
    fall(line, job, Outcome.LOST)

    assert [event.type for event in line.log].count("job_dead_lettered") == 2


def test_attempts_that_ended_otherwise_are_not_held_against_a_job():
    """An executor that reports a killed container lives."""
    line = LineDriver()
    job = line.dispatch("spec")
    for _ in range(3):
        fall(line, job, Outcome.KILLED)

    assert line.run.state == "running"
    assert line.run.jobs[job.job_id].lost_with == ()


def test_a_lost_job_may_be_claimed_before_its_delay_is_over():
    """The broker's redelivery may be quicker than our republication."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    line.end(job, Outcome.LOST)

    assert may_claim(line.run, line.run.jobs[job.job_id])
    line.start(job)
    assert line.wanted == []


def test_an_exhausted_budget_parks_with_4_after_the_sibling_has_ended():
    """What the sibling did is judged and kept; raising the budget goes on."""
    line = LineDriver()
    line.do("spec")
    line.do("interface")
    implement, test = line.dispatch("implement"), line.dispatch("test")
    line.start(implement)
    line.start(test)
    line.end(implement, Outcome.BUDGET)
    assert (line.run.state, line.wanted) == ("running", [])
    line.end(test)
    assert line.wanted == [Judge(job_id=test.job_id)]
    line.judge(test)

    assert (line.run.state, line.run.exit_code) == ("parked", 4)
    line.ask(ev.RunResumed, budget_nano_usd=90_000)
    assert line.run.budget.limit_nano_usd == 90_000
    assert Publish(job_id=implement.job_id, publication=2) in line.wanted
    assert "red-check" in line.dispatches


@pytest.mark.parametrize(
    ("cause", "outcome", "state", "exit_code"),
    [
        ("auth", Outcome.REFUSED, "failed", 2),
        ("stale_cassette", Outcome.REFUSED, "failed", 2),
        ("strict", Outcome.LOST, "failed", 2),
        ("no_record", Outcome.REFUSED, "failed", 1),
        ("provider", Outcome.LOST, "parked", 5),
    ],
)
def test_the_gateways_cause_decides_the_exit_code(cause: str, outcome: Outcome, state: str, exit_code: int):
    """None of them is retried as a job: the gateway has done its own retries."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    line.end(job, outcome, cause, reason="said the gateway")  # type: ignore[arg-type]

    assert (line.run.state, line.run.exit_code, line.run.end_reason) == (state, exit_code, "said the gateway")


def test_a_cassette_without_a_rework_ends_with_the_last_verdict():
    """A recorded wrong implementation ends at validate and names its test (DECISIONS G11)."""
    line = LineDriver(mode="replay")
    line.to_validate()
    line.do("validate", "fail")
    job = line.dispatch("implement")
    line.start(job)
    line.end(job, Outcome.REFUSED, "no_record")

    assert (line.run.exit_code, line.run.end_stage, line.run.end_check, line.run.end_reason) == (
        1,
        "validate",
        "pytest",
        "validate is wrong",
    )


def test_park_waits_for_what_runs_then_resume_goes_on():
    """Ctrl-C cancels the attempt, parks with 130, and resume publishes the same job as a new copy."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    line.ask(ev.StopRequested, how="park", reason="Ctrl-C")
    assert line.wanted == [Cancel(job_id=job.job_id, attempt=1, executor="host-1", reason="Ctrl-C")]
    line.end(job, Outcome.KILLED, "cancelled")
    assert (line.run.state, line.run.exit_code, line.run.ended_at) == ("parked", 130, None)
    line.ask(ev.RunResumed)

    assert line.wanted == [Publish(job_id=job.job_id, publication=2)]
    assert line.run.jobs[job.job_id].faults == 0


def test_work_submitted_while_parking_is_judged_after_resume():
    """An attempt that ended well is not thrown away by the park."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    line.ask(ev.StopRequested, how="park")
    line.end(job)
    assert line.run.state == "parked"
    line.ask(ev.RunResumed)

    assert line.wanted == [Judge(job_id=job.job_id)]


def test_cancel_ends_a_running_and_a_parked_run():
    """Cancelled is final: nothing is wanted any more."""
    for parked_first in (False, True):
        line = LineDriver()
        if parked_first:
            line.ask(ev.StopRequested, how="park")
            assert line.run.state == "parked"
        line.ask(ev.StopRequested, how="cancel")

        assert (line.run.state, line.run.exit_code, pending(line.run)) == ("cancelled", 130, [])


def test_a_failed_step_of_the_supervisor_closes_the_line():
    """`fail` ends it, `park` keeps it; both say stage and reason."""
    for how, state in (("fail", "failed"), ("park", "parked")):
        line = LineDriver()
        values = {"how": how, "exit_code": 6, "stage": "land", "check": "branch", "reason": "the branch moved"}
        line.record(ev.StepFailed.model_validate({"run_id": line.run.run_id, "at": 0} | values))

        assert (line.run.state, line.run.exit_code, line.run.end_reason) == (state, 6, "the branch moved")


def test_sequential_mode_runs_one_job_at_a_time():
    """Implement and test are serialised; both still start from the interface commit."""
    line = LineDriver(parallel=False)
    line.do("spec")
    line.do("interface")
    assert list(line.dispatches) == ["implement"]
    implement = line.dispatch("implement")
    assert not line.dispatches
    line.start(implement)
    line.end(implement)
    line.judge(implement)

    assert list(line.dispatches) == ["test"]
    assert line.dispatches["test"].base_commit == line.commit("interface")


def test_a_hold_waits_for_a_person_and_is_judged_again_after_resume():
    """No executor is held while it waits; exit 3."""
    line = LineDriver()
    job = line.do("spec", "hold")
    assert (line.run.state, line.run.exit_code, line.wanted) == ("waiting", 3, [])
    line.ask(ev.RunResumed)

    assert line.wanted == [Judge(job_id=job.job_id)]


def test_money_an_ended_attempt_still_holds_is_charged_in_full():
    """A call whose usage was lost costs its reservation and is marked (DECISIONS G20)."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    for call, amount in (("a", 300), ("b", 500)):
        values = {"job_id": job.job_id, "attempt": 1, "call_id": call, "nano_usd": amount}
        line.record(ev.BudgetReserved(run_id=line.run.run_id, at=0, **values))
    line.end(job, Outcome.LOST)

    budget = line.run.budget
    assert (budget.settled_nano_usd, budget.held_nano_usd, budget.unsettled_calls) == (800, 0, 2)
    assert line.run.jobs[job.job_id].attempts[0].cost_nano_usd == 800


def test_spending_past_the_warning_warns_once():
    """The second settlement above the threshold says nothing."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    for call in "ab":
        values = {"job_id": job.job_id, "attempt": 1, "call_id": call, "nano_usd": 10_000}
        line.record(ev.BudgetReserved(run_id=line.run.run_id, at=0, **values))
        line.record(ev.BudgetSettled(run_id=line.run.run_id, at=0, **values))

    assert [event.type for event in line.log].count("budget_warned") == 1


def test_a_failed_delivery_is_not_tried_again_by_itself():
    """The run stays landed, exit 6 says so; resume delivers once more."""
    line = LineDriver(load_pipeline("pipeline: {stages: [{name: spec}]}", "x"))
    line.do("spec")
    line.record(ev.RunLanded(run_id=line.run.run_id, at=0, branch=line.run.branch, commit=sha("l")))
    line.record(ev.DeliveryFailed(run_id=line.run.run_id, at=0, branch=line.run.branch, exit_code=6, reason="taken"))
    assert (line.run.state, line.run.exit_code, pending(line.run)) == ("landed", 6, [])
    line.ask(ev.RunResumed)

    assert line.wanted == [Deliver()]


def test_sides_that_met_before_meet_at_their_last_common_commit():
    """With a longer branch on one side the join's base is still where the two parted."""
    text = """
    pipeline:
      stages:
        - {name: interface}
        - {name: implement, depends_on: [interface]}
        - {name: polish, agent: implement, depends_on: [implement]}
        - {name: docs, depends_on: [interface]}
        - {name: validate, type: builtin, depends_on: [interface, polish, docs]}
    """
    line = LineDriver(load_pipeline(text, "x"))
    for stage in ("interface", "implement", "polish", "docs"):
        line.do(stage)
    joins = line.named(Join)

    assert isinstance(joins[0], Join)
    assert joins[0].base == line.commit("interface")
    assert joins[0].commits == (line.commit("polish"), line.commit("docs"))


def test_a_side_that_changed_nothing_needs_no_join():
    """Validate starts from the other side's commit."""
    text = "pipeline: {stages: [{name: implement}, {name: docs}, {name: validate, type: builtin, depends_on: [implement, docs]}]}"
    line = LineDriver(load_pipeline(text, "x"))
    done = line.do("implement")
    line.do("docs", commit=None)

    assert not line.named(Join)
    assert line.dispatches["validate"].base_commit == done.commit


def test_a_stage_whose_input_changed_waits_for_its_running_job():
    """Docs run on the first implementation while lint sends it back: the second docs job starts only when the first is over."""
    text = """
    pipeline:
      stages:
        - {name: implement}
        - {name: docs, depends_on: [implement]}
        - {name: lint, type: builtin, command: ruff, depends_on: [implement]}
    """
    line = LineDriver(load_pipeline(text, "x"))
    line.do("implement")
    docs = line.dispatch("docs")
    line.start(docs)
    line.do("lint", "fail")
    again = line.do("implement")
    assert list(line.dispatches) == ["lint"]
    line.end(docs)
    line.judge(docs)

    assert line.dispatches["docs"].round == 2
    assert line.dispatches["docs"].base_commit == again.commit


def test_what_a_crash_left_undone_is_pending():
    """From the log alone a new supervisor publishes queued jobs, judges ended ones and redoes the rest."""
    line = LineDriver()
    line.do("spec")
    line.do("interface")
    implement, test = line.dispatch("implement"), line.dispatch("test")
    line.start(test)
    line.end(test)

    assert pending(fold(line.log)) == [Publish(job_id=implement.job_id, publication=1), Judge(job_id=test.job_id)]
