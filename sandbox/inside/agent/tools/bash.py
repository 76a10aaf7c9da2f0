"""The `bash` tool (`bash_20250124`): a fresh shell for each call that takes up where the last one stopped.

Directory and exported variables go from call to call through two files, written by an EXIT trap; functions, aliases and
background processes do not. A call that hangs loses nothing but itself.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandbox.inside.agent.tools.call import MalformedCall, ToolResult, text_argument
from sandbox.inside.agent.tools.output import Capture, shortened
from sandbox.inside.process import CommandNotStarted, run_process

COMMAND_CHARS_MAX = 256_000

# The exit status of a trap is that of the command, as long as the trap does not call `exit`.
_SCRIPT = """
__andon=$1 __start=$PWD __trace=${TRACEPARENT-}; shift
trap '{ export -p > "$__andon/env"; pwd > "$__andon/cwd"; } 2>/dev/null' EXIT
if [ -r "$__andon/env" ]; then . "$__andon/env"; fi
if [ -n "$__trace" ]; then export TRACEPARENT="$__trace"; fi; unset __trace
if [ -r "$__andon/cwd" ]; then cd "$(cat "$__andon/cwd")" 2>/dev/null || cd "$__start"; fi
. "$__andon/command"
"""


class Bash:
    """Runs commands in the workspace."""

    name = "bash"
    definition: dict[str, Any] = {"type": "bash_20250124", "name": "bash"}  # noqa: RUF012 - a constant of the wire

    def __init__(self, workspace: Path, environment: Mapping[str, str], state: Path, output: Path) -> None:
        """Prepare a shell.

        Args:
            workspace: Where the first command runs.
            environment: The whole environment of commands.
            state: Directory for the shell's own files; made when needed.
            output: Directory for output too long for a conversation.
        """
        self._workspace = workspace
        self._environment = dict(environment)
        self._state = state
        self._output = output
        self._calls = 0

    def run(self, arguments: dict[str, Any], timeout_s: float, traceparent: str = "") -> ToolResult:
        """Run one command; the answer is its output and always its exit code."""
        if arguments.get("restart") is True:
            return self._restart()
        command = text_argument(arguments, "command")
        if not command.strip():
            raise MalformedCall("`command` is empty")
        if len(command) > COMMAND_CHARS_MAX or "\0" in command:
            raise MalformedCall(f"`command` holds a NUL or more than {COMMAND_CHARS_MAX} characters; write files with the editor")
        return self._execute(command, timeout_s, {"TRACEPARENT": traceparent} if traceparent else {})

    def _restart(self) -> ToolResult:
        for name in ("env", "cwd"):
            (self._state / name).unlink(missing_ok=True)
        return ToolResult("the shell starts afresh")

    def _execute(self, command: str, timeout_s: float, context: Mapping[str, str]) -> ToolResult:
        self._calls += 1
        capture = Capture()
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A file, not an argument: one argument holds at most 128 KiB.
            (self._state / "command").write_text(command + "\n", encoding="utf-8")
            ended = run_process(
                ["bash", "--noprofile", "--norc", "-c", _SCRIPT, "bash", str(self._state)],
                cwd=self._workspace,
                env={**self._environment, **context},
                timeout_s=timeout_s,
                sink=capture.take,
            )
        except (CommandNotStarted, OSError) as error:
            return ToolResult(f"the shell could not start: {error}", is_error=True)
        text = shortened(capture.text().rstrip("\n"), self._output / f"{self._calls:04d}.txt") or "(no output)"
        if ended.exit_code is None:
            after = f"[killed after {timeout_s:g} s; directory and variables are those before this call]"
            return ToolResult(f"{text}\n{after}", is_error=True)
        return ToolResult(f"{text}\n[exit code {ended.exit_code}]", exit_code=ended.exit_code)


def summary_of(command: str) -> str:
    """Return a command's first line, quoted, for a log."""
    return shlex.quote(command.strip().split("\n", 1)[0][:120])
