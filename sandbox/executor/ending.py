"""Why an attempt ends: watches container, gateway, lease, deadline and cancellation; not what the attempt left (`outputs`)."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Protocol

from sandbox.contract.errors import ProtectionMissing
from sandbox.contract.job import JobSpec, Submission
from sandbox.contract.result import Cause, Outcome
from sandbox.gateway.tally import Failure
from sandbox.runtime.container_spec import Exit

TOOL_GRACE_S = 30
"""What a tool's own deadline is given to be heard of before its silence counts."""
LOOK_EVERY_S = 1.0
AFTER_SUBMIT_S = 5.0
"""How long the program may take to exit once it has submitted."""

_OF_SUBMISSION = {
    "done": Outcome.SUBMITTED,
    "checked": Outcome.SUBMITTED,
    "blocked": Outcome.BLOCKED,
    "no_submit": Outcome.NO_SUBMIT,
    "refused": Outcome.REFUSED,
    "step_limit": Outcome.STEP_LIMIT,
    "budget": Outcome.BUDGET,
    "error": Outcome.NO_SUBMIT,
}


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, in the words of the contract."""

    outcome: Outcome
    reason: str = ""
    cause: Cause = ""

    @classmethod
    def of(cls, broken: Exception) -> "Ending":
        """Return how an attempt ended that something around it broke."""
        return cls(Outcome.LOST, str(broken)[:2_000], "strict" if isinstance(broken, ProtectionMissing) else "")


class Cancel:
    """Asks one attempt to end; the first reason stays."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.reason = ""

    def ask(self, reason: str) -> None:
        """End the attempt soon."""
        if not self.asked.is_set():
            self.reason = reason
            self.asked.set()


class Box(Protocol):
    """The part of a `Sandbox` that ends."""

    async def wait(self) -> Exit:
        """Wait until the container is dead."""
        ...

    async def kill(self) -> None:
        """Kill it; nothing if it is dead."""
        ...


class Talk(Protocol):
    """The part of a gateway `Session` that tells how an attempt went."""

    @property
    def submission(self) -> Submission | None:
        """What the program submitted."""
        ...

    @property
    def failure(self) -> Failure | None:
        """Why model calls cannot succeed any more."""
        ...

    async def wait_submitted(self) -> Submission:
        """Wait for the submission."""
        ...

    @property
    def is_limited(self) -> bool:
        """Whether the provider's rate limit is waited for now."""
        ...

    @property
    def limited_s(self) -> float:
        """For how long it was waited for in all, bounded; the wall clock is not charged for it."""
        ...

    async def wait_idle(self, limit_s: float) -> None:
        """Wait until nothing was heard for so long."""
        ...


class Owned(Protocol):
    """The part of a `Lease` that can be lost."""

    @property
    def lost(self) -> asyncio.Event:
        """Set when the attempt is no longer ours."""
        ...


async def watch(job: JobSpec, box: Box, session: Talk, lease: Owned, cancel: Cancel, wall_s: float) -> Ending:
    """Wait until the attempt is over for any reason, see that the container is dead, and say why.

    At most `wall_s` seconds (the stage's wall clock, what is left of it), waits for the provider's rate limit not counted, plus the
    time to kill.
    """
    exit_ = asyncio.create_task(box.wait())
    submitted = asyncio.create_task(session.wait_submitted())
    asked = asyncio.create_task(cancel.asked.wait())
    lost = asyncio.create_task(lease.lost.wait())
    idle = asyncio.create_task(session.wait_idle(quiet_s_max(job)))
    try:
        done = await _first_of({exit_, submitted, asked, lost, idle}, session, wall_s)
        if submitted in done and exit_ not in done:
            await asyncio.wait({exit_}, timeout=AFTER_SUBMIT_S)
        await box.kill()
        ended = await exit_
    finally:
        for task in (exit_, submitted, asked, lost, idle):
            task.cancel()
    if session.submission is not None or session.failure is not None:
        return _of_session(session)
    if cancel.asked.is_set():
        return Ending(Outcome.KILLED, f"cancelled: {cancel.reason}", "cancelled")
    if lease.lost.is_set():
        return Ending(Outcome.LOST, "the lease was lost: another executor may have the job")
    if not done:
        return Ending(Outcome.TIMEOUT, f"stage {job.stage} passed its wall clock of {job.limits.wall_s} s")
    if idle in done and exit_ not in done:
        return Ending(Outcome.TIMEOUT, f"stage {job.stage} made no progress for {quiet_s_max(job)} s: no call, no tool that ended")
    return _of_exit(ended)


async def _first_of(tasks: set[asyncio.Task[Any]], session: Talk, wall_s: float) -> set[asyncio.Task[Any]]:
    """Return the tasks that have ended first, none if the wall clock ran out before."""
    began = time.monotonic()
    while (left_s := wall_s + session.limited_s - (time.monotonic() - began)) > 0:
        # While the rate is waited for, what is left stays the same: it is looked at again now and then.
        timeout_s = max(left_s, LOOK_EVERY_S) if session.is_limited else left_s
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if done:
            return done
    return set()


def quiet_s_max(job: JobSpec) -> int:
    """Return how long a job may be silent: its limit, but never less than what one tool or check of it may take."""
    tool_s = job.agent.tool_timeout_s if job.agent else 0
    longest_s = max([tool_s, *(check.timeout_s for check in job.checks)])
    return max(job.limits.no_progress_s, longest_s + TOOL_GRACE_S)


def _of_session(session: Talk) -> Ending:
    failure = session.failure
    if failure is not None:
        outcome = {"budget": Outcome.BUDGET, "provider": Outcome.LOST}.get(failure.kind, Outcome.REFUSED)
        cause: Cause = "" if failure.kind == "budget" else failure.kind
        return Ending(outcome, failure.message, cause)
    return _of_submission(session.submission or Submission(status="error"))


def _of_submission(submission: Submission) -> Ending:
    outcome = _OF_SUBMISSION[submission.status]
    return Ending(outcome, "" if outcome is Outcome.SUBMITTED else submission.summary[:2_000])


def _of_exit(ended: Exit) -> Ending:
    if ended.oom_killed:
        return Ending(Outcome.OOM, "the sandbox ran out of memory; raise memory_mib of the stage or make the work smaller")
    if ended.code == 137:
        return Ending(Outcome.KILLED, "the container was killed from outside")
    return Ending(Outcome.NO_SUBMIT, f"the program in the sandbox ended with exit code {ended.code} and submitted nothing")
