"""Loads agent definitions: one Markdown file each, front matter and system prompt; not what an agent is told of a task.

A repository overrides one by name with `.andon/agents/<name>.md` of its base commit, as a whole file.
"""

from importlib.resources import files
from typing import cast

from pydantic import ConfigDict, Field, ValidationError

from sandbox.contract.agent_spec import AgentSpec, CacheTtl, DriverSpec, ToolName
from sandbox.contract.errors import ConfigError
from supervisor.pipeline.agent_form import DriverForm, driver_of
from supervisor.pipeline.bounded_yaml import load_yaml
from supervisor.pipeline.load import AGENT_ALIASES

PROMPT_CHARS_MAX = 64_000
OVERRIDE_DIRECTORY = ".andon/agents"


class AgentDefinition(DriverForm):
    """One agent as it is written down; which program it is, where that is not our own, is said by four keys (`DriverForm`)."""

    model_config = ConfigDict(strict=True)

    name: str = Field(pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,46}[a-z0-9])?$")
    description: str = Field("", max_length=1_000)
    model: str = Field(min_length=1, max_length=200)
    tools: tuple[ToolName, ...] = Field(("bash", "edit"), max_length=2)
    """Besides `submit`, which every agent has."""
    steps: int = Field(25, ge=1, le=1000)
    """Model calls in one attempt, where the stage does not say."""
    max_tokens: int = Field(16_000, ge=256, le=128_000)
    """Output of one call, where the stage does not say."""
    cache_ttl: CacheTtl = "5m"
    """1h where commands of this agent can take longer than 5 minutes."""
    tool_timeout_s: int = Field(300, ge=1, le=3600)
    system: str = Field(min_length=1, max_length=PROMPT_CHARS_MAX)
    """The text below the front matter."""


def canonical_name(name: str) -> str:
    """Return the name of the definition that `name` or one of its aliases means."""
    return AGENT_ALIASES.get(name, name)


def override_path(name: str) -> str:
    """Return where a repository keeps its own definition of an agent, relative to its root."""
    return f"{OVERRIDE_DIRECTORY}/{canonical_name(name)}.md"


def load_agent(name: str, override_text: str | None = None, *, model: str | None = None) -> AgentDefinition:
    """Return the definition of an agent.

    Args:
        name: A definition's name or one of its aliases.
        override_text: The repository's own file of that name; None: the shipped one.
        model: The stage's model, which beats the definition's.

    Raises:
        ConfigError: There is no such agent, or its file is wrong; names file and key.
    """
    name = canonical_name(name)
    if override_text is not None:
        definition = parse_agent(override_text, override_path(name))
    else:
        shipped = shipped_agents()
        if name not in shipped:
            known = ", ".join(sorted(shipped))
            raise ConfigError(f"agent {name!r} is unknown: there are {known}, and a repository adds its own in {override_path(name)}")
        definition = parse_agent(shipped[name], f"{name}.md")
    if definition.name != name:
        raise ConfigError(f"{override_path(name)}: name: {definition.name!r} is not the file's name {name!r}")
    return definition if model is None else definition.model_copy(update={"model": model})


def shipped_agents() -> dict[str, str]:
    """Return the text of every definition Andon ships, by name."""
    folder = files("supervisor.agents")
    return {entry.name.removesuffix(".md"): entry.read_text(encoding="utf-8") for entry in folder.iterdir() if entry.name.endswith(".md")}


def parse_agent(text: str, source: str) -> AgentDefinition:
    """Return the definition a Markdown file holds.

    Raises:
        ConfigError: No front matter, an unknown or wrong key, no prompt; names `source` and the key.
    """
    head, prompt = _split(text.replace("\r\n", "\n").removeprefix("\ufeff"), source)
    values = load_yaml(head, source)
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: the front matter is a mapping of keys")
    if "system" in values:
        raise ConfigError(f"{source}: system: unknown key; the system prompt is the text below the front matter")
    fields = {**cast(dict[str, object], values), "system": prompt}
    if isinstance(fields.get("tools"), list):
        fields["tools"] = tuple(cast(list[object], fields["tools"]))
    try:
        definition = AgentDefinition.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, source)) from error
    driver_of(definition, source)
    return definition


def agent_spec(
    definition: AgentDefinition,
    prompt: str,
    *,
    model: str | None = None,
    steps_max: int | None = None,
    output_tokens_max: int | None = None,
    driver: DriverSpec | None = None,
) -> AgentSpec:
    """Return what goes to the agent: its definition, the first user message, and what the stage says otherwise."""
    return AgentSpec(
        name=definition.name,
        model=model or definition.model,
        system=definition.system,
        prompt=prompt,
        tools=definition.tools,
        steps_max=steps_max or definition.steps,
        output_tokens_max=output_tokens_max or definition.max_tokens,
        cache_ttl=definition.cache_ttl,
        tool_timeout_s=definition.tool_timeout_s,
        driver=driver or driver_of(definition, definition.name) or DriverSpec(),
    )


def _split(text: str, source: str) -> tuple[str, str]:
    lines = text.split("\n")
    if lines[0].rstrip() != "---":
        raise ConfigError(f"{source}: the file begins with front matter between two lines `---`")
    end = next((at for at, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    if end is None:
        raise ConfigError(f"{source}: the front matter has no closing line `---`")
    prompt = "\n".join(lines[end + 1 :]).strip()
    if not prompt:
        raise ConfigError(f"{source}: there is no system prompt below the front matter")
    return "\n".join(lines[1:end]), prompt


def _first_problem(error: ValidationError, source: str) -> str:
    """Return one line; an unknown key first, since it often explains a missing one."""
    problems = error.errors(include_url=False)
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        ours = [name for name in AgentDefinition.model_fields if name != "system" and name not in DriverForm.model_fields]
        known = ", ".join([*ours, *DriverForm.model_fields])
        return f"{source}: {key}: unknown key; known are {known}"
    return f"{source}: {key}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
