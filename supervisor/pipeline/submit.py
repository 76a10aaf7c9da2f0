"""What a CLI says to the supervisor and is answered (DECISIONS D19): requests of `andon.rpc.*`; JSON in, JSON out."""

from typing import Literal

from pydantic import Field

from sandbox.contract.blob import BlobRef
from sandbox.contract.ids import JobId, RunId, Sha, Slug
from sandbox.contract.model import Frozen
from supervisor.pipeline.definition import PRIORITY_DEFAULT, PRIORITY_MAX


class SubmitRequest(Frozen):
    """Open a run; the base pack (and a cassette) are in the object store already."""

    request: str = Field(min_length=1, max_length=64_000)
    slug: Slug | None = None
    """Given by `--slug`: its branch must be free, otherwise exit 6. None: derived, next free."""
    repository: str
    base_name: str
    base_commit: Sha
    base_pack: BlobRef
    branches: tuple[str, ...] = Field((), max_length=10_000)
    """Names of the repository's branches that are `andon` or begin with `andon/` (DECISIONS G8)."""
    author_name: str = ""
    author_email: str = ""
    pipeline_yaml: str | None = Field(None, max_length=256_000)
    """Text of `--pipeline FILE`; None: `.andon/pipeline.yaml` of the base commit, else the default."""
    pipeline_source: str = ""
    """How to name it in an error."""
    spec_text: str | None = Field(None, max_length=256_000)
    mode: Literal["live", "replay"] = "live"
    cassette: BlobRef | None = None
    record: bool = False
    parallel: bool = True
    baseline: bool = True
    budget_nano_usd: int = Field(gt=0)
    warn_nano_usd: int = Field(gt=0)
    dockerfile_sha256: str | None = None
    """Hash of `.andon/Dockerfile` the person consented to; a base commit with another one is refused."""
    traceparent: str = ""
    strict: bool = False
    """Every stage is strict, whatever the pipeline says."""
    priority: int = Field(PRIORITY_DEFAULT, ge=1, le=PRIORITY_MAX)
    """10 is the most urgent; a stage of the pipeline may say otherwise for its own jobs."""
    delivery: Literal["supervisor", "client"] = "supervisor"
    """Who brings the landed commit into the repository: a CLI on its own host does if the supervisor is on another one (DECISIONS D1)."""
    request_id: str = Field("", pattern=r"^[A-Za-z0-9-]{0,64}$")
    """Chosen at random by whoever asks: the same submission again is answered with the same run. Empty: each one opens a run."""


class SubmitReply(Frozen):
    """A run, or why there is none."""

    run_id: RunId | None = None
    feature: str = ""
    branch: str = ""
    trace_id: str = ""
    notices: tuple[str, ...] = ()
    error: str = ""
    exit_code: int = 0


class StopRequest(Frozen):
    """Park or cancel a run."""

    run_id: RunId
    how: Literal["cancel", "park"]
    reason: str = ""


class ResumeRequest(Frozen):
    """Go on with a parked run."""

    run_id: RunId
    budget_nano_usd: int | None = Field(None, gt=0)


class WhyRequest(Frozen):
    """Ask what a run waits for or does at this moment."""

    run_id: RunId


class Reason(Frozen):
    """One thing a run waits for or does."""

    kind: Literal["queued", "running", "waiting", "blocked", "throttled", "parked", "over"]
    """queued: for an executor. running: on one. waiting: for a person. blocked: on another job. throttled: money or retries."""
    text: str
    """One line for a person: what, since when, and what would change it."""
    job_id: JobId | None = None
    """None: it is about the whole run."""
    stage: str = ""
    since: float | None = None
    """Unix seconds; None: not known."""
    executor: str = ""
    tool: str = ""
    """What the agent does now, e.g. `bash`; empty: nothing is known of it."""


class WhyReply(Frozen):
    """Everything a run waits for or does, from the supervisor's own state; or why there is no answer."""

    run_id: RunId | None = None
    state: str = ""
    """As in the result object (DECISIONS G12)."""
    reasons: tuple[Reason, ...] = ()
    error: str = ""
    exit_code: int = 0


class DeliveredRequest(Frozen):
    """Whoever delivered a landed run into the user's repository says how it went (DECISIONS D1)."""

    run_id: RunId
    commit: Sha
    """The landed commit."""
    ok: bool
    exit_code: int = Field(0, ge=0, le=255)
    """Why it failed, as the command's exit code; 0 if it did not."""
    reason: str = Field("", max_length=4_000)


class Answer(Frozen):
    """Whether a stop, a resume or a delivery was taken."""

    ok: bool
    error: str = ""
    exit_code: int = 0
