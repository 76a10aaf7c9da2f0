"""What happens next in a run: all branching of the line, in pure functions of its state. Nothing here is done, only decided.

`pending(run)` names everything that is undone; `decide(run, event)` what `event`, already applied, made necessary. Commands are
levels, not edges: one is named again and again until its event is in the log, so a crash between two steps loses nothing.
A job is dispatched at most once per stage at a time; nothing but a delivery follows a final state.
"""

from dataclasses import dataclass
from typing import Literal

from supervisor.pipeline import budget
from supervisor.pipeline.commands import Append, Cancel, Command, Deliver, Dispatch, Join, Judge, Land, Publish, Republish
from supervisor.pipeline.definition import Stage
from supervisor.pipeline.events import (
    AnyEvent,
    AttemptEnded,
    BudgetReserved,
    BudgetSettled,
    BudgetWarned,
    JobDeadLettered,
    JobDispatched,
    JobJudged,
    JobRepublished,
    RunCancelled,
    RunFailed,
    RunParked,
    RunResumed,
)
from supervisor.pipeline.fate import dead_letter_reason, failure_of, fate_of, outcome_finding
from supervisor.pipeline.fold import apply, fold
from supervisor.pipeline.load import BASELINE, RED_CHECK
from supervisor.pipeline.run import FINAL, JobState, RunState
from supervisor.pipeline.survey import (
    Meeting,
    Survey,
    commit_of,
    is_current,
    is_given,
    needs_red_check,
    red_check_of,
    rework_target,
    survey,
)

BACKOFF_S_MAX = 60.0

__all__ = ["Closing", "apply", "closing", "decide", "fold", "is_due", "is_open", "may_claim", "pending"]


@dataclass(frozen=True)
class Closing:
    """Why no new work starts, and the event that ends it."""

    event: RunFailed | RunParked | RunCancelled
    is_urgent: bool
    """Urgent: what runs is cancelled. Otherwise it may end, and is judged, first."""


def decide(run: RunState, event: AnyEvent) -> list[Command]:
    """Return what `event` made necessary; `run` is the state after it."""
    if isinstance(event, BudgetReserved):
        return []
    if isinstance(event, RunResumed):
        return pending(run)
    if isinstance(event, JobDispatched | JobRepublished):
        return [*_publications(run, event.job_id), *_undone(run)]
    return _undone(run)


def pending(run: RunState) -> list[Command]:
    """Return everything that is undone: what a new supervisor does first. A job that is on the bus already is named again."""
    return [*(command for job_id in run.jobs for command in _publications(run, job_id)), *_undone(run)]


def is_open(run: RunState) -> bool:
    """Return whether something may still happen in this run without a person."""
    return run.state in {"queued", "running"} or (run.state == "landed" and not run.delivered and not run.delivery_failed)


def may_claim(run: RunState, job: JobState) -> bool:
    """Return whether an executor may begin an attempt at `job` now."""
    if run.state not in {"queued", "running"} or job.is_done or job.standing == "claimed" or closing(run) is not None:
        return False
    return job.ended is None or fate_of(run, job, job.ended).kind == "retry"


def is_due(run: RunState, command: Publish) -> bool:
    """Return whether `pending` names this publication: the same answer at a price that can be paid for thousands of waiting jobs."""
    job = run.jobs[command.job_id]
    return job.standing == "queued" and job.publications == command.publication and may_claim(run, job)


def closing(run: RunState) -> Closing | None:
    """Return why the line closes, None if it goes on. A person's word comes first, then a failure, then what parks it."""
    if run.stop_requested is not None:
        reason = run.stop_reason or "stopped by a person"
        if run.stop_requested == "cancel":
            return Closing(RunCancelled(run_id=run.run_id, at=0, reason=reason), is_urgent=True)
        return Closing(RunParked(run_id=run.run_id, at=0, reason=reason, exit_code=130), is_urgent=True)
    step = run.step_failed
    if step is not None and step.how == "fail":
        return _failed(run, step.exit_code, step.stage, step.check, step.reason)
    ended = [(job, job.ended) for job in run.jobs.values() if not job.is_done and job.ended is not None]
    fates = [failure_of(job) for job in _hopeless(run)] + [fate_of(run, job, end) for job, end in ended]
    for fate in fates:
        if fate.kind == "fail":
            return _failed(run, fate.exit_code, fate.stage, fate.check, fate.reason)
    if step is not None:
        return Closing(RunParked(run_id=run.run_id, at=0, reason=step.reason, exit_code=step.exit_code), is_urgent=False)
    for fate in fates:
        if fate.kind == "park":
            return Closing(RunParked(run_id=run.run_id, at=0, reason=fate.reason, exit_code=fate.exit_code), is_urgent=False)
    return None


def _failed(run: RunState, exit_code: int, stage: str, check: str, reason: str) -> Closing:
    event = RunFailed(run_id=run.run_id, at=0, exit_code=exit_code, stage=stage, check=check, reason=reason)
    return Closing(event, is_urgent=True)


def _hopeless(run: RunState) -> list[JobState]:
    """Return the failed jobs that count now and that no rework can follow."""
    found = survey(run)
    hopeless = []
    for job in run.jobs.values():
        if job.verdict != "fail" or run.latest(job.stage) is not job or not _counts(run, found, job):
            continue
        if job.stage == BASELINE or _rework_of(run, job) is None:
            hopeless.append(job)
    return hopeless


def _counts(run: RunState, found: Survey, job: JobState) -> bool:
    """Return whether a verdict is about what the line has now, not about something reworked since."""
    if job.stage == BASELINE:
        return True
    if job.stage == RED_CHECK:
        return any(_tests_of(run, stage, job) for stage in found.order)
    start = found.inputs.get(job.stage)
    return isinstance(start, str) and is_current(run, job, start)


def _tests_of(run: RunState, stage: Stage, check: JobState) -> bool:
    """Return whether `check` judged the newest tests of `stage`."""
    job = run.latest(stage.name)
    return needs_red_check(run.pipeline, stage) and job is not None and job.verdict == "pass" and commit_of(job) == check.base_commit


def _rework_of(run: RunState, failed: JobState) -> Dispatch | None:
    """Return the new job a failed verdict allows, None if there is none left (DECISIONS G13, G14), or if no work would help."""
    if failed.usage_error:
        return None
    if failed.role == "validate":
        target, rounds_max = rework_target(run.pipeline, failed.stage), run.pipeline.rework_max
    elif failed.stage == RED_CHECK:
        target = next((stage for stage in run.pipeline.stages if _tests_of(run, stage, failed)), None)
        rounds_max = run.pipeline.test_rework_max
    else:
        return None
    last = run.latest(target.name) if target is not None else None
    if target is None or last is None or last.round > rounds_max:
        return None
    # From its own last commit, without the other side's: the rework continues its work and stays blind to the tests.
    return Dispatch(
        stage=target.name, role=target.role, round=last.round + 1, kind="agent", base_commit=commit_of(last), feedback_from=failed.job_id
    )


def _publications(run: RunState, job_id: str) -> list[Command]:
    job = run.jobs[job_id]
    return [Publish(job_id=job_id, publication=job.publications)] if job.standing == "queued" and may_claim(run, job) else []


def _undone(run: RunState) -> list[Command]:
    if run.state in FINAL:
        return [Deliver()] if run.state == "landed" and not run.delivered and not run.delivery_failed else []
    books = [*_books(run), *_dead_letters(run)]
    if run.state in {"parked", "waiting"}:
        # Only a person ends these: `resume` by an event of its own, `stop --cancel` by this one.
        ends = closing(run) if run.stop_requested == "cancel" else None
        return [*books, *([Append(event=ends.event)] if ends else [])]
    ends = closing(run)
    if ends is None:
        return [*books, *_follow_ups(run), *_advance(run)]
    return [*books, *_close(run, ends)]


def _books(run: RunState) -> list[Command]:
    """Charge in full what a finished attempt still holds (DECISIONS G20), and warn once."""
    charges: list[Command] = []
    for job in run.jobs.values():
        for attempt in job.attempts:
            if attempt.ended is None:
                continue
            for call_id, amount in budget.held_by(run.budget, job.job_id, attempt.attempt).items():
                lost = {"job_id": job.job_id, "attempt": attempt.attempt, "call_id": call_id, "nano_usd": amount, "unsettled": True}
                charges.append(Append(event=BudgetSettled(run_id=run.run_id, at=0, **lost)))
    if budget.is_over_warning(run.budget, run.intent.warn_nano_usd):
        charges.append(Append(event=BudgetWarned(run_id=run.run_id, at=0, spent_nano_usd=run.budget.settled_nano_usd)))
    return charges


def _dead_letters(run: RunState) -> list[Command]:
    """Say of each job that may be poison why it goes out no more, before the line parks on it."""
    letters: list[Command] = []
    for job in run.jobs.values():
        if job.dead_lettered or job.is_done or job.ended is None or fate_of(run, job, job.ended).check != "dead-letter":
            continue
        said = {"job_id": job.job_id, "executors": job.lost_with, "reason": dead_letter_reason(run, job)}
        letters.append(Append(event=JobDeadLettered.model_validate({"run_id": run.run_id, "at": 0} | said)))
    return letters


def _close(run: RunState, ends: Closing) -> list[Command]:
    active = [(job, job.current) for job in run.jobs.values() if job.current is not None]
    commands: list[Command] = []
    if ends.is_urgent:
        reason = ends.event.reason[:400]
        commands += [Cancel(job_id=job.job_id, attempt=one.attempt, executor=one.executor, reason=reason) for job, one in active]
    elif run.step_failed is None:  # what this supervisor cannot do now is left for the resume
        commands += [command for command in _follow_ups(run) if not isinstance(command, Republish)]
    return commands if active or commands else [Append(event=ends.event)]


def _follow_ups(run: RunState) -> list[Command]:
    """Return what follows from attempts that have ended."""
    commands: list[Command] = []
    for job in run.jobs.values():
        ended = job.ended
        if job.is_done or ended is None:
            continue
        fate = fate_of(run, job, ended)
        if fate.kind == "judge":
            commands.append(Judge(job_id=job.job_id))
        elif fate.kind == "reject":
            commands.append(Append(event=_rejected(run, job, ended)))
        elif fate.kind == "retry":
            delay_s = min(2.0 ** (job.faults - 1), BACKOFF_S_MAX)
            commands.append(Republish(job_id=job.job_id, delay_s=delay_s, reason=fate.reason[:400]))
    return commands


def _rejected(run: RunState, job: JobState, ended: AttemptEnded) -> JobJudged:
    """Return the verdict on an attempt that left nothing to judge; before the first model call that is the set-up's fault."""
    findings = (outcome_finding(ended),)
    return JobJudged(run_id=run.run_id, at=0, job_id=job.job_id, verdict="fail", findings=findings, usage_error=job.stage == BASELINE)


def _advance(run: RunState) -> list[Command]:
    """Return the jobs, joins and the landing the line is ready for."""
    if run.intent.baseline and any(stage.role == "validate" for stage in run.pipeline.stages):
        before = run.latest(BASELINE)
        if before is None:
            return [Dispatch(stage=BASELINE, role=BASELINE, round=1, kind="checks", base_commit=run.intent.base_commit)]
        if not before.is_done:
            return []
    found = survey(run)
    commands = [command for stage in found.order if (command := _next_of(run, found, stage)) is not None]
    dispatches = [command for command in commands if isinstance(command, Dispatch)]
    others = [command for command in commands if not isinstance(command, Dispatch)]
    return [*others, *_allowed(run, dispatches)]


def _next_of(run: RunState, found: Survey, stage: Stage) -> Command | None:
    start = found.inputs.get(stage.name)
    if start is None or stage.name in found.results or is_given(run, stage):
        return None
    last = run.latest(stage.name)
    if isinstance(start, Meeting):
        return Join(stage=stage.name, round=last.round + 1 if last else 1, base=start.base, commits=start.commits)
    if stage.role == "land":
        return Land(commit=start)
    if last is not None and is_current(run, last, start):
        return _next_of_judged(run, last) if last.is_done else None
    kind: Literal["agent", "checks"] = "checks" if stage.role == "validate" else "agent"
    return Dispatch(stage=stage.name, role=stage.role, round=last.round + 1 if last else 1, kind=kind, base_commit=start)


def _next_of_judged(run: RunState, job: JobState) -> Dispatch | None:
    """Return what follows a verdict that is not the stage's result: a rework, or the red-check of new tests."""
    if job.verdict == "fail":
        return _rework_of(run, job)
    check = red_check_of(run, commit_of(job))
    if check is None:
        last = run.latest(RED_CHECK)
        return Dispatch(stage=RED_CHECK, role=RED_CHECK, round=last.round + 1 if last else 1, kind="checks", base_commit=commit_of(job))
    return _rework_of(run, check) if check.verdict == "fail" else None


def _allowed(run: RunState, dispatches: list[Dispatch]) -> list[Dispatch]:
    """Return those that may start now: one job of a stage at a time, in sequential mode one job of the run."""
    busy = {job.stage for job in run.jobs.values() if not job.is_done}
    if not run.intent.parallel:
        return [] if busy else dispatches[:1]
    allowed: dict[str, Dispatch] = {}
    for command in dispatches:
        if command.stage not in busy:
            allowed.setdefault(command.stage, command)
    return list(allowed.values())
