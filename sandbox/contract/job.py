"""One job as it crosses the bus, and the assignment the program in the container reads; not its result (`result`)."""

from typing import Literal

from pydantic import Field

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.blob import BlobRef
from sandbox.contract.ids import JobId, PoolName, RunId, Sha, Sha256, Slug, StageName
from sandbox.contract.labels import Labels
from sandbox.contract.model import Frozen
from sandbox.contract.packages import Network, Packages
from sandbox.contract.scope import WriteScope
from sandbox.contract.signatures import ToImport

JobKind = Literal["agent", "checks"]
ReportFormat = Literal["junit", "sarif", "signatures", "none"]
_SUFFIXES = {"junit": "xml", "sarif": "sarif", "signatures": "json"}


class Limits(Frozen):
    """Everything one attempt may use (DECISIONS G4)."""

    wall_s: int = Field(1800, ge=1, le=86_400)
    """Stage wall clock, from the claim."""
    no_progress_s: int = Field(900, ge=1, le=86_400)
    """How long the program in the container may do nothing the gateway sees; waiting for a provider that is busy is not charged."""
    memory_mib: int = Field(2048, ge=64)
    """Container memory; the workspace's tmpfs is added to it."""
    cpus: float = Field(2.0, gt=0, le=256)
    pids_max: int = Field(256, ge=16, le=32_768)
    workspace_mib: int = Field(512, ge=16)
    workspace_inodes_max: int = Field(200_000, ge=1_000)


class Check(Frozen):
    """One command in a sandbox, taken from the base commit's `quality.toml` or the pipeline (DECISIONS G5)."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,47}$")
    argv: tuple[str, ...] = Field(min_length=1)
    report: ReportFormat = "none"
    path: str | None = None
    """Where the command leaves its report, relative to `/out`; None: `<name>` with a suffix of its format."""
    blocking: bool = True
    is_tests: bool = False
    """A JUnit report with test ids is required of it."""
    canary: bool = False
    """A test that must fail is added to the run, and owed by its report."""
    tests_scope: WriteScope | None = None
    """Which paths are tests and their configuration; set: a sealed run, they in one process and the rest, the product, in another."""
    to_import: ToImport | None = None
    """Set if and only if `report` is signatures: `argv` starts a Python, and what these modules declare in it is the report."""
    timeout_s: int = Field(900, ge=1, le=86_400)

    @property
    def report_path(self) -> str | None:
        """Return the report's path relative to `/out`, or None if the check has none."""
        if self.report == "none":
            return None
        return self.path or f"{self.name}.{_SUFFIXES[self.report]}"


class JobSpec(Frozen):
    """One stage of one run on the bus; the same bytes for every attempt."""

    job_id: JobId
    run_id: RunId
    feature: Slug
    stage: StageName
    role: str
    """What the stage is for: spec, interface, implement, test, docs, validate, baseline, red-check."""
    round: int = Field(ge=1, le=999)
    kind: JobKind
    pool: PoolName = "default"
    priority: int = Field(5, ge=1, le=10)
    """10 is the most urgent."""
    labels: Labels = Field(default_factory=dict)
    """What the executor's labels have to match (`contract/labels.py`)."""
    base_commit: Sha
    """The commit the workspace is made from; its pack holds that commit without history."""
    input_pack: BlobRef
    task_bundle: BlobRef | None = None
    agent: AgentSpec | None = None
    """Set if and only if `kind` is agent."""
    checks: tuple[Check, ...] = ()
    scope: WriteScope = WriteScope()
    """An empty scope allows nothing: checks jobs write only to /out."""
    limits: Limits = Limits()
    network: Network = "none"
    packages: Packages = Packages()
    """The names `allowlist` allows; otherwise empty."""
    runtime: str = "runc"
    strict: bool = False
    """Refuse to run where any protection is missing."""
    dockerfile_sha256: Sha256 | None = None
    """Hash of the base commit's `.andon/Dockerfile` a person consented to; None: the shipped agent image."""
    mode: Literal["live", "replay"] = "live"
    cassette: BlobRef | None = None
    """Set if and only if `mode` is replay and `kind` is agent."""
    record: bool = False
    """Keep every model call for a cassette; they come back in the result."""
    stage_budget_nano_usd: int | None = Field(None, ge=0)


class Assignment(Frozen):
    """What the program in the container is told by `GET /andon/assignment`; no secret is in it (DECISIONS D6)."""

    job_id: JobId
    stage: StageName
    round: int
    attempt: int
    kind: JobKind
    agent: AgentSpec | None = None
    checks: tuple[Check, ...] = ()
    tool_env: dict[str, str] = Field(default_factory=dict)
    """Environment of tool and check processes, built from empty."""
    network: Network = "none"
    packages_port: int = Field(0, ge=0, le=65_535)
    """Where tools and checks look for the package routes on their 127.0.0.1, unless `network` is none."""
    traceparent: str
    wall_s: int
    self_destruct_s: int = Field(86_400 + 600, ge=1)
    """Seconds after which the program ends itself, and so its container, whoever else is alive."""


class Submission(Frozen):
    """What `POST /andon/submit` carries, at most 64 KiB; untrusted, recorded, never decides (DECISIONS G6)."""

    status: Literal["done", "blocked", "checked", "no_submit", "refused", "step_limit", "budget", "error"]
    summary: str = Field("", max_length=32_000)
    steps: int = Field(0, ge=0)
    exits: tuple["CheckExit", ...] = Field((), max_length=64)


class CheckExit(Frozen):
    """How one check's command ended, said by the runner in the container."""

    name: str
    exit_code: int | None
    """None: it was killed at its timeout."""
    duration_s: float = Field(ge=0)
    started_at: float = Field(0.0, ge=0)
    """Unix seconds by the sandbox's clock, for the trace; 0: not said."""
    output_tail: str = Field("", max_length=16_000)
    report_sha256: Sha256 | None = None
    """Digest of the report right after the command ended; None: there was none, or it could not be read."""
    sealed: bool = False
    """The tests ran in another process than the product, behind a wall."""
    why_not_sealed: str = Field("", max_length=300)
    """Why not, although the check asks for it."""
