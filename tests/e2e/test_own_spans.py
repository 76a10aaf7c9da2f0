"""A user's own tests, traced with the real OpenTelemetry SDK as the documentation says, are part of the trace, in a real Jaeger too."""

import os
from pathlib import Path

import pytest
import yaml

from sandbox.runtime.image_build import BuildNetwork
from tests.e2e.fifteen_checks import broken_checks
from tests.e2e.line import Line, Provider
from tests.e2e.watching import a_sample, commit_files, wait_until
from tests.fakes.documents import block_of
from tests.fakes.script import Script, bash, conversation, submit
from tests.fakes.traces import SeenSpan, SeenTrace
from tests.servers.jaeger import jaeger as running_jaeger

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = Path(__file__).parents[2] / "docs" / "own-spans.md"
"""Its Dockerfile and its conftest.py are what is run here."""
STAGES = [
    {"name": "implement", "agent": "implement"},
    {"name": "test", "agent": "test"},
    {"name": "validate", "type": "builtin", "depends_on": ["implement", "test"]},
]
GREETING = 'def greet(name: str) -> str:\n    """Return a greeting."""\n    return f"Hello, {name}!"\n'
TEST = (
    '"""Greetings."""\n\nfrom notes_api.greeting import greet\n\n\n'
    'def test_a_person_is_greeted():\n    """By name."""\n    assert greet("Ada") == "Hello, Ada!"\n'
)
SAYS = (
    conversation(
        "implement",
        bash("python -m pytest -q tests/test_app.py"),
        bash(f"cat > notes_api/greeting.py <<'END'\n{GREETING}END"),
        submit("Added."),
    ),
    conversation("test", bash(f"cat > tests/test_greeting.py <<'END'\n{TEST}END"), submit("One test.")),
)


def test_a_traced_pytest_run_is_seen_below_its_tool_call_and_its_check(provider: Provider, tmp_path: Path):
    """The session below the one `execute_tool` that ran it, each test below the session, the tests of validation below their check."""
    provider.says(Script("scripted: traced tests", SAYS))
    network = BuildNetwork.from_environment(os.environ)
    trust = {"SSL_CERT_FILE": str(network.ca_bundle)} if network.ca_bundle else {}
    repository = a_sample(tmp_path / "notes")
    files = {".andon/Dockerfile": block_of(PAGE, "dockerfile"), "tests/conftest.py": block_of(PAGE, "python")}
    commit_files(repository, files | {".andon/pipeline.yaml": yaml.safe_dump({"pipeline": {"stages": STAGES}})})
    (tmp_path / "home").mkdir()
    with running_jaeger() as jaeger:
        exports = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp}
        line = Line(tmp_path / "home", provider.server.environment() | exports | dict(network.arguments) | trust)

        done = line.run("Greet people by name", "--repo", str(repository), "--no-baseline", "--yes", timeout_s=900)

        assert done.exit_code == 0, done.stderr
        path = line.state / "runs" / done.result["run_id"] / "trace.otlp.jsonl"
        wait_until(lambda: len(SeenTrace.of_file(path).named("process ")) == len(STAGES), "every attempt's spans are in the file", 30)
        trace = SeenTrace.of_file(path)
        assert trace.faults() == []
        _hangs_together(trace)
        wait_until(lambda: len(jaeger.trace(done.result["trace_id"]).spans) >= len(trace.spans), "Jaeger has every span", 30)
        assert broken_checks(jaeger, done.result) == []
        assert jaeger.trace(done.result["trace_id"]).tree() == trace.tree()
        assert line.andon("down").exit_code == 0


def _hangs_together(trace: SeenTrace) -> None:
    users = [span for span in trace.spans if span.service == "andon-user"]
    (by_tool, by_check) = sorted((span for span in users if span.name == "pytest"), key=lambda span: span.start)
    tools = sorted(trace.named("execute_tool bash"), key=lambda span: span.start)
    (tool,) = [each for each in tools if each == trace.parent(by_tool)]
    assert by_tool.attributes["container.id"] == tool.attributes["container.id"]
    assert _name(trace.parent(by_check)) == "check tests"
    tests = {each.name: trace.parent(each) for each in users if each.name.startswith("tests/")}
    assert tests["tests/test_greeting.py::test_a_person_is_greeted"] == by_check
    assert all(name.startswith("tests/test_app.py::") for name, parent in tests.items() if parent == by_tool)
    assert {each.attributes.get("test.case.name", each.name) for each in users} == {each.name for each in users}


def _name(span: SeenSpan | None) -> str:
    return span.name if span else ""
