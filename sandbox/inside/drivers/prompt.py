"""What a foreign agent is told: the agent definition's text, the task, and how to end where there is no `submit`; not how (`form`)."""

from sandbox.contract.agent_spec import AgentSpec

HOW_TO_END = """\
## How to end

There is no tool `submit` here. Where you are told to submit with status `done`, leave the work in `/workspace` as it shall be, say
in a few sentences what you did, and end. Where you are told to submit with status `blocked`, write the file
`{result_file}` first: {{"status": "blocked", "summary": "why"}}. Nobody answers questions."""


def system_text(spec: AgentSpec, result_file: str) -> str:
    """Return the system prompt, the same for every attempt."""
    return f"{spec.system}\n\n{HOW_TO_END.format(result_file=result_file)}\n"


def prompt_text(spec: AgentSpec, task: str, *, with_system: str = "") -> str:
    """Return the one message the agent begins with; `with_system` goes ahead for programs that have no place for it."""
    return "\n\n".join(part for part in (with_system, task, spec.prompt) if part.strip()) + "\n"
