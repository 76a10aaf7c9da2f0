"""What becomes of an attempt that has ended: judged, tried again, or the end of the line; pure. Not the verdict, which is a gate's."""

from collections import Counter
from typing import Literal, assert_never

from sandbox.contract.model import Frozen
from sandbox.contract.result import RETRYABLE, Finding, Outcome
from supervisor.pipeline.events import AttemptEnded
from supervisor.pipeline.run import JobState, RunState

POISON = 3
"""Executors, or attempts with one executor, a job may be lost with before it is taken for poison."""


class Fate(Frozen):
    """What follows from a job's last attempt."""

    kind: Literal["judge", "reject", "retry", "park", "fail"]
    """judge: the gates read its evidence. reject: its outcome alone is a fail. retry: publish it again. park, fail: the line closes."""
    exit_code: int = 0
    stage: str = ""
    check: str = ""
    reason: str = ""

    @property
    def is_for_gates(self) -> bool:
        """Return whether a verdict follows without another attempt."""
        return self.kind in {"judge", "reject"}


def fate_of(run: RunState, job: JobState, ended: AttemptEnded) -> Fate:
    """Return what follows from `ended`, the end of the last attempt of `job`, which is not judged (DECISIONS G12)."""
    caused = _of_cause(run, job, ended)
    if caused is not None:
        return caused
    if ended.outcome is Outcome.BUDGET:
        return Fate(kind="park", exit_code=4, stage=job.stage, check="budget", reason=ended.reason or f"the budget ended stage {job.stage}")
    if ended.outcome in RETRYABLE:
        if is_poison(job):
            return Fate(kind="park", exit_code=5, stage=job.stage, check="dead-letter", reason=dead_letter_reason(run, job))
        if job.faults > run.pipeline.retries_max:
            reason = f"stage {job.stage} was lost {job.faults} times, the last time: {ended.reason or ended.outcome.value}"
            return Fate(kind="park", exit_code=5, stage=job.stage, check="infrastructure", reason=reason)
        return Fate(kind="retry", reason=ended.reason or ended.outcome.value)
    # A checks job that ran out of time or memory left evidence too: the tests hang, which is the code's fault and can be reworked.
    left_evidence = ended.outcome is Outcome.SUBMITTED or (job.kind == "checks" and ended.outcome in {Outcome.TIMEOUT, Outcome.OOM})
    return Fate(kind="judge" if left_evidence else "reject")


def is_poison(job: JobState) -> bool:
    """Return whether a job was lost with three executors, or three times with one: it may be what kills them."""
    counts = Counter(job.lost_with)
    return len(counts) >= POISON or max(counts.values(), default=0) >= POISON


def dead_letter_reason(run: RunState, job: JobState) -> str:
    """Return in one line what a dead letter is about, and what to do."""
    with_whom = ", ".join(f"{name} {count} times" if count > 1 else name for name, count in Counter(job.lost_with).items())
    return (
        f"stage {job.stage} may be what brings executors down: its attempts were lost with {with_whom}; look at those hosts (memory, "
        f"disk, the executor's log), then `andon resume {run.run_id}` tries again"
    )


def _of_cause(run: RunState, job: JobState, ended: AttemptEnded) -> Fate | None:
    stage, reason = job.stage, ended.reason
    match ended.cause:
        case "auth":
            return Fate(kind="fail", exit_code=2, stage=stage, check="model", reason=reason or "the provider refused the key")
        case "stale_cassette":
            return Fate(kind="fail", exit_code=2, stage=stage, check="cassette", reason=reason or "the cassette is stale: make cassette")
        case "no_record":
            return _last_verdict(run) or Fate(
                kind="fail", exit_code=1, stage=stage, check="cassette", reason=reason or "the cassette ends here"
            )
        case "provider":
            return Fate(kind="park", exit_code=5, stage=stage, check="model", reason=reason or "the model's provider is down")
        case "strict":
            return Fate(kind="fail", exit_code=2, stage=stage, check="strict", reason=reason)
        case "" | "cancelled":
            return None
        case _:
            assert_never(ended.cause)


def _last_verdict(run: RunState) -> Fate | None:
    failed = [job for job in run.jobs.values() if job.verdict == "fail"]
    return failure_of(max(failed, key=lambda job: job.judged_seq)) if failed else None


def failure_of(job: JobState) -> Fate:
    """Return how a failed verdict ends the line: stage, check and first finding by name."""
    first = job.findings[0] if job.findings else Finding(check="verdict", message="failed without a finding")
    return Fate(kind="fail", exit_code=2 if job.usage_error else 1, stage=job.stage, check=first.check, reason=first.told)


def outcome_finding(ended: AttemptEnded) -> Finding:
    """Return why an attempt whose outcome alone is a fail did not submit its work."""
    said = {
        Outcome.BLOCKED: "the agent says it is blocked",
        Outcome.NO_SUBMIT: "the work was never submitted",
        Outcome.REFUSED: "the model refused the work",
        Outcome.STEP_LIMIT: "the agent used all its model calls without submitting",
        Outcome.TIMEOUT: "the stage's wall clock ran out",
        Outcome.OOM: "the sandbox ran out of memory",
    }.get(ended.outcome, f"the attempt ended as {ended.outcome.value}")
    return Finding(check="outcome", message=f"{said}: {ended.reason}"[:8_000] if ended.reason else said)
