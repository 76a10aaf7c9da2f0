"""Events to state: `apply` one, `fold` many; pure, total over a valid log. What follows from a state is `machine`'s.

Applying is forgiving where a log can repeat itself (a second settlement, a second end of an attempt change nothing) and strict
where it cannot (an event of an unknown job is a corrupt log).
"""

from collections.abc import Callable, Iterable
from typing import TypeVar, assert_never

from pydantic import BaseModel

from sandbox.contract.result import RETRYABLE, Outcome
from supervisor.pipeline import budget
from supervisor.pipeline import events as ev
from supervisor.pipeline.fate import fate_of
from supervisor.pipeline.run import AttemptState, BudgetState, JobState, RunState

ModelT = TypeVar("ModelT", bound=BaseModel)


def fold(log: Iterable[ev.AnyEvent]) -> RunState:
    """Return the state after a run's events, in order.

    Raises:
        ValueError: There are none, or they are not the log of one run.
    """
    run: RunState | None = None
    for event in log:
        run = apply(run, event)
    if run is None:
        raise ValueError("a run has at least one event")
    return run


def apply(run: RunState | None, event: ev.AnyEvent) -> RunState:
    """Return the state after one more event.

    Raises:
        ValueError: The event does not belong here: not first, of another run, or of an unknown job.
    """
    if isinstance(event, ev.RunAccepted):
        if run is not None:
            raise ValueError(f"run {event.run_id} is accepted twice")
        return _accepted(event)
    if run is None or run.run_id != event.run_id:
        raise ValueError(f"event {event.type} of run {event.run_id} does not follow {run and run.run_id}")
    return _changed(run, event).model_copy(update={"seq": max(run.seq, event.seq)})


def _accepted(event: ev.RunAccepted) -> RunState:
    return RunState(
        run_id=event.run_id,
        state="queued",
        intent=event.intent,
        pipeline=event.pipeline,
        trace_id=event.trace_id,
        sampled=event.sampled,
        trace_url=event.trace_url,
        request_id=event.request_id,
        accepted_at=event.at,
        seq=event.seq,
        budget=BudgetState(limit_nano_usd=event.intent.budget_nano_usd),
        branch=event.intent.branch,
    )


def _changed(run: RunState, event: ev.AnyEvent) -> RunState:
    match event:
        case ev.JobDispatched():
            return _with(run, jobs={**run.jobs, event.job_id: _dispatched(event)})
        case ev.JobRepublished():
            return _on_job(run, event.job_id, lambda job: _with(job, standing="queued", publications=job.publications + 1))
        case ev.JobDeadLettered():
            return _on_job(run, event.job_id, lambda job: _with(job, dead_lettered=True))
        case ev.AttemptStarted():
            running = "running" if run.state == "queued" else run.state
            return _with(_on_job(run, event.job_id, lambda job: _started(job, event)), state=running)
        case ev.AttemptEnded():
            return _on_job(run, event.job_id, lambda job: _ended(job, event))
        case ev.JobJudged():
            return _judged(run, event)
        case ev.Joined():
            key = f"{event.stage}-{event.round}"
            return _with(run, joined={**run.joined, key: event.commit}, joins={**run.joins, "+".join(event.parents): event.commit})
        case ev.BudgetReserved():
            return _with(run, budget=budget.reserved(run.budget, event))
        case ev.BudgetSettled():
            return _settled(run, event)
        case ev.BudgetWarned():
            return _with(run, budget=_with(run.budget, warned=True))
        case ev.RunAccepted():
            raise ValueError(f"run {event.run_id} is accepted twice")
    return _run_level(run, event)


def _run_level(
    run: RunState,
    event: ev.RunLanded
    | ev.RunDelivered
    | ev.DeliveryFailed
    | ev.StepFailed
    | ev.StopRequested
    | ev.RunParked
    | ev.RunResumed
    | ev.RunFailed
    | ev.RunCancelled,
) -> RunState:
    match event:
        case ev.RunLanded():
            files = {"files_created": event.files_created, "files_modified": event.files_modified, "files_deleted": event.files_deleted}
            where = {"landed_commit": event.commit, "landed_bundle": event.bundle, "branch": event.branch}
            return _with(run, state="landed", exit_code=0, ended_at=event.at, **where, **files)
        case ev.RunDelivered():
            return _with(run, delivered=True, delivery_failed=False, branch=event.branch, exit_code=0, end_reason="")
        case ev.DeliveryFailed():
            return _with(run, delivery_failed=True, exit_code=event.exit_code, end_reason=event.reason)
        case ev.StepFailed():
            return _with(run, step_failed=event)
        case ev.StopRequested():
            return _with(run, stop_requested=event.how, stop_reason=event.reason)
        case ev.RunParked():
            return _with(run, state="parked", exit_code=event.exit_code, end_reason=event.reason)
        case ev.RunResumed():
            return _resumed(run, event)
        case ev.RunFailed():
            end = {"end_stage": event.stage, "end_check": event.check, "end_reason": event.reason}
            return _with(run, state="failed", exit_code=event.exit_code, ended_at=event.at, **end)
        case ev.RunCancelled():
            return _with(run, state="cancelled", exit_code=event.exit_code, ended_at=event.at, end_reason=event.reason)
        case _:
            assert_never(event)


def _dispatched(event: ev.JobDispatched) -> JobState:
    return JobState(
        job_id=event.job_id,
        stage=event.stage,
        role=event.role,
        round=event.round,
        kind=event.kind,
        base_commit=event.base_commit,
        spec=event.spec,
        dispatched_at=event.at,
    )


def _started(job: JobState, event: ev.AttemptStarted) -> JobState:
    attempt = AttemptState(
        attempt=event.attempt,
        executor=event.executor,
        token_sha256=event.token_sha256,
        ack_subject=event.ack_subject,
        started_at=event.at,
    )
    return _with(job, attempts=(*job.attempts, attempt), standing="claimed")


def _ended(job: JobState, event: ev.AttemptEnded) -> JobState:
    if job.current is None or job.current.attempt != event.attempt:
        return job
    attempts = (*job.attempts[:-1], _with(job.attempts[-1], ended=event))
    lost_with = (*job.lost_with, event.executor) if event.outcome is Outcome.LOST else job.lost_with
    return _with(job, attempts=attempts, standing="ended", faults=job.faults + (event.outcome in RETRYABLE), lost_with=lost_with)


def _judged(run: RunState, event: ev.JobJudged) -> RunState:
    change = {
        "verdict": event.verdict,
        "findings": event.findings,
        "notes": event.notes,
        "assurance": event.assurance,
        "commit": event.commit,
        "tests": event.tests,
        "evidence": event.evidence,
        "judged_at": event.at,
        "judged_seq": event.seq,
        "usage_error": event.usage_error,
    }
    judged = _on_job(run, event.job_id, lambda job: _with(job, **change))
    return _with(judged, state="waiting", exit_code=3) if event.verdict == "hold" else judged


def _settled(run: RunState, event: ev.BudgetSettled) -> RunState:
    after = budget.settled(run.budget, event)
    if after is run.budget or event.job_id not in run.jobs:
        return _with(run, budget=after)

    def charge(job: JobState) -> JobState:
        attempts = tuple(
            _with(one, cost_nano_usd=one.cost_nano_usd + event.nano_usd, usage=one.usage + event.usage)
            if one.attempt == event.attempt
            else one
            for one in job.attempts
        )
        return _with(job, attempts=attempts)

    return _with(_on_job(run, event.job_id, charge), budget=after)


def _resumed(run: RunState, event: ev.RunResumed) -> RunState:
    """Forgive what parked the run; every job that is not judged and will not be goes out again."""
    if run.state == "landed":  # resumed only to deliver once more
        return _with(run, delivery_failed=False, exit_code=0, end_reason="")
    limit = run.budget.limit_nano_usd if event.budget_nano_usd is None else event.budget_nano_usd
    return _with(
        run,
        state="running",
        exit_code=None,
        end_reason="",
        stop_requested=None,
        stop_reason="",
        step_failed=None,
        budget=_with(run.budget, limit_nano_usd=limit),
        jobs={job_id: _job_resumed(run, job) for job_id, job in run.jobs.items()},
    )


def _job_resumed(run: RunState, job: JobState) -> JobState:
    if job.verdict == "hold":
        return _with(job, verdict=None)
    if job.is_done or job.standing == "claimed":
        return job
    if job.ended is not None and fate_of(run, job, job.ended).is_for_gates:
        return job
    # Also of a queued job: a claim while the run was parked was told `gone`, which takes the copy from the bus.
    forgiven = {"faults": 0, "lost_with": (), "dead_lettered": False}
    return _with(job, standing="queued", publications=job.publications + 1, **forgiven)


def _on_job(run: RunState, job_id: str, change: Callable[[JobState], JobState]) -> RunState:
    if job_id not in run.jobs:
        raise ValueError(f"run {run.run_id} has no job {job_id}")
    return _with(run, jobs={**run.jobs, job_id: change(run.jobs[job_id])})


def _with(model: ModelT, **change: object) -> ModelT:
    """Return a changed copy; events are validated where they are decoded, so states are not validated again."""
    return model.model_copy(update=change)
