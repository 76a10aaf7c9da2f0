"""What an agent is on the wire: prompt, model and the limits of its loop; not how it is written down (`supervisor/agents/*.md`)."""

from typing import Literal

from pydantic import Field

from sandbox.contract.model import Frozen

CacheTtl = Literal["5m", "1h"]
ToolName = Literal["bash", "edit"]


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
