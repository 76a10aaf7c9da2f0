"""A foreign agent in the program of a sandbox and the real gateway, on one socket: led, metered, recorded, and others kept out."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract.agent_spec import AgentSpec, DriverSpec
from sandbox.contract.cassette import Cassette, CassetteHeader, load_recording
from sandbox.contract.job import Assignment, Submission
from sandbox.gateway.cassette import Replay
from sandbox.gateway.policy import Policy
from tests.fakes.gateway import Gateway, open_gateway
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.script import Script, bash, single, submit
from tests.fakes.scripted_model import ScriptedModel
from tests.fakes.small_agent import AGENT

REPOSITORY = Path(__file__).parents[2]
MODEL = "claude-sonnet-5-5"
SCRIPT = single(bash("echo hi > made.txt"), submit("finished"))

BLOCKED = "import json; json.dump({'status': 'blocked', 'summary': 'no such API'}"


def an_agent(program: str = AGENT, **driver: Any) -> AgentSpec:
    settings: dict[str, Any] = {"kind": "command", "command": (sys.executable, "-I", "-c", program, "{model}"), **driver}
    return AgentSpec(
        name="implement", model=MODEL, system="the rules", prompt="the task", output_tokens_max=2_000, driver=DriverSpec(**settings)
    )


async def run_agent(
    root: Path, agent: AgentSpec, *, replay: Replay | None = None, script: Script = SCRIPT
) -> tuple[Gateway, ScriptedModel, str]:
    """Run the program over a real session; return the session, the model server and the log."""
    for name in ("gw", "workspace", "task", "out", "tmp", "home/agent"):
        (root / name).mkdir(parents=True)
    (root / "task/spec.md").write_text("# The spec\n")
    assignment = Assignment(
        job_id="0123456789-implement-1",
        stage="implement",
        round=1,
        attempt=1,
        kind="agent",
        agent=agent,
        tool_env={"PATH": os.environ["PATH"]},
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        wall_s=60,
    )
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from sandbox.inside.__main__ import main; main({str(root)!r})"
    async with ScriptedModel(script, api_key="sk-ant-canary-7f3a") as model:
        settings: dict[str, Any] = {"policy": Policy.of(agent), "ledger": MemoryLedger(), "stage": "implement", "record": replay is None}
        async with open_gateway(root / "gw", replay or model.url, headers={"x-andon-stage": "implement"}, **settings) as gateway:
            process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", code, env={}, stdout=asyncio.subprocess.PIPE)
            gateway.session.assign(assignment)
            async with asyncio.timeout(60):
                log, _ = await process.communicate()
        return gateway, model, log.decode()


def submission_of(gateway: Gateway) -> Submission:
    assert gateway.session.submission is not None
    return gateway.session.submission


async def test_a_program_works_is_metered_and_replays(tmp_path: Path):
    """Whole replies over the loopback, each settled; the recording answers the same program without a provider."""
    gateway, model, log = await run_agent(tmp_path / "live", an_agent())

    assert submission_of(gateway) == Submission(status="done", summary="finished")
    assert (tmp_path / "live/workspace/made.txt").read_text() == "hi\n"
    assert [call.request["messages"][0]["content"].startswith("the rules") for call in model.calls()] == [True, True]
    assert "# The spec" in model.calls()[0].request["messages"][0]["content"]
    assert gateway.session.cost_nano_usd == sum(call.cost_nano_usd for call in gateway.calls) > 0
    assert gateway.session.unsettled_calls == 0
    assert "refused" in log

    cassette = Cassette(header=CassetteHeader(made_by="scripted"), records=load_recording(gateway.session.recording()))
    again, silent, _ = await run_agent(tmp_path / "replay", an_agent(), replay=Replay(cassette, "implement", 1))

    assert submission_of(again) == submission_of(gateway)
    assert (tmp_path / "replay/workspace/made.txt").read_text() == "hi\n"
    assert again.session.cost_nano_usd == gateway.session.cost_nano_usd
    assert silent.log == []


async def test_its_children_ask_only_where_the_driver_says_so(tmp_path: Path):
    """A fork of the program holds another connection than the program; with `clients: sandbox` it is served."""
    report = AGENT.replace('print("a child got", ask()[0], flush=True)', 'open("child", "w").write(str(ask()[0]))')

    await run_agent(tmp_path / "process", an_agent(report))
    await run_agent(tmp_path / "sandbox", an_agent(report, clients="sandbox"))

    assert (tmp_path / "process/workspace/child").read_text() == "403"
    assert (tmp_path / "sandbox/workspace/child").read_text() == "200"


@pytest.mark.parametrize(
    ("program", "status", "says"),
    [
        ("raise SystemExit('no licence')", "error", "ended with exit code 1: no licence"),
        (f"{BLOCKED}, open('{{result_file}}', 'w'))", "blocked", "no such API"),
        (
            f"{BLOCKED}, open('there', 'w')); import os; os.symlink(os.path.abspath('there'), '{{result_file}}'); print('did it')",
            "done",
            "did it",
        ),
        ("import os; os.mkfifo('{result_file}'); print('did it')", "done", "did it"),
        ("open('{result_file}', 'w').write('{' * 70_000); print('did it')", "done", "did it"),
        ("import json; json.dump({'status': 'budget'}, open('{result_file}', 'w')); print('did it')", "done", "did it"),
    ],
)
async def test_how_it_ended_is_read_with_care(tmp_path: Path, program: str, status: str, says: str):
    """Its exit code, else its file, which may be anything."""
    gateway, _, _ = await run_agent(tmp_path / "root", an_agent(program))

    ended = submission_of(gateway)
    assert ended.status == status
    assert says in ended.summary


async def test_a_program_that_is_not_in_the_image_is_said_at_no_cost(tmp_path: Path):
    """With what to do about it."""
    agent = AgentSpec(name="a", model=MODEL, system="s", prompt="p", driver=DriverSpec(kind="command", command=("no-such-agent",)))

    gateway, model, _ = await run_agent(tmp_path / "root", agent)

    assert submission_of(gateway).status == "error"
    assert "no-such-agent" in submission_of(gateway).summary
    assert ".andon/Dockerfile" in submission_of(gateway).summary
    assert model.log == []


async def test_a_request_beyond_its_policy_is_refused_by_name(tmp_path: Path):
    """What the program prints of it is the summary, so a person can read why."""
    asks = AGENT.replace('"max_tokens": 500', '"max_tokens": 500, "mcp_servers": []')

    gateway, model, _ = await run_agent(tmp_path / "root", an_agent(asks))

    assert "mcp_servers: not allowed here" in submission_of(gateway).summary
    assert model.log == []


def test_what_the_file_may_say_is_json_of_two_keys():
    """The example in the prompt is one."""
    from sandbox.inside.drivers.prompt import HOW_TO_END
    from sandbox.inside.drivers.run import Result

    example = HOW_TO_END.format(result_file="f").partition("first: ")[2].partition(". Nobody")[0]
    assert Result.model_validate(json.loads(example)).status == "blocked"
