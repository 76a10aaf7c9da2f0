"""Runs a foreign agent to its end and says how it ended; what it did is in the workspace, and no word of it decides.

It may leave `{"status": "done" | "blocked", "summary": …}` in `/out/result.json`; otherwise its exit code speaks.
"""

import json
import os
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.job import Assignment, Submission
from sandbox.contract.model import Frozen
from sandbox.inside.agent.spans import ToolSpans
from sandbox.inside.agent.task_text import read_task_text
from sandbox.inside.drivers.form import command_of, environment_of, load_form
from sandbox.inside.drivers.prompt import prompt_text, system_text
from sandbox.inside.drivers.route import Route, open_route
from sandbox.inside.drivers.stream_json import StreamJson
from sandbox.inside.paths import Paths
from sandbox.inside.process import CommandNotStarted, Ended, run_process
from sandbox.inside.workspace_git import PrivateRepository

FILES = "agent"
RESULT = "result.json"
RESULT_BYTES_MAX = 64 << 10
SUMMARY_CHARS_MAX = 32_000
LAST_S = 5.0
"""Of the stage's time, kept for the end."""
NOT_THERE = "put it into the image with `.andon/Dockerfile`, see docs/agents.md"


class Result(Frozen):
    """What a program may say of its own end."""

    status: Literal["done", "blocked"]
    summary: str = Field("", max_length=SUMMARY_CHARS_MAX)


def run_foreign(
    assignment: Assignment,
    spec: AgentSpec,
    paths: Paths,
    environment: dict[str, str],
    repository: PrivateRepository,
    say: Callable[[str], None],
) -> Submission:
    """Run the program of the assignment's agent, `spec`, to its end."""
    say(repository.wait())
    route = open_route(paths.gateway, say, is_open=spec.driver.clients == "sandbox")
    values = _values(spec, paths, route)
    words = command_of(spec, values)
    say(f"driver {spec.driver.kind}: {words[0]}")
    with closing(ToolSpans(paths.gateway, assignment.traceparent)) as spans:
        output = StreamJson(say, spans)
        try:
            ended = run_process(
                words,
                cwd=paths.workspace,
                env=environment | environment_of(spec, values),
                timeout_s=max(1.0, assignment.wall_s - LAST_S),
                sink=output.feed,
                reads=Path(values["prompt_file"]) if load_form(spec.driver.kind).reads_prompt else Path(os.devnull),
                on_start=route.name,
            )
        except CommandNotStarted as error:
            return Submission(status="error", summary=f"the agent's program did not start: {error}; {NOT_THERE}"[:SUMMARY_CHARS_MAX])
        output.end()
    return _submission(ended, output, paths.out / RESULT)


def _values(spec: AgentSpec, paths: Paths, route: Route) -> dict[str, str]:
    """Write the prompt's files, and return what the placeholders stand for."""
    folder = paths.tmp / FILES
    folder.mkdir(mode=0o700, exist_ok=True)
    result_file = str(paths.out / RESULT)
    system = system_text(spec, result_file)
    prompt = prompt_text(spec, read_task_text(paths.task), with_system=system if spec.driver.kind == "command" else "")
    (folder / "system.md").write_text(system, encoding="utf-8")
    (folder / "prompt.md").write_text(prompt, encoding="utf-8")
    return {
        "prompt": prompt,
        "prompt_file": str(folder / "prompt.md"),
        "system_file": str(folder / "system.md"),
        "base_url": route.base_url,
        "model": spec.model,
        "steps_max": str(spec.steps_max),
        "output_tokens_max": str(spec.output_tokens_max),
        "tool_timeout_ms": str(spec.tool_timeout_s * 1000),
        "workspace": str(paths.workspace),
        "result_file": result_file,
    }


def _submission(ended: Ended, output: StreamJson, result_file: Path) -> Submission:
    said = output.result
    summary = str(said.get("result") or output.tail)[:SUMMARY_CHARS_MAX]
    if ended.exit_code is None:
        return Submission(status="no_submit", summary="the stage's time is up", steps=output.turns)
    if said.get("subtype") == "error_max_turns":
        return Submission(status="step_limit", summary=f"{output.turns} model calls without an end", steps=output.turns)
    if said.get("stop_reason") == "refusal":
        return Submission(status="refused", summary=f"the model refused: {summary}"[:SUMMARY_CHARS_MAX], steps=output.turns)
    if ended.exit_code != 0 or said.get("is_error") is True:
        why = f"the agent's program ended with exit code {ended.exit_code}: {summary or 'it said nothing'}"
        return Submission(status="error", summary=why[:SUMMARY_CHARS_MAX], steps=output.turns)
    left = _left(result_file)
    if left is not None:
        return Submission(status=left.status, summary=left.summary or summary, steps=output.turns)
    return Submission(status="done", summary=summary, steps=output.turns)


def _left(path: Path) -> Result | None:
    """Return what the program left, None if it is nothing of the kind: a link, a pipe, too large, other keys."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(file, "rb") as stream:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None
            data = stream.read(RESULT_BYTES_MAX + 1)
        return Result.model_validate(json.loads(data)) if len(data) <= RESULT_BYTES_MAX else None
    except (OSError, ValueError, RecursionError, ValidationError):
        return None
