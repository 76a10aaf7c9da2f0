"""The state of one run, folded from its events by `machine.fold`; values only, no rule."""

from typing import Literal

from pydantic import Field

from sandbox.contract.blob import BlobRef
from sandbox.contract.model import Frozen
from sandbox.contract.result import Finding, Outcome, Usage
from supervisor.pipeline.definition import Pipeline
from supervisor.pipeline.events import Assurance, AttemptEnded, Intent, StepFailed, TestCounts, Verdict

State = Literal["queued", "running", "waiting", "parked", "landed", "failed", "cancelled"]
Standing = Literal["queued", "claimed", "ended"]
"""Where a job is: on the bus (or to be published), in the hands of an executor, or back without (yet) a new publication."""
FINAL: frozenset[str] = frozenset({"landed", "failed", "cancelled"})


class AttemptState(Frozen):
    """One try at a job."""

    attempt: int
    executor: str
    token_sha256: str
    ack_subject: str
    started_at: float
    ended: AttemptEnded | None = None
    cost_nano_usd: int = 0
    usage: Usage = Usage()

    @property
    def outcome(self) -> Outcome | None:
        """Return how it ended, None while it runs."""
        return self.ended.outcome if self.ended else None


class JobState(Frozen):
    """One stage in one round."""

    job_id: str
    stage: str
    role: str
    round: int
    kind: Literal["agent", "checks"]
    base_commit: str
    spec: BlobRef
    dispatched_at: float
    attempts: tuple[AttemptState, ...] = ()
    standing: Standing = "queued"
    publications: int = 1
    """How often it was put on the bus; names the copy, so that a broker's deduplication never swallows a new one."""
    faults: int = 0
    """Infrastructure faults since it was dispatched or the run was resumed."""
    lost_with: tuple[str, ...] = ()
    """Executors it was lost with since then, one entry for each attempt."""
    dead_lettered: bool = False
    verdict: Verdict | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    assurance: Assurance = ""
    commit: str | None = None
    tests: TestCounts = TestCounts()
    evidence: BlobRef | None = None
    judged_at: float | None = None
    judged_seq: int = 0
    """Number of the verdict's event: the order of verdicts, which no clock decides."""
    usage_error: bool = False

    @property
    def is_done(self) -> bool:
        """Return whether a gate has spoken."""
        return self.verdict is not None

    @property
    def current(self) -> AttemptState | None:
        """Return the attempt an executor holds now, None if there is none."""
        return self.attempts[-1] if self.standing == "claimed" else None

    @property
    def ended(self) -> AttemptEnded | None:
        """Return how the last attempt ended, None while the job is queued or claimed."""
        return self.attempts[-1].ended if self.standing == "ended" else None


class BudgetState(Frozen):
    """Integer nano-USD of one run: what is settled and what is held."""

    limit_nano_usd: int
    settled_nano_usd: int = 0
    held: dict[str, int] = Field(default_factory=dict)
    """Reservations without a settlement, by `<job_id>/<attempt>/<call_id>`."""
    settled_calls: dict[str, int] = Field(default_factory=dict)
    """What each settled call cost, by the same key: a repeated request changes nothing."""
    usage: Usage = Usage()
    unsettled_calls: int = 0
    warned: bool = False

    @property
    def held_nano_usd(self) -> int:
        """Return the sum of the reservations that are not settled."""
        return sum(self.held.values())

    @property
    def remaining_nano_usd(self) -> int:
        """Return what a new reservation may take."""
        return self.limit_nano_usd - self.settled_nano_usd - self.held_nano_usd


class RunState(Frozen):
    """Everything known of one run; equal events give equal states."""

    run_id: str
    state: State
    intent: Intent
    pipeline: Pipeline
    trace_id: str
    sampled: bool = True
    """Whether the run's spans are kept."""
    trace_url: str = ""
    """The page that shows them; empty: none does."""
    request_id: str = ""
    accepted_at: float
    seq: int
    jobs: dict[str, JobState] = Field(default_factory=dict)
    """By job id, in the order they were dispatched."""
    joined: dict[str, str] = Field(default_factory=dict)
    """Joined commit by `<stage>-<round>` of the stage that waited for it."""
    joins: dict[str, str] = Field(default_factory=dict)
    """The same commits by `+`-joined parents."""
    budget: BudgetState
    landed_commit: str | None = None
    landed_bundle: BlobRef | None = None
    """Git bundle of the landed commit on the base, if one is stored."""
    delivered: bool = False
    branch: str
    files_created: tuple[str, ...] = ()
    files_modified: tuple[str, ...] = ()
    files_deleted: tuple[str, ...] = ()
    exit_code: int | None = None
    """Set when the run is final or parked."""
    ended_at: float | None = None
    end_stage: str = ""
    end_check: str = ""
    end_reason: str = ""
    stop_requested: Literal["cancel", "park"] | None = None
    stop_reason: str = ""
    step_failed: StepFailed | None = None
    """Why the line closes although nobody asked; cleared by a resume."""
    delivery_failed: bool = False

    def latest(self, stage: str) -> JobState | None:
        """Return a stage's job of the highest round, None if it has none."""
        jobs = [job for job in self.jobs.values() if job.stage == stage]
        return max(jobs, key=lambda job: job.round, default=None)
