"""A pipeline file becomes a `Pipeline`: our own form and the first source's; strict keys, every default resolved; not its run.

    pipeline:                              assembly_line:
      defaults: {model: …, timeout_s: …}     stages: [{name, agent, model, output, depends_on, type, command}]
      stages: [{name, agent, …}]             on_test_failure: {max_retries: 3, strategy: impl-agent-retry}

Every error is a `ConfigError` that names the file, the stage and the key.
"""

import difflib
from decimal import Decimal, InvalidOperation
from importlib.resources import files
from typing import Any, Literal, TypeVar, cast, get_args

from pydantic import ConfigDict, Field, ValidationError

from sandbox.contract.errors import ConfigError
from sandbox.contract.job import Limits
from sandbox.contract.labels import Labels
from sandbox.contract.model import Frozen
from sandbox.contract.packages import PACKAGES_MAX, Network, Packages, npm_name, pip_name
from supervisor.pipeline.agent_form import AgentForm, AgentKey, driver_of
from supervisor.pipeline.bounded_yaml import load_yaml
from supervisor.pipeline.definition import PRIORITY_MAX, Pipeline, Role, Stage
from supervisor.pipeline.graph import ancestors, find_cycle, sinks

BASELINE = "baseline"
RED_CHECK = "red-check"
RESERVED = frozenset({BASELINE, RED_CHECK})
"""Stage names of the jobs the machine emits by itself (DECISIONS G14)."""

AGENT_ALIASES: dict[str, str] = {
    "spec-agent": "spec",
    "interface-agent": "interface",
    "impl-agent": "implement",
    "implementation-agent": "implement",
    "implementation": "implement",
    "test-agent": "test",
    "docs-agent": "docs",
}
"""Names of the first source's agents, and the definition each means."""
_AGENT_ROLES = ("spec", "interface", "implement", "test", "docs")
_LABELS_ARE = 'labels are names of a-z, 0-9, ".", "_", "-" with a value in quotes, such as {arch: "arm64", mem: ">=16"}'
_SAME_KEYS = ("no_progress_s", "memory_mib", "cpus", "pids_max", "workspace_mib", "workspace_inodes_max")
_LIMIT_KEYS = {"timeout_s": "wall_s"} | {name: name for name in _SAME_KEYS}


class _Form(Frozen):
    """A part of the file as it is written; strict about types too, so that `cpus: yes` is an error."""

    model_config = ConfigDict(strict=True)


class _PackagesForm(_Form):
    pip: list[str] = Field(default_factory=list, max_length=PACKAGES_MAX)
    npm: list[str] = Field(default_factory=list, max_length=PACKAGES_MAX)


class _Common(_Form):
    model: str | None = Field(None, min_length=1, max_length=200)
    steps_max: int | None = Field(None, ge=1, le=1000)
    max_tokens: int | None = Field(None, ge=256, le=128_000)
    timeout_s: int | None = Field(None, ge=1, le=86_400)
    no_progress_s: int | None = Field(None, ge=1, le=86_400)
    memory_mib: int | None = Field(None, ge=64, le=1 << 22)
    cpus: float | None = Field(None, gt=0, le=256)
    pids_max: int | None = Field(None, ge=16, le=32_768)
    workspace_mib: int | None = Field(None, ge=16, le=1 << 20)
    workspace_inodes_max: int | None = Field(None, ge=1_000, le=1 << 30)
    runtime: str | None = Field(None, pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,29}[a-z0-9])?$")
    strict: bool | None = None
    pool: str | None = Field(None, pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?$")
    labels: Labels | None = None
    priority: int | None = Field(None, ge=1, le=PRIORITY_MAX)
    network: Network | None = None
    packages: _PackagesForm | None = None
    agent: AgentKey = None


class _StageForm(_Common):
    name: str = Field(pattern=r"^[a-z](?:[a-z0-9_-]{0,30}[a-z0-9])?$")
    type: Literal["agent", "builtin"] | None = None
    role: Literal["spec", "interface", "implement", "test", "validate", "docs", "land"] | None = None
    depends_on: list[str] = Field(default_factory=list, max_length=64)
    allow: list[str] = Field(default_factory=list, max_length=200)
    scope: list[str] = Field(default_factory=list, max_length=200)
    """Another word for `allow`."""
    command: str | None = Field(None, min_length=1, max_length=4_000)
    output: str | None = Field(None, min_length=1, max_length=400)
    budget_usd: int | float | str | None = None
    needs_model: bool | None = None


class _PipelineForm(_Form):
    name: str = Field("feature", pattern=r"^[a-z0-9][a-z0-9_-]{0,47}$")
    rework_max: int = Field(3, ge=0, le=20)
    test_rework_max: int = Field(2, ge=0, le=20)
    retries_max: int = Field(3, ge=0, le=20)
    defaults: _Common = _Common()
    stages: list[_StageForm] = Field(min_length=1, max_length=63)


class _OnTestFailure(_Form):
    max_retries: int = Field(3, ge=0, le=20)
    strategy: Literal["impl-agent-retry"] = "impl-agent-retry"


class _AssemblyLineForm(_Form):
    name: str = Field("feature", pattern=r"^[a-z0-9][a-z0-9_-]{0,47}$")
    defaults: _Common = _Common()
    stages: list[_StageForm] = Field(min_length=1, max_length=63)
    on_test_failure: _OnTestFailure = _OnTestFailure()


FormT = TypeVar("FormT", bound=_Form)


def default_pipeline() -> Pipeline:
    """Return the pipeline Andon ships."""
    return load_pipeline(_shipped(), "default.yaml")


def load_pipeline(text: str, source: str) -> Pipeline:
    """Return the pipeline `text` describes, `land` added last if the file has none.

    Args:
        text: YAML of at most 256 KiB, in our own or the first source's form; one of ours without `stages` changes the shipped line.
        source: How to name it in an error.

    Raises:
        ConfigError: Not YAML, an unknown key, a stage that does not exist, a name twice, a cycle; names file, stage and key.
    """
    document = load_yaml(text, source)
    if not isinstance(document, dict) or len(document) != 1 or not (document.keys() <= {"pipeline", "assembly_line"}):
        raise ConfigError(f"{source}: the file has exactly one key at its top, `pipeline` or `assembly_line`")
    key, body = next(iter(document.items()))
    if key == "pipeline":
        form = _parsed(_PipelineForm, _on_the_shipped_line(body), key, source)
    else:
        line = _parsed(_AssemblyLineForm, body, key, source)
        form = _PipelineForm(name=line.name, rework_max=line.on_test_failure.max_retries, defaults=line.defaults, stages=line.stages)
    if form.defaults.agent is not None and form.defaults.agent.name is not None:
        raise ConfigError(f"{source}: defaults: agent.name: each stage names its own; here only its driver can stand")
    stages = [_stage(one, form.defaults, source) for one in form.stages]
    return Pipeline(
        name=form.name,
        stages=_checked([*stages, *_implied_land(stages)], source),
        rework_max=form.rework_max,
        test_rework_max=form.test_rework_max,
        retries_max=form.retries_max,
    )


def _shipped() -> str:
    return files("supervisor.pipeline").joinpath("default.yaml").read_text()


def _on_the_shipped_line(body: object) -> object:
    """Return a file's pipeline with what it does not say taken from the shipped one, if it names no stages."""
    if not isinstance(body, dict) or "stages" in body or not isinstance(body.get("defaults", {}), dict):
        return body
    shipped: Any = load_yaml(_shipped(), "default.yaml")
    line: dict[str, Any] = shipped["pipeline"]
    return {**line, **body, "defaults": {**line["defaults"], **body.get("defaults", {})}}


def _parsed(form: type[FormT], body: object, key: str, source: str) -> FormT:
    try:
        return form.model_validate(body)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error, body, key)}") from error


def _first_problem(error: ValidationError, body: object, key: str) -> str:
    """Return one problem in words: where, which key, what is allowed there; an unknown key first, it explains the others."""
    problems = error.errors(include_url=False)
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    at = [part for part in problem["loc"] if part not in ("int", "float", "str")]
    where = key
    if len(at) >= 2 and at[0] == "stages" and isinstance(at[1], int):
        where, at = f"stage {_name_at(body, at[1])}", at[2:]
    name = ".".join(str(part) for part in at)
    if problem["type"] == "extra_forbidden":
        form = (
            AgentForm if "agent" in at else _StageForm if where.startswith("stage ") else _Common if at[0] == "defaults" else _PipelineForm
        )
        close = difflib.get_close_matches(str(at[-1]), form.model_fields, 1)
        return f"{where}: unknown key {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    if problem["type"] == "model_type":
        return f"{where}: {name + ': ' if name else ''}a mapping of keys is needed here"
    if "labels" in at:
        return f"{where}: {name.removesuffix('.[key]')}: {_LABELS_ARE}"
    return f"{where}: {name}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _name_at(body: object, index: int) -> str:
    match body:
        case {"stages": [*stages]} if index < len(stages) and isinstance(stages[index], dict) and "name" in stages[index]:
            return repr(stages[index]["name"])
    return f"number {index + 1}"


def _stage(form: _StageForm, defaults: _Common, source: str) -> Stage:
    at = f"{source}: stage {form.name!r}"
    role = _role(form, at)
    is_agent = role in _AGENT_ROLES
    _check_kind(form, role, is_agent, at)
    name = form.agent.name if form.agent else None
    agent = AGENT_ALIASES.get(name, name) if name else None
    common = _with_defaults(form, defaults)
    limits = {limit: common[key] for key, limit in _LIMIT_KEYS.items() if common[key] is not None}
    return Stage(
        name=form.name,
        role=role,
        agent=(agent or role) if is_agent else None,
        driver=(driver_of(form.agent, f"{at}: agent") or driver_of(defaults.agent, f"{source}: defaults: agent")) if is_agent else None,
        model=common["model"] if is_agent else None,
        depends_on=tuple(form.depends_on),
        allow=tuple(form.allow or form.scope),
        command=form.command,
        output=form.output,
        steps_max=common["steps_max"] if is_agent else None,
        output_tokens_max=common["max_tokens"] if is_agent else None,
        budget_usd=_usd(form.budget_usd, at),
        limits=Limits(**limits),
        runtime=common["runtime"] or "runc",
        strict=common["strict"] or False,
        pool=common["pool"] or "default",
        labels=common["labels"] or {},
        priority=common["priority"],
        **_network(form, common, at),
    )


def _network(form: _StageForm, common: dict[str, Any], at: str) -> dict[str, Any]:
    """Return what a stage may install; a list in `defaults` is for the stages with `network: allowlist` alone."""
    network: Network = common["network"] or "none"
    if network != "allowlist":
        if form.packages is not None:
            raise ConfigError(f"{at}: packages: a list has a meaning with `network: allowlist` alone; here it is {network}")
        return {"network": network}
    written: _PackagesForm = common["packages"] or _PackagesForm()
    try:
        packages = Packages(pip=tuple(map(pip_name, written.pip)), npm=tuple(map(npm_name, written.npm)))
    except ValueError as error:
        raise ConfigError(f"{at}: packages: {error}") from error
    if not packages:
        raise ConfigError(f"{at}: packages: `network: allowlist` needs a list, such as {{pip: [six], npm: [left-pad]}}")
    return {"network": network, "packages": packages}


def _role(form: _StageForm, at: str) -> Role:
    """Return what the stage is for: its `role`, else what its agent, its type or its name says."""
    if form.role is not None:
        return form.role
    if form.type == "builtin":
        return "land" if form.name == "land" else "validate"
    agent = form.agent.name if form.agent else None
    for name in (agent, form.name):
        known = AGENT_ALIASES.get(name or "", name)
        for role in get_args(Role):
            if known == role:
                return cast(Role, role)
    if form.command is not None and form.agent is None:
        return "validate"
    raise ConfigError(f"{at}: role: agent {agent!r} says nothing of the stage's role; add `role:` with one of {', '.join(get_args(Role))}")


def _check_kind(form: _StageForm, role: Role, is_agent: bool, at: str) -> None:
    if form.name in RESERVED:
        raise ConfigError(f"{at}: name: {form.name!r} is reserved; choose another")
    if form.allow and form.scope:
        raise ConfigError(f"{at}: scope: `scope` and `allow` are the same key; keep one")
    if not is_agent and (form.agent is not None or form.type == "agent"):
        raise ConfigError(f"{at}: agent: a stage of role {role} runs no agent")
    if is_agent and form.type == "builtin":
        raise ConfigError(f"{at}: type: a stage of role {role} runs an agent, not a builtin")
    if form.command is not None and role != "validate":
        raise ConfigError(f"{at}: command: only a validate stage has one")
    if form.needs_model is not None and form.needs_model != is_agent:
        raise ConfigError(f"{at}: needs_model: a stage of role {role} {'needs' if is_agent else 'never gets'} a model")
    for pattern in [*form.allow, *form.scope]:
        if not pattern or len(pattern) > 400 or pattern.startswith(("/", "!")) or ".." in pattern.split("/"):
            raise ConfigError(f"{at}: allow: {pattern[:80]!r} is not a glob relative to the repository's root")


def _with_defaults(form: _StageForm, defaults: _Common) -> dict[str, Any]:
    own = {name: getattr(form, name) for name in _Common.model_fields if name != "agent"}
    return {name: getattr(defaults, name) if value is None else value for name, value in own.items()}


def _usd(value: float | str | None, at: str) -> str | None:
    if value is None:
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal(0)
    if not amount.is_finite() or not 0 < amount <= 1_000_000 or amount != amount.quantize(Decimal("1e-9")):
        raise ConfigError(f"{at}: budget_usd: {str(value)[:40]!r} is not an amount in US dollars above 0, such as 2.50")
    return str(amount)


def _implied_land(stages: list[Stage]) -> list[Stage]:
    if any(stage.role == "land" for stage in stages) or any(stage.name == "land" for stage in stages):
        return []
    return [Stage(name="land", role="land", depends_on=tuple(sinks(stages)))]


def _checked(stages: list[Stage], source: str) -> tuple[Stage, ...]:
    """Return the stages if together they are a line that ends by landing."""
    names = [stage.name for stage in stages]
    for stage in stages:
        at = f"{source}: stage {stage.name!r}"
        if names.count(stage.name) > 1:
            raise ConfigError(f"{at}: name: there are {names.count(stage.name)} stages of this name")
        for name in stage.depends_on:
            if name not in names:
                close = difflib.get_close_matches(name, names, 1)
                raise ConfigError(f"{at}: depends_on: there is no stage {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    cycle = find_cycle({stage.name: stage.depends_on for stage in stages})
    if cycle is not None:
        raise ConfigError(f"{source}: stage {cycle[0]!r}: depends_on: a cycle: {' → '.join([*cycle, cycle[0]])}")
    _check_land(stages, source)
    return tuple(stages)


def _check_land(stages: list[Stage], source: str) -> None:
    lands = [stage for stage in stages if stage.role == "land"]
    if len(lands) != 1:
        raise ConfigError(f"{source}: stage {lands[1].name if lands else 'land'!r}: role: exactly one stage lands, here {len(lands)} do")
    others = {stage.name for stage in stages} - {lands[0].name} - ancestors(Pipeline(stages=tuple(stages)), lands[0].name)
    if others:
        raise ConfigError(f"{source}: stage {lands[0].name!r}: depends_on: it lands without waiting for {', '.join(sorted(others))}")
