"""The loop against the scripted model: a real SDK, real HTTP, real tools."""

import asyncio
import os
from pathlib import Path
from typing import Any

import anthropic
import pytest

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.job import Submission
from sandbox.inside.agent.loop import CUT_CALL, NOT_ALONE, NUDGE, REPEATED, Loop
from sandbox.inside.agent.model import Model
from sandbox.inside.agent.tools.bash import Bash
from sandbox.inside.agent.tools.edit import Edit
from sandbox.inside.agent.tools.toolbox import Toolbox
from sandbox.inside.agent.transcript import Transcript
from tests.fakes.script import (
    CUT,
    CUT_CLEANLY,
    OVERLOADED,
    RATE_LIMITED,
    Call,
    Fault,
    Turn,
    bash,
    does,
    replace_text,
    single,
    submit,
)
from tests.fakes.scripted_model import ScriptedModel


class Attempt:
    """One run of the loop and what is known of it afterwards."""

    def __init__(self, submission: Submission, server: ScriptedModel, slept: list[float], said: list[str]) -> None:
        self.submission = submission
        self.server = server
        self.slept = slept
        self.said = said

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [call.request for call in self.server.calls()]

    def results(self, request: int = -1) -> list[dict[str, Any]]:
        """Return the tool results of a request's last turn."""
        return [block for block in self.requests[request]["messages"][-1]["content"] if block["type"] == "tool_result"]

    def last_text(self, request: int = -1) -> str:
        block: dict[str, Any] = self.requests[request]["messages"][-1]["content"][-1]
        return str(block.get("text") or block["content"])


async def attempt(workspace: Path, *turns: Turn, endless: bool = False, wall_s: float = 60.0, **limits: Any) -> Attempt:
    """Run the loop on `turns` until it ends by itself."""
    spec = AgentSpec(name="implement", model="claude-sonnet-5-5", system="the rules", prompt="the task", **limits)
    work = workspace / "workspace"
    work.mkdir()
    tools = Toolbox([Bash(work, {"PATH": os.environ["PATH"]}, workspace / "state", workspace / "output"), Edit(work, (workspace,))])
    slept: list[float] = []
    said: list[str] = []

    async with ScriptedModel(single(*turns, endless=endless)) as server:

        def run() -> Submission:
            with anthropic.Anthropic(api_key=server.api_key, base_url=server.url, max_retries=2, open_telemetry=False) as client:
                model = Model(client, spec, tools.definitions, sleep=slept.append)
                return Loop(spec, model, tools, Transcript("the rules", "", "the task", "5m"), wall_s=wall_s, say=said.append).run()

        submission = await asyncio.to_thread(run)
    return Attempt(submission, server, slept, said)


async def test_work_is_done_and_submitted(tmp_path: Path) -> None:
    """Thinking, text and several calls in one turn; every result in the order of its call."""
    done = await attempt(
        tmp_path,
        does(Call("bash", {"command": "echo a > f"}), Call("bash", {"command": "cat f"}), thinking="Two at once.", text="I look."),
        submit("finished"),
    )

    assert done.submission == Submission(status="done", summary="finished", steps=2)
    assert [block["content"] for block in done.results()] == ["(no output)\n[exit code 0]", "a\n[exit code 0]"]
    assistant = done.requests[1]["messages"][1]["content"]
    assert assistant[0] == {"type": "thinking", "thinking": "Two at once.", "signature": "c2NyaXB0ZWQimplement-1-0"}
    assert [block["type"] for block in assistant] == ["thinking", "text", "tool_use", "tool_use"]
    assert not done.server.violations


async def test_the_request_holds_exactly_what_the_gateway_allows(tmp_path: Path) -> None:
    """Every key here is on the strict list of the gateway's policy; a new one has to be put there."""
    done = await attempt(tmp_path, submit("nothing to do"), output_tokens_max=4_000)

    request = done.requests[0]
    assert request.keys() == {"model", "max_tokens", "system", "messages", "tools", "stream"}
    assert (request["model"], request["max_tokens"], request["stream"]) == ("claude-sonnet-5-5", 4_000, True)
    assert [(tool.get("type"), tool["name"]) for tool in request["tools"]] == [
        ("bash_20250124", "bash"),
        ("text_editor_20250728", "str_replace_based_edit_tool"),
        (None, "submit"),
    ]


async def test_every_call_from_the_second_on_reads_from_the_cache(tmp_path: Path) -> None:
    """Seen in the usage a provider reports."""
    done = await attempt(tmp_path, *(bash(f"seq {number} 400") for number in range(4)), submit("read"))

    usages = [call.usage for call in done.server.calls()]
    assert all(usage["cache_read_input_tokens"] > 0 for usage in usages[1:])
    assert all(usage["input_tokens"] == 0 for usage in usages)


@pytest.mark.parametrize(("fault", "retried_by_us"), [(RATE_LIMITED, 0), (OVERLOADED, 0), (CUT, 1), (CUT_CLEANLY, 1)])
async def test_a_call_that_fails_once_is_made_again(tmp_path: Path, fault: Fault, retried_by_us: int) -> None:
    """Errors before the first byte by the SDK, cut streams by us: the SDK takes them for whole or raises a foreign error."""
    done = await attempt(tmp_path, bash("echo once", fault=fault), submit("finished"))

    assert done.submission.status == "done"
    assert len(done.slept) == retried_by_us
    assert [call.status for call in done.server.log] == [fault.status, 200, 200]
    assert done.results()[0]["content"] == "once\n[exit code 0]"


async def test_a_model_that_never_answers_ends_the_attempt(tmp_path: Path) -> None:
    """After bounded tries with growing pauses."""
    done = await attempt(tmp_path, bash("true", fault=Fault(cut="clean", times=99)))

    assert done.submission.status == "error"
    assert "4 tries" in done.submission.summary
    assert done.slept == [1.0, 2.0, 4.0]


async def test_an_exhausted_budget_ends_at_once(tmp_path: Path) -> None:
    """The gateway's word is 429 with `billing_error`; the SDK tries again, we do not."""
    done = await attempt(tmp_path, bash("true", fault=Fault(status=429, kind="billing_error", retry_after_s=0.01, times=99)))

    assert done.submission.status == "budget"
    assert not done.slept


async def test_a_refused_request_ends_at_once(tmp_path: Path) -> None:
    """A 400 is not made right by sending it again; the reason is kept."""
    done = await attempt(tmp_path, bash("true"))

    assert done.submission.status == "error"
    assert "has no turn 1" in done.submission.summary
    assert not done.slept


async def test_a_call_cut_at_the_length_limit_is_not_run(tmp_path: Path) -> None:
    """The SDK gives a cut call as `input={}`; whole calls before it are run."""
    done = await attempt(
        tmp_path,
        does(Call("bash", {"command": "echo whole"}), Call("bash", {"command": "echo cut"}), stop_reason="max_tokens", cut_call=True),
        submit("finished"),
    )

    assert done.submission.status == "done"
    whole, cut = done.results()
    assert whole["content"] == "whole\n[exit code 0]"
    assert (cut["content"], cut["is_error"]) == (CUT_CALL, True)


async def test_text_cut_at_the_length_limit_is_answered(tmp_path: Path) -> None:
    """As a turn without a call."""
    done = await attempt(tmp_path, Turn(text="I will now", stop_reason="max_tokens"), submit("finished"))

    assert done.submission.status == "done"
    assert "length limit" in done.last_text()


async def test_an_unknown_tool_is_answered_with_those_there_are(tmp_path: Path) -> None:
    """The loop goes on."""
    done = await attempt(tmp_path, does(Call("web_search", {"query": "x"})), submit("finished"))

    assert done.submission.status == "done"
    assert done.results()[0]["is_error"] is True
    assert "bash, str_replace_based_edit_tool, submit" in done.results()[0]["content"]


async def test_malformed_calls_in_a_row_end_the_attempt(tmp_path: Path) -> None:
    """As many as the definition allows."""
    bad = [does(Call("bash", {"cmd": number})) for number in range(9)]

    done = await attempt(tmp_path, *bad, malformed_max=3)

    assert done.submission.status == "no_submit"
    assert len(done.requests) == 3
    assert "`command`" in done.results()[0]["content"]


async def test_a_good_call_forgives_malformed_ones(tmp_path: Path) -> None:
    """The limit counts calls in a row."""
    bad = does(Call("bash", {}))

    done = await attempt(tmp_path, bad, bad, bash("true"), bad, bad, submit("finished"), malformed_max=3)

    assert done.submission.status == "done"


async def test_a_failing_edit_is_no_malformed_call(tmp_path: Path) -> None:
    """The call made sense, the file was another."""
    edits = [does(replace_text(f"missing{number}", "a", "b")) for number in range(4)]

    done = await attempt(tmp_path, *edits, submit("finished"), malformed_max=2)

    assert done.submission.status == "done"


async def test_turns_without_a_call_are_reminded_and_then_ended(tmp_path: Path) -> None:
    """Unattended models stop after a progress report."""
    done = await attempt(tmp_path, Turn(text="I am making progress."), endless=True, nudges_max=2)

    assert done.submission == Submission(status="no_submit", summary="3 turns in a row without a tool call", steps=3)
    assert done.last_text() == NUDGE


async def test_an_empty_turn_is_reminded_too(tmp_path: Path) -> None:
    """It leaves no assistant turn, since the API refuses an empty one; the script tells it again for that reason."""
    done = await attempt(tmp_path, Turn(), endless=True, nudges_max=1)

    assert done.submission.status == "no_submit"
    assert not done.server.violations


async def test_steps_are_bounded_and_their_end_is_announced(tmp_path: Path) -> None:
    """Three replies before the end the agent is told."""
    done = await attempt(tmp_path, *(bash(f"echo {number}") for number in range(9)), steps_max=5)

    assert done.submission == Submission(status="step_limit", summary="5 model calls without a submit", steps=5)
    assert [("Only 3 more" in str(request["messages"][-1])) for request in done.requests] == [False, False, True, False, False]


async def test_submit_has_to_be_alone(tmp_path: Path) -> None:
    """Other calls of that turn are run, and their results may change its mind."""
    together = does(Call("submit", {"status": "done", "summary": "early"}), Call("bash", {"command": "echo late"}))

    done = await attempt(tmp_path, together, submit("finished"))

    assert done.submission.summary == "finished"
    early, late = done.results()
    assert (early["content"], early["is_error"]) == (NOT_ALONE, True)
    assert late["content"] == "late\n[exit code 0]"


async def test_a_malformed_submit_is_answered(tmp_path: Path) -> None:
    """And does not end the attempt."""
    done = await attempt(tmp_path, does(Call("submit", {"status": "perfect", "summary": ""})), submit("stuck", "blocked"))

    assert done.submission.status == "blocked"
    assert "done or blocked" in done.results()[0]["content"]


async def test_a_refusal_ends_with_its_category(tmp_path: Path) -> None:
    """For the person who reads the report."""
    done = await attempt(tmp_path, Turn(stop_reason="refusal", category="cyber"))

    assert done.submission.status == "refused"
    assert "cyber" in done.submission.summary


async def test_a_paused_turn_is_sent_again(tmp_path: Path) -> None:
    """As it is, without a word of ours."""
    done = await attempt(tmp_path, Turn(text="Let me", stop_reason="pause_turn"), submit("finished"))

    assert done.submission.status == "done"
    assert [message["role"] for message in done.requests[1]["messages"]] == ["user", "assistant"]


async def test_a_full_context_ends_the_attempt(tmp_path: Path) -> None:
    """Nothing is taken out of the conversation to go on."""
    done = await attempt(tmp_path, Turn(text="and", stop_reason="model_context_window_exceeded"))

    assert done.submission.status == "step_limit"


async def test_the_same_call_again_and_again_is_told_and_then_ended(tmp_path: Path) -> None:
    """A loop in the model costs at most six calls."""
    done = await attempt(tmp_path, bash("echo again"), endless=True)

    assert done.submission.status == "no_submit"
    assert len(done.requests) == 6
    assert [REPEATED in str(request["messages"][-1]) for request in done.requests] == [False, False, False, True, True, True]


async def test_the_stage_clock_bounds_a_tool_and_the_loop(tmp_path: Path) -> None:
    """A command gets no more time than is left."""
    done = await attempt(tmp_path, bash("sleep 100"), submit("late"), wall_s=1.0)

    assert done.submission.status == "no_submit"
    assert "time is up" in done.submission.summary


async def test_the_log_names_calls_and_no_contents(tmp_path: Path) -> None:
    """Command, path and exit code; neither output nor file text."""
    create = Call("str_replace_based_edit_tool", {"command": "create", "path": str(tmp_path / "a"), "file_text": "secret text"})

    done = await attempt(tmp_path, bash("echo 'secret output' | tr a-z A-Z"), does(create), submit("finished"))

    log = "\n".join(done.said)
    assert "turn 1: bash" in log
    assert "[exit code 0]" in log
    assert f"turn 2: str_replace_based_edit_tool {tmp_path}/a" in log
    assert "secret text" not in log
    assert "SECRET OUTPUT" not in log
