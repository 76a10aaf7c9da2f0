"""Puts one agent together from its assignment: client, tools, conversation; not its loop."""

import gc
from collections.abc import Callable
from contextlib import closing

from sandbox.contract.job import Assignment, Submission
from sandbox.inside.paths import Paths
from sandbox.inside.workspace_git import PrivateRepository

TOOL_OUTPUT = "tool-output"
SHELL_STATE = "shell-state"


def run_agent(
    assignment: Assignment,
    paths: Paths,
    environment: dict[str, str],
    repository: PrivateRepository,
    say: Callable[[str], None],
    began_ns: int,
) -> Submission:
    """Run the assignment's agent to its end; `began_ns` is when the program had nothing to wait for any more, in Unix time.

    Raises:
        ValueError: The assignment holds no agent.
    """
    spec = assignment.agent
    if spec is None:
        raise ValueError(f"assignment {assignment.job_id} is of kind agent and names none")
    gc.disable()  # the SDK's import allocates for a second and frees nothing (PERFORMANCE 4)
    from sandbox.inside.agent.loop import Loop
    from sandbox.inside.agent.model import Model, client_over_socket
    from sandbox.inside.agent.spans import ToolSpans
    from sandbox.inside.agent.task_text import read_task_text
    from sandbox.inside.agent.tools.bash import Bash
    from sandbox.inside.agent.tools.call import Tool
    from sandbox.inside.agent.tools.edit import Edit
    from sandbox.inside.agent.tools.toolbox import Toolbox
    from sandbox.inside.agent.transcript import Transcript

    gc.freeze()
    gc.enable()
    bash = Bash(paths.workspace, environment, state=paths.tmp / SHELL_STATE, output=paths.tmp / TOOL_OUTPUT)
    edit = Edit(paths.workspace, (paths.tmp,))
    known: dict[str, Tool] = {"bash": bash, "edit": edit}
    tools = Toolbox([known[name] for name in spec.tools])
    transcript = Transcript(spec.system, read_task_text(paths.task), spec.prompt, spec.cache_ttl)
    say(repository.wait())
    with (
        client_over_socket(paths.gateway, assignment.traceparent) as client,
        closing(ToolSpans(paths.gateway, assignment.traceparent)) as spans,
    ):
        model = Model(client, spec, tools.definitions)
        loop = Loop(spec, model, tools, transcript, wall_s=assignment.wall_s, say=say, spans=spans)
        spans.record_import(began_ns)
        return loop.run()
