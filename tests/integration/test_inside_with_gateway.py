"""The program of a sandbox and the real gateway, on one socket: what one sends, the other's strict policy lets pass."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.job import Assignment
from sandbox.contract.result import Usage
from sandbox.gateway.policy import Policy, judge
from sandbox.inside.agent.transcript import Transcript
from tests.fakes.gateway import open_gateway
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.script import CUT, Call, Script, bash, does, single, submit
from tests.fakes.scripted_model import ScriptedModel

REPOSITORY = Path(__file__).parents[2]
AGENT = AgentSpec(name="implement", model="claude-sonnet-5-5", system="the rules", prompt="the task", output_tokens_max=2_000)
WORK = single(
    does(Call("bash", {"command": "echo one"}), Call("bash", {"command": "exit 2"}), thinking="Look first.", text="I look."),
    does(Call("str_replace_based_edit_tool", {"command": "view", "path": "missing"}), fault=CUT),
    does(Call("no_such_tool", {})),
    submit("finished"),
)


async def run_program(root: Path, script: Script, ledger: MemoryLedger, **options: Any) -> tuple[Any, ScriptedModel]:
    """Run the program over a real session and return the session and the model server."""
    for name in ("gw", "workspace", "task", "out", "tmp", "home/agent"):
        (root / name).mkdir(parents=True)
    (root / "task/spec.md").write_text("# The spec\n" * 200)
    assignment = Assignment(
        job_id="0123456789-implement-1",
        stage="implement",
        round=1,
        attempt=1,
        kind="agent",
        agent=AGENT,
        tool_env={"PATH": os.environ["PATH"]},
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        wall_s=60,
    )
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from sandbox.inside.__main__ import main; main({str(root)!r})"
    async with ScriptedModel(script, api_key="sk-ant-canary-7f3a") as model:
        settings = {
            "policy": Policy.of(AGENT),
            "ledger": ledger,
            "stage": "implement",
            "headers": {"x-andon-stage": "implement"},
            **options,
        }
        async with open_gateway(root / "gw", model.url, **settings) as gateway:
            process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", code, env={}, stdout=asyncio.subprocess.DEVNULL)
            await asyncio.sleep(0.3)  # the program waits at its long poll, as a standby does
            gateway.session.assign(assignment)
            async with asyncio.timeout(60):
                await process.wait()
        return gateway, model


async def test_every_kind_of_turn_passes_the_policy(tmp_path: Path) -> None:
    """Thinking, errors, a cut stream, a retry, an unknown tool: nothing the loop sends is refused, every call is counted."""
    gateway, model = await run_program(tmp_path, WORK, MemoryLedger())

    session = gateway.session
    assert session.submission is not None
    assert (session.submission.status, session.submission.steps) == ("done", 4)
    assert session.failure is None
    assert not model.violations
    assert session.first_byte_at is not None
    assert session.usage.cache_read_input_tokens > 0
    assert session.usage != Usage()


async def test_a_budget_that_is_used_up_ends_the_agent_by_itself(tmp_path: Path) -> None:
    """The gateway refuses the second call, and the program says why it stopped."""
    script = single(*(bash(f"echo {number}", output_tokens=2_000) for number in range(20)))

    gateway, model = await run_program(tmp_path, script, MemoryLedger(budget_nano_usd=45_000_000))

    assert gateway.session.submission.status == "budget"
    assert gateway.session.failure is not None
    assert 1 <= len(model.calls()) < 20


@pytest.mark.parametrize("ttl", ["5m", "1h"])
def test_the_markers_are_those_the_policy_allows(ttl: Any) -> None:
    """Plain markers mean 5m; the longer one is spelled out."""
    system, messages = Transcript("the rules", "the bundle", "the task", ttl).wire()
    body = {"model": "m", "max_tokens": 10, "stream": True, "system": system, "messages": messages}

    judge(json.dumps(body).encode(), Policy(model="m", output_tokens_max=10, cache_ttl=ttl))
