"""A pipeline as data: stages, their order and limits, with every default resolved; not its graph (`graph`) nor its run (`machine`).

Our own file and the first source's `assembly_line:` file both load (DESIGN.md §6, `tests/fixtures/assembly_line.yaml`).
"""

from typing import Literal

from pydantic import Field

from sandbox.contract.agent_spec import DriverSpec
from sandbox.contract.ids import StageName
from sandbox.contract.job import Limits
from sandbox.contract.labels import Labels
from sandbox.contract.model import Frozen
from sandbox.contract.packages import Network, Packages

PRIORITY_DEFAULT = 5
PRIORITY_MAX = 10
"""The most urgent; 1 is the least."""

Role = Literal["spec", "interface", "implement", "test", "validate", "docs", "land"]


class Stage(Frozen):
    """A named node of the pipeline, resolved."""

    name: StageName
    role: Role
    agent: str | None = None
    """Name of an agent definition; None for validate and land."""
    driver: DriverSpec | None = None
    """Which program is the agent; None: what its definition says."""
    model: str | None = None
    """Overrides the agent definition's model."""
    depends_on: tuple[StageName, ...] = ()
    allow: tuple[str, ...] = ()
    """Extra globs this stage names, which beat the protected paths (DECISIONS G3)."""
    command: str | None = None
    """For validate: a command instead of `quality.toml`'s."""
    output: str | None = None
    steps_max: int | None = Field(None, ge=1)
    output_tokens_max: int | None = Field(None, ge=256)
    budget_usd: str | None = None
    """Decimal text, e.g. "2.50"."""
    limits: Limits = Limits()
    runtime: str = "runc"
    strict: bool = False
    """Refuse to run where any protection is missing."""
    pool: str = "default"
    labels: Labels = Field(default_factory=dict)
    """What an executor's labels have to match (`sandbox/contract/labels.py`)."""
    network: Network = "none"
    packages: Packages = Packages()
    """For `network: allowlist`: the names it allows."""
    priority: int | None = Field(None, ge=1, le=PRIORITY_MAX)
    """Of this stage's jobs; None: the run's."""


class Pipeline(Frozen):
    """The DAG of stages a run goes through."""

    name: str = "feature"
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=64)
    rework_max: int = Field(3, ge=0, le=20)
    """`implement` jobs beyond the first that a red validate may cause (DECISIONS G13)."""
    test_rework_max: int = Field(2, ge=0, le=20)
    """`test` jobs beyond the first that a failed red-check may cause (DECISIONS G14)."""
    retries_max: int = Field(3, ge=0, le=20)
    """Attempts beyond the first of one job after infrastructure faults: 1, 2, 4, … s after them. A job that was lost with three
    executors, or three times with one, is not tried again whatever this says (`fate.is_poison`)."""
