"""What a run waits for or does at this moment, from the supervisor's own state; pure. Not from guesses, and nothing is asked for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sandbox.contract.wire import Heartbeat
from supervisor.dispatch import obstacle
from supervisor.orchestrator.activity import Doing
from supervisor.orchestrator.effects import copy_name
from supervisor.pipeline.fate import fate_of
from supervisor.pipeline.graph import nearest
from supervisor.pipeline.load import BASELINE
from supervisor.pipeline.machine import closing
from supervisor.pipeline.run import FINAL, JobState, RunState
from supervisor.pipeline.submit import Reason, WhyReply
from supervisor.pipeline.survey import stage_of, survey

REASON_CHARS_MAX = 1_000
_PHASES = {
    "preparing": "is being prepared",
    "starting": "starts",
    "running": "waits for the model",
    "throttled": "waits for the provider, which limits its rate,",
    "paused": "is paused, because its executor has lost the broker,",
    "sealing": "is being sealed",
}


class Queue(Protocol):
    """What is asked of the queue of jobs."""

    def is_waiting(self, dedupe: str) -> bool:
        """Return whether this copy is still to be published."""
        ...

    def directed_to(self, dedupe: str) -> str:
        """Return the executor on whose own lane a published copy lies, empty if on none."""
        ...

    def ahead_of(self, dedupe: str) -> int:
        """Return how many jobs of the same pool go before this copy."""
        ...


@dataclass(frozen=True)
class View:
    """What is known besides the run."""

    queue: Queue
    executors: Sequence[Heartbeat]
    doing: Callable[[str, int], Doing | None]
    """What an attempt, by job and number, last said."""
    held: str = ""
    """Why no new submission is taken; empty: they are."""


def why(run: RunState, view: View) -> WhyReply:
    """Return everything the run waits for or does."""
    if run.state in FINAL:
        reasons = [_over(run)]
    elif run.state == "parked":
        reasons = [_of_run("parked", f"parked: {run.end_reason}; `andon resume {run.run_id}` goes on", None)]
    elif run.state == "waiting":
        reasons = _waiting(run)
    else:
        reasons = [*_ending(run), *_jobs(run, view), *_not_begun(run)]
    if view.held and run.state not in FINAL:
        reasons.append(_of_run("throttled", f"no new run is taken ({view.held}); this one goes on", None))
    if not reasons:
        reasons = [_of_run("running", "the supervisor prepares what is next", None)]
    return WhyReply(run_id=run.run_id, state=run.state, reasons=tuple(reasons))


def _of_run(kind: str, text: str, since: float | None) -> Reason:
    return Reason.model_validate({"kind": kind, "text": text[:REASON_CHARS_MAX], "since": since})


def _of_job(job: JobState, kind: str, text: str, since: float | None = None, **more: str) -> Reason:
    about = {"kind": kind, "text": text[:REASON_CHARS_MAX], "job_id": job.job_id, "stage": job.stage, "since": since}
    return Reason.model_validate(about | more)


def _over(run: RunState) -> Reason:
    if run.state != "landed":
        where = f" at {run.end_stage} ({run.end_check})" if run.end_stage else ""
        return _of_run("over", f"{run.state}{where}: {run.end_reason}", run.ended_at)
    landed = f"landed as {(run.landed_commit or '')[:12]}"
    if run.delivered:
        return _of_run("over", f"{landed}, delivered on {run.branch}", run.ended_at)
    if run.delivery_failed:
        return _of_run("over", f"{landed}, but not delivered: {run.end_reason}; `andon apply {run.run_id}` tries again", run.ended_at)
    return _of_run("over", f"{landed}; to be delivered on {run.branch}", run.ended_at)


def _waiting(run: RunState) -> list[Reason]:
    held = [job for job in run.jobs.values() if job.verdict == "hold"]
    return [_of_job(job, "waiting", f"{job.stage} waits for a person's approval", job.judged_at) for job in held]


def _ending(run: RunState) -> list[Reason]:
    """Say that the line closes, while what runs still ends."""
    ends = closing(run)
    return [_of_run("throttled", f"nothing new starts: {ends.event.reason}", None)] if ends is not None else []


def _jobs(run: RunState, view: View) -> list[Reason]:
    return [_job(run, job, view) for job in run.jobs.values() if not job.is_done]


def _job(run: RunState, job: JobState, view: View) -> Reason:
    if job.current is not None:
        return _running(job, view.doing(job.job_id, job.current.attempt))
    ended = job.ended
    if ended is not None:
        fate = fate_of(run, job, ended)
        if fate.kind == "retry":
            delay_s = 2 ** (job.faults - 1)
            return _of_job(job, "throttled", f"{job.stage} is tried again {delay_s} s after a fault: {fate.reason}", ended.ended_at)
        return _of_job(job, "running", f"the gates judge {job.stage}", ended.ended_at)
    return _queued(run, job, view)


def _running(job: JobState, doing: Doing | None) -> Reason:
    attempt = job.attempts[-1]
    if doing is None:
        text = f"{job.stage} began on {attempt.executor}; nothing was heard of it yet"
        return _of_job(job, "running", text, attempt.started_at, executor=attempt.executor)
    progress = doing.progress
    is_throttled = progress.phase == "throttled"
    what = f"runs {progress.tool}" if progress.tool and not is_throttled else _PHASES[progress.phase]
    if progress.phase == "running" and not progress.tool and job.kind == "checks":
        what = "runs its checks"
    turn = f", turn {progress.turn}" if progress.turn else ""
    said = f": {progress.message}" if progress.message else ""
    text = f"{job.stage} {what} on {attempt.executor}{turn}{said}"
    return _of_job(job, "throttled" if is_throttled else "running", text, doing.since, executor=attempt.executor, tool=progress.tool)


def _queued(run: RunState, job: JobState, view: View) -> Reason:
    stage = stage_of(run.pipeline, job.stage)
    pool, labels = (stage.pool, stage.labels) if stage is not None else ("default", {})
    name, since = copy_name(job.job_id, job.publications), job.dispatched_at
    if not view.queue.is_waiting(name):
        executor = view.queue.directed_to(name)
        where = f"executor {executor}" if executor else f"pool {pool}"
        return _of_job(job, "queued", f"{job.stage} was handed to {where} and is about to be claimed", since, executor=executor)
    ahead = view.queue.ahead_of(name)
    behind = f"; {ahead} {'jobs' if ahead > 1 else 'job'} of this pool {'go' if ahead > 1 else 'goes'} first" if ahead else ""
    return _of_job(job, "queued", f"{job.stage} waits: {obstacle(pool, labels, view.executors)}{behind}", since)


def _not_begun(run: RunState) -> list[Reason]:
    """Name the stages that wait for others, and on which."""
    before = run.latest(BASELINE)
    if before is not None and not before.is_done:
        return [_of_run("blocked", f"the stages wait for {BASELINE}", before.dispatched_at)]
    found = survey(run)
    blocked = []
    for stage in found.order:
        missing = [name for name in nearest(run.pipeline, stage.name) if name not in found.results]
        if missing and stage.name not in found.inputs:
            text = f"{stage.name} waits for {', '.join(missing)}"
            blocked.append(Reason(kind="blocked", text=text, stage=stage.name))
    return blocked
