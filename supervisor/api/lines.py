"""What happened in a run, one plain line at a time, prefixed with its stage: the live log, `andon logs`; pure text."""

from sandbox.contract.result import Finding, Outcome
from sandbox.contract.wire import Progress
from supervisor.api.inert import inert_line
from supervisor.api.report import duration, money
from supervisor.api.views import cost_of, tokens_of, usage_of
from supervisor.pipeline.events import (
    AnyEvent,
    AttemptEnded,
    AttemptStarted,
    BudgetWarned,
    DeliveryFailed,
    JobDispatched,
    JobJudged,
    JobRepublished,
    Joined,
    RunAccepted,
    RunCancelled,
    RunDelivered,
    RunFailed,
    RunLanded,
    RunParked,
    RunResumed,
    StepFailed,
    StopRequested,
)
from supervisor.pipeline.run import RunState

NOTES_SHOWN_MAX = 5
FILES_SHOWN_MAX = 50


def lines_for(run: RunState, event: AnyEvent) -> list[str]:
    """Return the lines of one event, each with its prefix; `run` is the state after it. Most events of money have none."""
    stage, texts = _told(run, event)
    return [f"[{stage}] {text}" for text in texts]


def progress_line(progress: Progress) -> str:
    """Return one line about what an attempt does now."""
    parts = [f"turn {progress.turn}"]
    if progress.tool:
        parts.append(inert_line(progress.tool, 40))
    parts += [f"{progress.tokens:,} tokens", money(progress.cost_nano_usd)]
    return f"[{progress.stage}] {', '.join(parts)}"


def missing_in(run: RunState) -> list[str]:
    """Return the protections any sandbox of the run did without, each once."""
    ended = [attempt.ended for job in run.jobs.values() for attempt in job.attempts if attempt.ended is not None]
    return list(dict.fromkeys(line for each in ended for line in each.missing))


def _told(run: RunState, event: AnyEvent) -> tuple[str, list[str]]:
    match event:
        case JobDispatched() | JobRepublished() | AttemptStarted() | AttemptEnded() | JobJudged() | Joined():
            return _of_stage(run, event)
        case RunLanded() | RunDelivered() | DeliveryFailed():
            return _land_name(run), _of_landing(run, event)
        case _:
            return "andon", _of_run(run, event)


def _of_stage(
    run: RunState, event: JobDispatched | JobRepublished | AttemptStarted | AttemptEnded | JobJudged | Joined
) -> tuple[str, list[str]]:
    if isinstance(event, Joined):
        return event.stage, [f"starts from the join of {len(event.parents)} stages, {event.commit[:12]}"]
    job = run.jobs[event.job_id]
    match event:
        case JobDispatched():
            texts = [f"{'rework, ' if event.kind == 'agent' else ''}round {event.round}"] if event.round > 1 else []
        case JobRepublished():
            texts = [f"once more: {inert_line(event.reason)}"]
        case AttemptStarted():
            busy = sum(1 for each in run.jobs.values() if not each.is_done)
            again = f", attempt {event.attempt}" if event.attempt > 1 else ""
            texts = [f"started on {event.executor}{again}" + (" (parallel)" if busy > 1 else "")]
        case AttemptEnded():
            reason = f": {inert_line(event.reason)}" if event.reason else ""
            is_plain = event.outcome is Outcome.SUBMITTED and not reason
            texts = [] if is_plain else [f"attempt {event.attempt} ended: {event.outcome.value}{reason}"]
        case JobJudged():
            texts = _verdict(run, event)
    return job.stage, texts


def _verdict(run: RunState, event: JobJudged) -> list[str]:
    job = run.jobs[event.job_id]
    facts = [f"{event.verdict} in {duration(event.at - job.dispatched_at)}"]
    counts = event.tests
    if counts.passed or counts.failed or counts.skipped:
        facts.append(f"{counts.passed} tests passed, {counts.failed} failed, {counts.skipped} skipped")
    if event.assurance:
        facts.append(event.assurance)
    if cost_of(job):
        facts.append(f"{tokens_of(usage_of(job)):,} tokens, {money(cost_of(job))}")
    lines = [", ".join(facts)]
    lines += [_finding(each) for each in event.findings[:1]]
    if len(event.findings) > 1:
        lines.append(f"... and {len(event.findings) - 1} more")
    return lines + [f"note: {inert_line(note)}" for note in event.notes[:NOTES_SHOWN_MAX]]


def _finding(finding: Finding) -> str:
    return f"{inert_line(finding.check)}: {inert_line(_first_line(finding.told))}"


def _first_line(text: str) -> str:
    """Return what fits into a line; the closing lines and the report have the rest."""
    return next((line for line in text.splitlines() if line.strip()), "")


def _of_landing(run: RunState, event: RunLanded | RunDelivered | DeliveryFailed) -> list[str]:
    if isinstance(event, RunDelivered):
        return [f"{event.branch} is in {inert_line(run.intent.repository)}"]
    if isinstance(event, DeliveryFailed):
        return [f"{event.branch} could not be delivered: {inert_line(event.reason, 400)}"]
    changed = [("created", event.files_created), ("modified", event.files_modified), ("deleted", event.files_deleted)]
    lines = [f"{verb} {inert_line(path)}" for verb, paths in changed for path in paths]
    if len(lines) > FILES_SHOWN_MAX:
        lines = [*lines[:FILES_SHOWN_MAX], f"... and {len(lines) - FILES_SHOWN_MAX} more files"]
    return [*lines, f"{event.branch} is {event.commit[:12]}"]


def _of_run(run: RunState, event: AnyEvent) -> list[str]:
    match event:
        case RunAccepted(intent=intent):
            replay = ", replay" if intent.mode == "replay" else ""
            base = f"{inert_line(intent.base_name)} ({intent.base_commit[:12]})"
            return [f"run {run.run_id}: {intent.feature} on {base}, branch {intent.branch}, budget {money(intent.budget_nano_usd)}{replay}"]
        case BudgetWarned():
            return [f"warning: {money(event.spent_nano_usd)} of {money(run.budget.limit_nano_usd)} is spent"]
        case StopRequested():
            return [("parking" if event.how == "park" else "cancelling") + _because(event.reason)]
        case RunParked():
            return ["parked" + _because(event.reason)]
        case RunResumed():
            return ["resumed" + _because(event.reason)]
        case StepFailed():
            where = f" at {event.stage}" if event.stage else ""
            return [f"cannot go on{where}{_because(event.reason)}"]
        case RunFailed():
            where = f" at {event.stage}" if event.stage else ""
            return [f"failed{where}{_because(_first_line(event.reason))}"]
        case RunCancelled():
            return ["cancelled" + _because(event.reason)]
        case _:
            return []


def _because(reason: str) -> str:
    return f": {inert_line(reason, 400)}" if reason else ""


def _land_name(run: RunState) -> str:
    return next((stage.name for stage in run.pipeline.stages if stage.role == "land"), "land")
