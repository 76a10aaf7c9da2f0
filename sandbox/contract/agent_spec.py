"""What an agent is on the wire: prompt, model, driver and the limits of its loop; not how it is written down (`supervisor/agents/*.md`)."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from sandbox.contract.model import Frozen

CacheTtl = Literal["5m", "1h"]
ToolName = Literal["bash", "edit"]
DriverKind = Literal["builtin", "claude-code", "command"]
"""Who turns the model's replies into work: our own loop, Claude Code, or any program that speaks the Messages API."""
ModelClients = Literal["process", "sandbox"]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Argument = Annotated[str, StringConstraints(max_length=4_000, pattern=r"^[^\x00]*$")]

COMMAND_WORDS_MAX = 64
VARIABLES_MAX = 64


class DriverSpec(Frozen):
    """Which program is the agent. All but `builtin` are foreign: the image has to hold them, and we take no word of theirs."""

    kind: DriverKind = "builtin"
    command: tuple[Argument, ...] = Field((), max_length=COMMAND_WORDS_MAX)
    """For `command`: its words, with the placeholders of `sandbox/inside/drivers/form.py`; no shell."""
    environment: dict[VariableName, Argument] = Field(default_factory=dict, max_length=VARIABLES_MAX)
    """Further variables of a foreign program, with the same placeholders."""
    clients: ModelClients = "process"
    """Who may ask the model: the process that is started, or, for a program that asks through its children, every process."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.kind == "command") != bool(self.command):
            raise ValueError("a driver has a command if and only if it is `command`")
        if self.kind == "builtin" and (self.environment or self.clients != "process"):
            raise ValueError("the builtin driver has neither environment nor clients")
        return self

    @property
    def lowers(self) -> tuple[str, ...]:
        """Return what this driver makes weaker than the builtin one, one line each, for the record (DECISIONS D18)."""
        if self.kind == "builtin":
            return ()
        if self.clients == "sandbox":
            return (f"agent driver {self.kind}: every process of the sandbox may ask the model, not the agent alone",)
        return (f"agent driver {self.kind}: the model is led to the program's own process, which its tools can look into",)


class AgentSpec(Frozen):
    """One agent definition, resolved: everything its loop needs but the assignment."""

    name: str
    model: str
    """Model id, pinned by the gateway: any other is refused."""
    system: str
    """The whole system prompt; byte-identical for every attempt of a stage kind, so that it is cached."""
    prompt: str
    """The first user message; volatile text belongs here, not in `system`."""
    tools: tuple[ToolName, ...] = ("bash", "edit")
    """What the agent may use besides `submit`, which it always has."""
    steps_max: int = Field(25, ge=1, le=1000)
    """Model calls in one attempt."""
    output_tokens_max: int = Field(16_000, ge=256, le=128_000)
    """`max_tokens` of each call (DECISIONS G4)."""
    cache_ttl: CacheTtl = "5m"
    nudges_max: int = Field(2, ge=0, le=10)
    """Turns without a tool call that are answered by a reminder before the attempt ends as no_submit."""
    malformed_max: int = Field(3, ge=1, le=10)
    """Consecutive malformed tool calls."""
    tool_timeout_s: int = Field(300, ge=1, le=3600)
    driver: DriverSpec = DriverSpec()
