"""How a foreign agent is started, as a file says it: words, variables, what it reads and prints; not the run itself (`run`)."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import Field

from sandbox.contract.agent_spec import AgentSpec, DriverKind
from sandbox.contract.model import Frozen

PLACEHOLDERS = {
    "prompt": "the task as text: context, what is owed, how to end",
    "prompt_file": "a file with that text",
    "system_file": "a file with the system prompt of the agent definition",
    "base_url": "where the model is, for ANTHROPIC_BASE_URL",
    "model": "the model's id; any other is refused",
    "steps_max": "model calls the stage allows",
    "output_tokens_max": "the largest max_tokens of a call",
    "tool_timeout_ms": "how long one command of the agent may take",
    "workspace": "where to work",
    "result_file": "where the program may leave {status, summary}",
}
"""What `{name}` stands for in a command or a variable; any other brace stays as it is."""


class DriverForm(Frozen):
    """One driver's file."""

    command: tuple[str, ...] = ()
    """Empty: the person's own."""
    reads_prompt: bool = False
    """The prompt is its standard input."""
    output: Literal["plain", "stream-json"] = "plain"
    environment: dict[str, str] = Field(default_factory=dict)


@cache
def load_form(kind: DriverKind) -> DriverForm:
    """Return a driver's file.

    Raises:
        FileNotFoundError: `builtin`, which is no program.
    """
    text = files("sandbox.inside.drivers").joinpath(f"{kind}.toml").read_text(encoding="utf-8")
    return DriverForm.model_validate(tomllib.loads(text))


def command_of(spec: AgentSpec, values: Mapping[str, str]) -> list[str]:
    """Return the words of the program, filled."""
    words = spec.driver.command or load_form(spec.driver.kind).command
    return [_filled(word, values) for word in words]


def environment_of(spec: AgentSpec, values: Mapping[str, str]) -> dict[str, str]:
    """Return the program's own variables, filled; a person's beat the file's."""
    variables = load_form(spec.driver.kind).environment | spec.driver.environment
    return {name: _filled(value, values) for name, value in variables.items()}


def _filled(text: str, values: Mapping[str, str]) -> str:
    """Replace each placeholder once: what a value holds is never looked at again."""
    pieces, rest = [], text
    while rest:
        before, brace, after = rest.partition("{")
        name, closing, tail = after.partition("}")
        if brace and closing and name in values:
            pieces += [before, values[name]]
            rest = tail
        else:
            pieces.append(before + brace)
            rest = after
    return "".join(pieces)
