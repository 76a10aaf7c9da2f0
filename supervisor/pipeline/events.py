"""What happened in a run, as immutable events: the truth from which every state is folded; not how they are stored (`store`)."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from sandbox.contract.blob import BlobRef
from sandbox.contract.ids import JobId, RunId, Sha, Slug, StageName
from sandbox.contract.job import Submission
from sandbox.contract.model import Frozen
from sandbox.contract.packages import Fetched
from sandbox.contract.result import Cause, Dropped, Finding, Outcome, Usage
from supervisor.pipeline.definition import PRIORITY_DEFAULT, PRIORITY_MAX, Pipeline

Verdict = Literal["pass", "fail", "hold"]
Assurance = Literal["", "sealed", "in-process", "unlocked"]
"""What a verdict of tests rests on: tests and product in two processes, in one, or tests that are not from their own commits;
nothing for a verdict without tests."""


class Intent(Frozen):
    """The immutable submission that opens a run."""

    request: str = Field(min_length=1, max_length=64_000)
    feature: Slug
    slug_given: bool = False
    repository: str
    """The user's repository as they named it, absolute path; for display and delivery, never opened by an executor."""
    base_name: str
    """What `base` was resolved from, e.g. `main`."""
    base_commit: Sha
    base_pack: BlobRef
    """Pack of the base commit without history (DECISIONS D1)."""
    branch: str
    """`andon/<slug>` unless a blueprint names one."""
    author_name: str = "andon"
    author_email: str = "andon@localhost"
    mode: Literal["live", "replay"] = "live"
    cassette: BlobRef | None = None
    record: bool = False
    parallel: bool = True
    baseline: bool = True
    budget_nano_usd: int = Field(gt=0)
    warn_nano_usd: int = Field(gt=0)
    given_spec: str | None = Field(None, max_length=256_000)
    """Text of `--spec FILE`; the spec stage is then skipped."""
    spec_commit: Sha | None = None
    """The base commit plus `given_spec`, made at intake; None: the line starts from `base_commit`."""
    dockerfile_sha256: str | None = None
    """Consented hash of the base commit's `.andon/Dockerfile`."""
    image_note: str = ""
    priority: int = Field(PRIORITY_DEFAULT, ge=1, le=PRIORITY_MAX)
    delivery: Literal["supervisor", "client"] = "supervisor"
    """Who brings the landed commit into the repository (DECISIONS D1)."""


class Event(Frozen):
    """The head every event has; `seq` is the log's number of it, growing within a run (not by one), set when it is read."""

    run_id: RunId
    at: float
    """Unix seconds of the supervisor's clock; for display, never for order."""
    seq: int = 0


class RunAccepted(Event):
    """The run is open."""

    type: Literal["run_accepted"] = "run_accepted"
    intent: Intent
    pipeline: Pipeline
    trace_id: str
    sampled: bool = True
    """Whether the run's spans are kept; decided here, once (OTEL_TRACES_SAMPLER), for whoever takes part."""
    trace_url: str = ""
    """The page that shows the run's trace; empty: it is in the run's file only, or nowhere if it is not sampled."""
    traceparent_of_caller: str = ""
    request_id: str = ""
    """What the submission called itself: the same one again is answered with this run."""


class JobDispatched(Event):
    """A job was decided on and is (or will be, after a crash) published. Written before it is published."""

    type: Literal["job_dispatched"] = "job_dispatched"
    job_id: JobId
    stage: StageName
    role: str
    round: int
    kind: Literal["agent", "checks"]
    base_commit: Sha
    spec: BlobRef
    """The `JobSpec` as JSON: republished byte for byte."""


class JobRepublished(Event):
    """An infrastructure fault or a resume put the same job on the bus again."""

    type: Literal["job_republished"] = "job_republished"
    job_id: JobId
    reason: str


class JobDeadLettered(Event):
    """A job was lost with so many executors that it may be what brings them down: the line parks until a person looks at it."""

    type: Literal["job_dead_lettered"] = "job_dead_lettered"
    job_id: JobId
    executors: tuple[str, ...]
    """Those it was lost with since it was dispatched or resumed, one entry for each attempt, in order."""
    reason: str


class AttemptStarted(Event):
    """A claim was granted; from now on only this token's result counts."""

    type: Literal["attempt_started"] = "attempt_started"
    job_id: JobId
    attempt: int
    executor: str
    token_sha256: str
    ack_subject: str


class BudgetReserved(Event):
    """Money is held for one model call."""

    type: Literal["budget_reserved"] = "budget_reserved"
    job_id: JobId
    attempt: int
    call_id: str
    nano_usd: int = Field(ge=0)
    """The whole reservation; an `extend` appends a second event with the larger amount."""
    model: str = ""


class BudgetSettled(Event):
    """One model call cost this much."""

    type: Literal["budget_settled"] = "budget_settled"
    job_id: JobId
    attempt: int
    call_id: str
    nano_usd: int = Field(ge=0)
    usage: Usage = Usage()
    unsettled: bool = False


class BudgetWarned(Event):
    """Spending passed the warning threshold for the first time."""

    type: Literal["budget_warned"] = "budget_warned"
    spent_nano_usd: int


class AttemptEnded(Event):
    """A result with the right token arrived, or the supervisor declared the attempt dead."""

    type: Literal["attempt_ended"] = "attempt_ended"
    job_id: JobId
    attempt: int
    executor: str
    outcome: Outcome
    reason: str = ""
    cause: Cause = ""
    submission: Submission | None = None
    result: BlobRef | None = None
    """The whole `AttemptResult` as JSON, kept for judging after a crash."""
    container_id: str = ""
    missing: tuple[str, ...] = ()
    fetched: Fetched = Fetched()
    """What was installed, as its gateway counted it."""
    divergences: int = 0
    dropped: Dropped = Dropped()
    recording: BlobRef | None = None
    log: BlobRef | None = None
    salvage_ref: str | None = None
    started_at: float
    first_instruction_at: float | None = None
    ended_at: float


class TestCounts(Frozen):
    """Counted test ids of a report."""

    __test__ = False  # not a pytest class

    passed: int = 0
    failed: int = 0
    skipped: int = 0


class JobJudged(Event):
    """A gate turned the evidence of a job's last attempt into a verdict."""

    type: Literal["job_judged"] = "job_judged"
    job_id: JobId
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    commit: Sha | None = None
    """The supervisor's own commit of the work (same parent as the job's base); the base itself if nothing changed."""
    tests: TestCounts = TestCounts()
    evidence: BlobRef | None = None
    """Gate-specific JSON that later gates read: for a checks job the outcome of every test id."""
    notes: tuple[str, ...] = ()
    """What a person should know although it passed: guards, known reds, suppressions."""
    assurance: Assurance = ""
    usage_error: bool = False
    """The verdict is the repository's or the request's fault (a baseline without checks): exit 2, not 1."""


class Joined(Event):
    """The disjoint changes of siblings are one commit."""

    type: Literal["joined"] = "joined"
    stage: StageName
    """The stage that waits for it."""
    round: int
    commit: Sha
    parents: tuple[Sha, ...]


class RunLanded(Event):
    """The supervisor's mirror moved the branch: from here on the run is won."""

    type: Literal["run_landed"] = "run_landed"
    branch: str
    commit: Sha
    files_created: tuple[str, ...] = ()
    files_modified: tuple[str, ...] = ()
    files_deleted: tuple[str, ...] = ()
    bundle: BlobRef | None = None
    """Git bundle of the commit on its base, in IN, for whoever delivers it; None: only the supervisor's mirror has it."""


class RunDelivered(Event):
    """The commit is in the user's repository."""

    type: Literal["run_delivered"] = "run_delivered"
    branch: str
    commit: Sha


class DeliveryFailed(Event):
    """The run is won, but the user's repository would not take the commit; `andon apply` or `resume` tries again."""

    type: Literal["delivery_failed"] = "delivery_failed"
    branch: str
    exit_code: int
    reason: str


class StepFailed(Event):
    """The supervisor could not do what was next (prepare, judge, join, land); the line closes.

    `fail`: it will never work, siblings are cancelled. `park`: it may work later, what runs may end first.
    """

    type: Literal["step_failed"] = "step_failed"
    how: Literal["fail", "park"]
    exit_code: int
    stage: str = ""
    check: str = ""
    reason: str


class StopRequested(Event):
    """A person wants the run to stop (`cancel`) or to wait (`park`)."""

    type: Literal["stop_requested"] = "stop_requested"
    how: Literal["cancel", "park"]
    reason: str = ""


class RunParked(Event):
    """Nothing runs until `resume`; everything written is kept."""

    type: Literal["run_parked"] = "run_parked"
    reason: str
    exit_code: int


class RunResumed(Event):
    """A person or a new supervisor goes on."""

    type: Literal["run_resumed"] = "run_resumed"
    reason: str = ""
    budget_nano_usd: int | None = None
    """A raised budget."""


class RunFailed(Event):
    """The line stopped; nothing landed."""

    type: Literal["run_failed"] = "run_failed"
    exit_code: int
    stage: str = ""
    check: str = ""
    reason: str


class RunCancelled(Event):
    """A person stopped it."""

    type: Literal["run_cancelled"] = "run_cancelled"
    exit_code: int = 130
    reason: str = ""


AnyEvent = Annotated[
    RunAccepted
    | JobDispatched
    | JobRepublished
    | JobDeadLettered
    | AttemptStarted
    | BudgetReserved
    | BudgetSettled
    | BudgetWarned
    | AttemptEnded
    | JobJudged
    | Joined
    | RunLanded
    | RunDelivered
    | DeliveryFailed
    | StepFailed
    | StopRequested
    | RunParked
    | RunResumed
    | RunFailed
    | RunCancelled,
    Field(discriminator="type"),
]

_adapter: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


def encode(event: AnyEvent) -> bytes:
    """Return an event as JSON without its `seq`, which the log assigns."""
    return event.model_dump_json(exclude={"seq"}).encode()


def decode(data: bytes, seq: int) -> AnyEvent:
    """Parse an event of the log.

    Raises:
        ValueError: Not one of ours.
    """
    return _adapter.validate_json(data).model_copy(update={"seq": seq})
