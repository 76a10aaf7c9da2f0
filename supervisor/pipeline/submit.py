"""What a CLI says to the supervisor and is answered (DECISIONS D19): requests of `andon.rpc.*`; JSON in, JSON out."""

from typing import Literal

from pydantic import Field

from sandbox.contract.blob import BlobRef
from sandbox.contract.ids import RunId, Sha, Slug
from sandbox.contract.model import Frozen


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


class Answer(Frozen):
    """Whether a stop or resume was taken."""

    ok: bool
    error: str = ""
    exit_code: int = 0
