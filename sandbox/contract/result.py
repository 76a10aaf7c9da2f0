"""How an attempt ended and what it left, as an executor reports it; not what a gate says of it."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from sandbox.contract.blob import BlobRef
from sandbox.contract.ids import ExecutorName, JobId, RunId, Sha, StageName
from sandbox.contract.job import CheckExit, Submission
from sandbox.contract.model import Frozen
from sandbox.contract.packages import Fetched


class Outcome(StrEnum):
    """How an attempt ended (DECISIONS G12)."""

    SUBMITTED = "submitted"
    BLOCKED = "blocked"
    NO_SUBMIT = "no_submit"
    REFUSED = "refused"
    STEP_LIMIT = "step_limit"
    TIMEOUT = "timeout"
    OOM = "oom"
    KILLED = "killed"
    """The container died and neither we nor the memory limit did it: infrastructure, retried."""
    LOST = "lost"
    """The executor or its infrastructure broke: retried."""
    BUDGET = "budget"


RETRYABLE = frozenset({Outcome.KILLED, Outcome.LOST})


Cause = Literal["", "auth", "provider", "stale_cassette", "no_record", "cancelled", "strict"]
"""Why the gateway or the supervisor ended an attempt, where the outcome alone does not give the exit code (DECISIONS G11, G12):
auth → run fails, exit 2; provider (down or spend cap, after retries) → parked, exit 5; stale_cassette → fails, exit 2;
no_record (the cassette ends here) → fails with the last verdict, exit 1; cancelled → we stopped it, no retry;
strict (a protection is missing) → fails, exit 2."""


class Usage(Frozen):
    """Tokens as the provider counted them; `input_tokens` are the uncached ones only."""

    input_tokens: int = Field(0, ge=0)
    output_tokens: int = Field(0, ge=0)
    cache_read_input_tokens: int = Field(0, ge=0)
    cache_write_input_tokens: int = Field(0, ge=0)

    @property
    def all_input_tokens(self) -> int:
        """Return the input tokens, cached ones included, as the conventions of OpenTelemetry count them."""
        return self.input_tokens + self.cache_read_input_tokens + self.cache_write_input_tokens

    def __add__(self, other: "Usage") -> "Usage":
        """Return the sum, field by field."""
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_input_tokens=self.cache_read_input_tokens + other.cache_read_input_tokens,
            cache_write_input_tokens=self.cache_write_input_tokens + other.cache_write_input_tokens,
        )


class SandboxRecord(Frozen):
    """What the sandbox of this attempt was, and which protections this host could not give."""

    container_id: str = ""
    image_id: str = ""
    runtime: str = "runc"
    uid: int | None = None
    missing: tuple[str, ...] = ()
    """One line each, e.g. `no quota mount: the workspace is a plain directory`."""


class CheckReport(Frozen):
    """One check's end and the report it left in `/out`, read after the container was dead."""

    name: str
    exit: CheckExit | None
    """None: the runner never said how it ended."""
    report: BlobRef | None = None
    problem: str | None = None
    """Why there is no report although one was due, e.g. `no file /out/pytest.xml`."""


class Finding(Frozen):
    """One reason for a verdict, for a person and for the next agent."""

    check: str
    """What was checked: write-scope, interface-lock, pytest, …"""
    message: str = Field(max_length=8_000)
    path: str | None = None

    @property
    def told(self) -> str:
        """Return the message with its path ahead, once: many messages begin with it."""
        return self.message if not self.path or self.message.startswith(self.path) else f"{self.path}: {self.message}"


class Dropped(Frozen):
    """Build litter that was not committed (DECISIONS G2)."""

    count: int = Field(0, ge=0)
    examples: tuple[str, ...] = Field((), max_length=20)


class AttemptResult(Frozen):
    """One attempt's end; it counts only with the token its claim was given."""

    job_id: JobId
    run_id: RunId
    stage: StageName
    round: int
    attempt: int = Field(ge=1)
    token: str
    executor: ExecutorName
    outcome: Outcome
    reason: str = Field("", max_length=4_000)
    """One line for a person when the outcome is not submitted."""
    cause: Cause = ""
    submission: Submission | None = None
    commit: Sha | None = None
    """The executor's transport commit on top of the job's base; None if nothing was sealed or nothing changed."""
    git_bundle: BlobRef | None = None
    reports: tuple[CheckReport, ...] = ()
    remains: BlobRef | None = None
    """A tar archive of what was changed in a tree that was refused, for a person; it never lands."""
    findings: tuple[Finding, ...] = ()
    """What the executor's own scope check or walker found; the supervisor judges again."""
    dropped: Dropped = Dropped()
    recording: BlobRef | None = None
    """JSON lines of this attempt's model calls, when the job asked to record."""
    divergences: int = Field(0, ge=0)
    """Replayed turns whose tool output differed from the recording."""
    log: BlobRef | None = None
    sandbox: SandboxRecord = SandboxRecord()
    fetched: Fetched = Fetched()
    usage: Usage = Usage()
    cost_nano_usd: int = Field(0, ge=0)
    """The gateway's own sum, for display; the ledger of the run decides."""
    started_at: float
    first_instruction_at: float | None = None
    """Unix seconds of the first byte on the gateway socket."""
    ended_at: float
