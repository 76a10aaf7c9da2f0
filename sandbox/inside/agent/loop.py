"""The agent's loop: call the model, run the tools it asks for, answer, until it submits or a limit ends it.

Nothing here decides what lands: the end of the loop is a `Submission` that the host records and never believes.

| the reply stops with        | what follows                                                                |
|-----------------------------|-----------------------------------------------------------------------------|
| tool_use                    | run the calls in order, answer all in one user turn; submit must be alone   |
| end_turn, stop_sequence     | a reminder, at most `nudges_max` in a row, then no_submit                   |
| max_tokens                  | a call cut at the end is answered "not run"; without a call: a reminder     |
| pause_turn                  | send the conversation as it is                                              |
| refusal                     | refused, with the category                                                  |
| model_context_window_exceeded | step_limit                                                                |
"""

import time
from collections.abc import Callable
from typing import Protocol

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.job import Submission
from sandbox.inside.agent.model import CallFailed, Reply
from sandbox.inside.agent.spans import Call, ToolSpans
from sandbox.inside.agent.tools.bash import summary_of
from sandbox.inside.agent.tools.call import MalformedCall, ToolResult
from sandbox.inside.agent.tools.submit import SUBMIT_NAME, Submit, parse_submit
from sandbox.inside.agent.tools.toolbox import Toolbox
from sandbox.inside.agent.transcript import Block, Message, Transcript, result_block, text_block

LAST_STEPS = 3
"""With so many model calls left the agent is told to come to an end."""
REPEATS_TOLD = 3
REPEATS_MAX = 6
"""The same call with the same arguments, nothing else between, so many times in a row ends the loop."""

NUDGE = (
    "You ended your turn without calling a tool. If the task is finished or cannot be finished, call submit; otherwise go on with it now."
)
CUT_CALL = (
    "not run: your reply reached its length limit inside this call. Make it in smaller calls, e.g. create a short file and insert the rest."
)
CUT_TEXT = "Your reply reached its length limit before any tool call. Go on with a tool call, or submit."
NOT_ALONE = "not accepted: submit must be the only call of its turn. Read the other results, then call submit alone."
REPEATED = "[this is the same call with the same arguments as before; do something else, or submit with status blocked]"


class ModelCall(Protocol):
    """Where replies come from: `model.Model`."""

    def call(self, system: list[Block], messages: list[Message]) -> Reply:
        """Return one whole reply or raise `CallFailed`."""
        ...


class _End(Exception):
    """The loop is over."""

    def __init__(self, submission: Submission) -> None:
        super().__init__(submission.status)
        self.submission = submission


class Loop:
    """One attempt of one agent."""

    def __init__(
        self,
        spec: AgentSpec,
        model: ModelCall,
        tools: Toolbox,
        transcript: Transcript,
        *,
        wall_s: float,
        say: Callable[[str], None],
        spans: ToolSpans | None = None,
    ) -> None:
        """Prepare a loop that ends by itself after `wall_s` from now; the executor ends it if it does not."""
        self._spans = spans
        self._spec = spec
        self._model = model
        self._tools = tools
        self._transcript = transcript
        self._deadline = time.monotonic() + wall_s
        self._say = say
        self._steps = 0
        self._nudges = 0
        self._malformed = 0
        self._last_call: tuple[str, object] | None = None
        self._repeats = 0

    def run(self) -> Submission:
        """Go on until the end; never raises for anything the model did."""
        try:
            for self._steps in range(1, self._spec.steps_max + 1):  # noqa: B020 - the count is the state
                self._step()
        except _End as end:
            return end.submission
        except CallFailed as error:
            return self._ended(error.status, str(error)[:2_000])
        return self._ended("step_limit", f"{self._spec.steps_max} model calls without a submit")

    def _step(self) -> None:
        if time.monotonic() >= self._deadline:
            raise _End(self._ended("no_submit", "the stage's time is up"))
        reply = self._model.call(*self._transcript.wire())
        self._transcript.add_assistant(reply.content)
        answer = self._answer(reply)
        if answer is not None:
            self._transcript.add_user([*answer, *self._reminder_of_the_end()])

    def _answer(self, reply: Reply) -> list[Block] | None:
        """Return the user turn that follows a reply; None: send the conversation again as it is."""
        calls = [block for block in reply.content if block.get("type") == "tool_use"]
        match reply.stop_reason:
            case "refusal":
                raise _End(self._ended("refused", f"the model refused: {reply.category or 'no category given'}"))
            case "model_context_window_exceeded":
                raise _End(self._ended("step_limit", "the conversation is longer than the model's context"))
            case "pause_turn":
                return None
            case "max_tokens":
                if not calls:
                    return self._nudge(CUT_TEXT)
                is_cut = reply.content[-1] is calls[-1]
                return self._run_calls(calls, cut=calls[-1] if is_cut else None)
            case _:
                return self._run_calls(calls) if calls else self._nudge(NUDGE)

    def _nudge(self, text: str) -> list[Block]:
        self._nudges += 1
        self._say(f"turn {self._steps}: no tool call ({self._nudges})")
        if self._nudges > self._spec.nudges_max:
            raise _End(self._ended("no_submit", f"{self._nudges} turns in a row without a tool call"))
        return [text_block(text)]

    def _run_calls(self, calls: list[Block], cut: Block | None = None) -> list[Block]:
        """Run a turn's calls in order and answer each, in the same order, whatever becomes of it."""
        self._nudges = 0
        results = [self._run_call(call, is_cut=call is cut, is_alone=len(calls) == 1) for call in calls]
        if self._malformed >= self._spec.malformed_max:
            raise _End(self._ended("no_submit", f"{self._malformed} malformed tool calls in a row"))
        if self._repeats >= REPEATS_MAX:
            raise _End(self._ended("no_submit", f"the same call {self._repeats} times in a row"))
        return results

    def _run_call(self, call: Block, *, is_cut: bool, is_alone: bool) -> Block:
        name, arguments = str(call.get("name")), call.get("input")
        span = self._spans.begin() if self._spans else None
        if is_cut:
            result = ToolResult(CUT_CALL, is_error=True)
        elif name == SUBMIT_NAME:
            try:
                result = self._submit(arguments, is_alone=is_alone)
            except _End:
                self._trace(call, span, ToolResult("accepted"))
                raise
        else:
            result = self._tools.call(name, arguments, self._tool_timeout_s(), span.traceparent if span else "")
        self._trace(call, span, result)
        self._malformed = self._malformed + 1 if result.is_malformed else 0
        self._log(name, arguments, result)
        return result_block(str(call.get("id")), self._noting_repeats(name, arguments, result.text), is_error=result.is_error)

    def _trace(self, call: Block, span: Call | None, result: ToolResult) -> None:
        if self._spans is not None and span is not None:
            self._spans.record(str(call.get("name")), str(call.get("id")), self._steps, span, result)

    def _submit(self, arguments: object, *, is_alone: bool) -> ToolResult:
        try:
            submit: Submit = parse_submit(arguments)
        except MalformedCall as error:
            return ToolResult(str(error), is_error=True, is_malformed=True)
        if not is_alone:
            return ToolResult(NOT_ALONE, is_error=True)
        self._say(f"turn {self._steps}: submit {submit.status}")
        raise _End(self._ended(submit.status, submit.summary))

    def _noting_repeats(self, name: str, arguments: object, text: str) -> str:
        self._repeats = self._repeats + 1 if self._last_call == (name, arguments) else 1
        self._last_call = (name, arguments)
        return f"{text}\n{REPEATED}" if self._repeats >= REPEATS_TOLD else text

    def _reminder_of_the_end(self) -> list[Block]:
        if self._spec.steps_max - self._steps != LAST_STEPS:
            return []
        return [text_block(f"Only {LAST_STEPS} more replies are possible. Leave the work in its best state and call submit.")]

    def _tool_timeout_s(self) -> float:
        return max(1.0, min(float(self._spec.tool_timeout_s), self._deadline - time.monotonic()))

    def _log(self, name: str, arguments: object, result: ToolResult) -> None:
        """Log what was called, never what came of it but the last line: no file contents."""
        detail = ""
        if isinstance(arguments, dict):
            detail = (
                summary_of(str(arguments["command"])) if name == "bash" and "command" in arguments else str(arguments.get("path", ""))[:200]
            )
        end = result.text.rsplit("\n", 1)[-1] if name == "bash" else ""
        self._say(f"turn {self._steps}: {name} {detail} {'error' if result.is_error else ''} {end[:40]}".rstrip())

    def _ended(self, status: str, summary: str) -> Submission:
        return Submission.model_validate({"status": status, "summary": summary, "steps": self._steps})
