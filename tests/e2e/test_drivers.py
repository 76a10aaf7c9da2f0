"""A line whose agents are other people's programs: in the same walls, metered, traced, and replayed without a key or a provider."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.runtime.image_build import BuildNetwork
from tests.e2e.line import CANARY, Finished, Line, Provider
from tests.e2e.watching import a_sample, commit_files, wait_until
from tests.fakes.documents import block_of
from tests.fakes.repositories import run_git
from tests.fakes.script import Call, Script, Turn, bash, conversation, does, submit
from tests.fakes.small_agent import AGENT
from tests.fakes.traces import SeenTrace

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

REQUEST = "Greet people by name"
GREETING = 'def greet(name: str) -> str:\n    """Return a greeting."""\n    return f"Hello, {name}!"\n'
TEST = (
    '"""Greetings."""\n\nfrom notes_api.greeting import greet\n\n\n'
    'def test_a_person_is_greeted():\n    """By name."""\n    assert greet("Ada") == "Hello, Ada!"\n'
)
ASKS_TWICE = """python - <<'END'
import http.client, json, os, socket
body = json.dumps({"model": "claude-sonnet-5-5", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]})
headers = {"content-type": "application/json"}
led = http.client.HTTPConnection(os.environ["ANTHROPIC_BASE_URL"].removeprefix("http://"), timeout=20)
straight = http.client.HTTPConnection("gateway", timeout=20)
straight.sock = socket.socket(socket.AF_UNIX)
straight.sock.connect("/gw/gateway.sock")
for way in (led, straight):
    way.request("POST", "/v1/messages", body, headers)
    print("a tool got", way.getresponse().status)
END"""
"""What a tool of the agent may try: the agent's own way to the model, and the gateway's socket."""

CLAUDE_SAYS = conversation(
    "implement",
    does(Call("Bash", {"command": ASKS_TWICE, "description": "Try"}), thinking="Who may ask?", text="I look."),
    does(Call("Bash", {"command": f"cat > notes_api/greeting.py <<'END'\n{GREETING.replace('Hello', 'Hi')}END", "description": "Write"})),
    does(Call("Read", {"file_path": "/workspace/notes_api/greeting.py"})),
    does(Call("Edit", {"file_path": "/workspace/notes_api/greeting.py", "old_string": "Hi,", "new_string": "Hello,"})),
    Turn(text="Added greet."),
)
MINI_SAYS = conversation(
    "test",
    bash(f"cat > tests/test_greeting.py <<'END'\n{TEST}END", text="One test."),
    bash("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT", text="Done."),
)
SMALL_SAYS = conversation("test", bash(f"cat > tests/test_greeting.py <<'END'\n{TEST}END"), submit("One test."))
OURS_SAY = conversation("implement", bash(f"cat > notes_api/greeting.py <<'END'\n{GREETING}END"), submit("Added greet."))

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"
"""Its Dockerfile and its pipeline are what is run here."""


def a_repository(path: Path, test: dict[str, Any]) -> Path:
    """Make the sample with a short line of our own agent and another."""
    stages = [
        {"name": "implement", "agent": "implement"},
        {"name": "test", "agent": {"name": "test", **test}},
        {"name": "validate", "type": "builtin", "depends_on": ["implement", "test"]},
    ]
    repository = a_sample(path)
    commit_files(repository, {".andon/pipeline.yaml": yaml.safe_dump({"pipeline": {"stages": stages}})})
    return repository


def replayed(home: Path, repository: Path, cassette: Path, environment: dict[str, str], timeout_s: float = 280) -> Finished:
    """Run the same request from a recording, on a stack without a key."""
    home.mkdir()
    keyless = Line(home, environment)
    done = keyless.run(REQUEST, "--repo", str(repository), "--yes", "--slug", "again", "--replay", str(cassette), timeout_s=timeout_s)
    assert keyless.andon("down").exit_code == 0
    return done


def text_at(repository: Path, commit: str, path: str) -> str:
    return run_git(repository, "show", f"{commit}:{path}")


def test_a_small_program_of_ones_own_is_an_agent(line: Line, provider: Provider, tmp_path: Path):
    """In the shipped image, beside our own agent: what it wrote lands, what it cost is charged, the record says what is weaker."""
    provider.says(Script("scripted: a small agent", (SMALL_SAYS, OURS_SAY)))
    command = ["/opt/venv/bin/python", "-I", "-c", AGENT, "{model}"]
    repository = a_repository(tmp_path / "notes", {"driver": "command", "command": command})
    cassette = tmp_path / "recorded.jsonl"

    done = line.run(REQUEST, "--repo", str(repository), "--no-baseline", "--record", str(cassette))

    assert done.exit_code == 0, done.stderr
    assert text_at(repository, done.result["branch"], "tests/test_greeting.py").strip() == TEST.strip()
    (attempt,) = done.stage("test")["attempts"]
    assert float(attempt["cost_usd"]) > 0
    assert "agent driver command: the model is led to the program's own process, which its tools can look into" in attempt["missing"]
    assert not any("agent driver" in each for each in done.stage("implement")["attempts"][0]["missing"])
    again = replayed(tmp_path / "home", repository, cassette, {})
    assert again.exit_code == 0, again.stderr
    assert again.result["replay"]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_claude_code_and_mini_swe_agent_work_in_the_same_walls(provider: Provider, tmp_path: Path):
    """Both from their registry, put into the image as the documentation says; one line, recorded and replayed."""
    provider.says(Script("scripted: two foreign agents", (CLAUDE_SAYS, MINI_SAYS)))
    network = BuildNetwork.from_environment(os.environ)
    trust = {"SSL_CERT_FILE": str(network.ca_bundle)} if network.ca_bundle else {}
    (tmp_path / "home").mkdir()
    line = Line(tmp_path / "home", provider.server.environment() | dict(network.arguments) | trust)
    repository = a_sample(tmp_path / "notes")
    commit_files(repository, {".andon/Dockerfile": block_of(PAGE, "dockerfile"), ".andon/pipeline.yaml": block_of(PAGE, "yaml")})
    cassette = tmp_path / "recorded.jsonl"

    done = line.run(REQUEST, "--repo", str(repository), "--no-baseline", "--yes", "--record", str(cassette), timeout_s=1200)

    assert done.exit_code == 0, done.stderr
    assert text_at(repository, done.result["branch"], "notes_api/greeting.py").strip() == GREETING.strip()
    assert text_at(repository, done.result["branch"], "tests/test_greeting.py").strip() == TEST.strip()
    assert provider.server.violations == []
    _were_led_and_metered(done, provider)
    _is_traced(line, done.result["run_id"])
    assert CANARY not in cassette.read_text()
    assert line.andon("down").exit_code == 0

    asked = len(provider.server.log)
    again = replayed(tmp_path / "keyless", repository, cassette, dict(network.arguments) | trust, timeout_s=900)
    assert again.exit_code == 0, again.stderr
    assert again.result["replay"]
    assert again.result["cost_usd"] == done.result["cost_usd"]
    assert len(provider.server.log) == asked


def _were_led_and_metered(done: Finished, provider: Provider) -> None:
    """The program's own process asked, its tools were refused on both ways, and every token it used is charged."""
    calls = {stage: provider.server.calls(stage) for stage in ("implement", "test")}
    assert [len(each) for each in calls.values()] == [5, 2]
    assert "a tool got 403\\na tool got 403" in json.dumps(calls["implement"][1].request["messages"])
    assert all("anthropic-beta" in call.headers for call in calls["implement"])
    assert not any(call.request.get("stream") for call in calls["test"])
    used = sum(call.usage["output_tokens"] for each in calls.values() for call in each)
    assert done.result["usage"]["output_tokens"] == used
    for stage, driver in (("implement", "claude-code"), ("test", "command")):
        (attempt,) = done.stage(stage)["attempts"]
        assert float(attempt["cost_usd"]) > 0
        assert any(f"agent driver {driver}" in each for each in attempt["missing"])


def _is_traced(line: Line, run_id: str) -> None:
    """Each model call by the gateway, each tool call of Claude Code by what it prints."""
    path = line.state / "runs" / run_id / "trace.otlp.jsonl"
    trace: SeenTrace = wait_until(
        lambda: (found := SeenTrace.of_file(path)) and len(found.named("invoke_agent ")) == 2 and found, "the trace is whole"
    )
    assert len(trace.named("chat ")) == 7
    assert sorted(span.name for span in trace.named("execute_tool ")) == [
        f"execute_tool {name}" for name in ("bash", "bash", "edit", "read")
    ]
