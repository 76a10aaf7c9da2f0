"""The program of a sandbox as a process of its own, over a unix socket: what a container runs, without the container."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.job import Assignment, Check
from tests.fakes.script import Call, bash, does, single, submit
from tests.fakes.scripted_model import ScriptedModel
from tests.fakes.socket_gateway import SocketGateway

REPOSITORY = Path(__file__).parents[2]
JOB = "0123456789-implement-2"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("gw", "workspace", "task", "out", "tmp", "home/agent"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def an_assignment(**fields: Any) -> Assignment:
    values = {"job_id": JOB, "stage": "implement", "round": 2, "attempt": 3, "kind": "agent", "traceparent": TRACEPARENT, "wall_s": 60}
    return Assignment.model_validate({**values, "tool_env": {"PATH": os.environ["PATH"], "CHOSEN": "yes"}, **fields})


async def run_program(root: Path) -> tuple[int, str, str]:
    """Run it as the image does (`-I`, environment from empty) and return exit status, stdout, stderr."""
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from sandbox.inside.__main__ import main; main({str(root)!r})"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={}
    )
    async with asyncio.timeout(60):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()


async def test_an_agent_works_and_submits(root: Path) -> None:
    """From the assignment to the submission, with the real SDK over the socket."""
    (root / "workspace/a.txt").write_text("base\n")
    (root / "task/spec.md").write_text("# What to do\n")
    agent = AgentSpec(name="implement", model="claude-sonnet-5-5", system="the rules", prompt="the task")
    script = single(
        bash("git log --format=%s; echo $CHOSEN; env | grep -c ANTHROPIC"),
        does(Call("str_replace_based_edit_tool", {"command": "create", "path": f"{root}/workspace/b.txt", "file_text": "new\n"})),
        submit("made b.txt"),
    )

    async with (
        ScriptedModel(script) as model,
        SocketGateway(root / "gw/gateway.sock", an_assignment(agent=agent), model, polls_before=1) as gateway,
    ):
        status, stdout, stderr = await run_program(root)

    assert (status, stderr) == (0, "")
    assert [(one.status, one.summary, one.steps) for one in gateway.submissions] == [("done", "made b.txt", 3)]
    assert (root / "workspace/b.txt").read_text() == "new\n"
    assert gateway.requests[0] == "GET /andon/assignment HTTP/1.1"
    first, second = model.calls()[0], model.calls()[1]
    assert (first.stage, first.round, first.attempt) == ("implement", 2, 3)
    assert first.headers["traceparent"] == TRACEPARENT
    assert "# What to do" in first.request["messages"][0]["content"][0]["text"]
    assert second.request["messages"][-1]["content"][0]["content"] == "base\nyes\n0\n[exit code 1]"
    assert "turn 1: bash" in stdout
    assert not model.violations


async def test_checks_run_without_the_sdk(root: Path) -> None:
    """Reports in `/out`, exits in the submission; a checks job has no model route and needs none."""
    (root / "workspace/test_a.py").write_text("def test_good():\n    pass\n")
    tests = Check(name="tests", argv=(sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio"), report="junit", is_tests=True)
    sdk = Check(name="git", argv=("git", "status", "--short"))

    async with SocketGateway(root / "gw/gateway.sock", an_assignment(kind="checks", checks=[tests, sdk])) as gateway:
        status, stdout, _ = await run_program(root)

    assert status == 0
    assert [one.exit_code for one in gateway.submissions[0].exits] == [0, 0]
    assert gateway.submissions[0].exits[1].output_tail == ""
    assert (root / "out/tests.xml").is_file()
    assert "1 passed" in stdout


async def test_what_breaks_is_submitted_as_an_error(root: Path) -> None:
    """Silence would look like a killed container."""
    async with SocketGateway(root / "gw/gateway.sock", an_assignment(agent=None)) as gateway:
        status, _, stderr = await run_program(root)

    assert status == 0
    assert gateway.submissions[0].status == "error"
    assert "names none" in gateway.submissions[0].summary
    assert "Traceback" in stderr


async def test_the_program_makes_itself_non_dumpable() -> None:
    """So that no tool process of the same user can trace it or open its memory (DECISIONS D18)."""
    said = await python(
        "import ctypes; from sandbox.inside.__main__ import *; forbid_inspection(); print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )

    assert said == "0\n"


async def test_without_a_gateway_it_ends_with_one_line(root: Path) -> None:
    """And a status that says so; here the socket's directory is missing, so nothing is waited for."""
    (root / "gw").rmdir()
    (root / "gw").write_text("")

    status, _, stderr = await run_program(root)

    assert status == 1
    assert stderr.startswith("andon: cannot connect to the gateway")
    assert stderr.count("\n") == 1


async def test_nothing_slow_is_imported_before_the_first_request() -> None:
    """Neither the SDK nor pydantic nor even the parser of replies; and checks never import the SDK."""
    listed = "; import json, sys; print(json.dumps(sorted(sys.modules)))"

    first = json.loads(await python("import sandbox.inside.__main__" + listed))
    checks = json.loads(await python("import sandbox.inside.program, sandbox.inside.checks.runner" + listed))

    assert not {"anthropic", "httpx2", "pydantic", "http.client", "subprocess", "ctypes"} & set(first)
    assert not {"anthropic", "httpx2"} & set(checks)


async def python(code: str) -> str:
    """Run a piece of Python in a process of its own."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY)
    stdout, _ = await process.communicate()
    return stdout.decode()


async def test_the_log_shows_no_terminal_escapes(root: Path) -> None:
    """They would reach the terminal of whoever reads it."""
    agent = AgentSpec(name="implement", model="claude-sonnet-5-5", system="s", prompt="p")

    async with (
        ScriptedModel(single(bash("echo ü \x1b[31m\x9b"), submit("done"))) as model,
        SocketGateway(root / "gw/gateway.sock", an_assignment(agent=agent), model),
    ):
        _, stdout, _ = await run_program(root)

    assert "echo ü" in stdout
    assert "\x1b" not in stdout
    assert "\x9b" not in stdout
