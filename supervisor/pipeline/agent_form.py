"""Who an agent is, as a person writes it: `agent: NAME`, or a mapping that names its driver too; not the program (`inside/drivers`).

    agent: implement
    agent: {name: implement, driver: claude-code}
    agent: {driver: command, command: "mini --yolo --task {prompt}", environment: {MSWEA_CONFIGURED: "true"}}

The same keys stand in the front matter of an agent definition, and in the pipeline's `defaults`.
"""

import shlex
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from sandbox.contract.agent_spec import DriverKind, DriverSpec, ModelClients
from sandbox.contract.errors import ConfigError
from sandbox.contract.model import Frozen


def _words(value: object) -> object:
    """Return a command's words: a text is split as a shell would, but nothing in it is expanded."""
    if isinstance(value, str):
        return tuple(shlex.split(value))
    return tuple(value) if isinstance(value, list) else value


class DriverForm(Frozen):
    """The keys that say which program is the agent."""

    model_config = ConfigDict(strict=True)

    driver: DriverKind | None = None
    """builtin: Andon's own loop. claude-code, command: a program of the image."""
    command: Annotated[tuple[str, ...] | None, BeforeValidator(_words)] = None
    """For `command`: its words, or a text that is split into words; no shell."""
    environment: dict[str, str] | None = None
    """Its variables besides those of the driver."""
    clients: ModelClients | None = None
    """process: only the program itself may ask the model. sandbox: every process of it."""


class AgentForm(DriverForm):
    """The `agent` key of a stage, as a mapping."""

    name: str | None = Field(None, pattern=r"^[a-z0-9](?:[a-z0-9_-]{0,46}[a-z0-9])?$")


def _as_mapping(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


AgentKey = Annotated[AgentForm | None, BeforeValidator(_as_mapping)]


def driver_of(form: DriverForm | None, at: str) -> DriverSpec | None:
    """Return the driver that is written down, None if none is.

    Args:
        form: What was parsed.
        at: Where, for an error.

    Raises:
        ConfigError: The keys do not go together; names the key.
    """
    if form is None or (form.driver is None and form.command is None and form.environment is None and form.clients is None):
        return None
    kind = form.driver
    if kind is None:
        raise ConfigError(f"{at}: driver: missing; command, environment and clients belong to a driver, `claude-code` or `command`")
    if (kind == "command") != bool(form.command):
        raise ConfigError(
            f"{at}: command: {'missing; driver `command` needs one' if kind == 'command' else 'only driver `command` has one'}"
        )
    if kind == "builtin" and (form.environment or form.clients):
        raise ConfigError(f"{at}: driver: `builtin` has neither environment nor clients")
    try:
        return DriverSpec(kind=kind, command=form.command or (), environment=form.environment or {}, clients=form.clients or "process")
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise ConfigError(f"{at}: {'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}") from error
