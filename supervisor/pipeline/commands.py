"""What the machine asks the orchestrator to do, as values; not how it is done.

A command is wanted as long as `machine.pending` names it.
"""

from typing import Literal

from sandbox.contract.ids import JobId, Sha, StageName
from sandbox.contract.model import Frozen
from supervisor.pipeline.events import AnyEvent


class Dispatch(Frozen):
    """Prepare a job, append `JobDispatched`; its publication follows from that event."""

    stage: StageName
    """A stage of the pipeline, or `baseline` or `red-check`."""
    role: str
    round: int
    kind: Literal["agent", "checks"]
    base_commit: Sha
    feedback_from: JobId | None = None
    """The job whose verdict caused this one."""


class Publish(Frozen):
    """Put the job's stored bytes on the bus; `publication` names the copy for deduplication."""

    job_id: JobId
    publication: int


class Republish(Frozen):
    """After `delay_s`, take the old copy from the bus and append `JobRepublished`."""

    job_id: JobId
    delay_s: float
    reason: str


class Judge(Frozen):
    """Let the gates speak on the job's last attempt, append `JobJudged`."""

    job_id: JobId


class Join(Frozen):
    """Make one commit of the siblings' disjoint changes, append `Joined` with exactly these parents."""

    stage: StageName
    """The stage that waits for it."""
    round: int
    base: Sha
    """The commit both sides grew from."""
    commits: tuple[Sha, ...]


class Cancel(Frozen):
    """Tell the executor to stop and wait, bounded, until the attempt has ended."""

    job_id: JobId
    attempt: int
    executor: str
    reason: str


class Land(Frozen):
    """Make the one commit of `commit`'s tree, move the branch in the mirror, append `RunLanded`. Doing it twice lands once."""

    commit: Sha


class Deliver(Frozen):
    """Bring the landed commit into the user's repository, append `RunDelivered` or `DeliveryFailed`."""


class Append(Frozen):
    """Append this event at once; its `at` is set by the writer."""

    event: AnyEvent


Command = Dispatch | Publish | Republish | Judge | Join | Cancel | Land | Deliver | Append
