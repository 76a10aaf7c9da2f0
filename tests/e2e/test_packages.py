"""A whole line whose stages may install: real pip and npm inside sandboxes without a network, from this machine's own indexes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.executor.packages import NETWORKS
from sandbox.runtime.image_build import BuildNetwork
from tests.e2e.line import Line, Provider
from tests.e2e.watching import a_sample, commit_files, events_of, wait_until
from tests.fakes.package_index import NODE_FROM_PIP, permitted_here
from tests.fakes.repositories import run_git
from tests.fakes.script import Script, bash, conversation, create, does, submit
from tests.fakes.traces import SeenTrace

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1200)]

REQUEST = "Greet people by name"
GREETING = '''\
"""Greetings."""

import six


def greet(name: object) -> str:
    """Return a greeting."""
    return f"Hello, {six.ensure_str(str(name))}!"
'''
TEST = '''\
"""Greetings."""

from notes_api.greeting import greet


def test_a_person_is_greeted():
    """By name."""
    assert greet("Ada") == "Hello, Ada!"
'''
PIPELINE = """\
pipeline:
  stages:
    - {name: implement, agent: implement, network: allowlist, packages: {pip: [six], npm: [left-pad]}}
    - {name: test, agent: test}
    - {name: validate, type: builtin, depends_on: [implement, test], network: registries}
"""
"""A stage of each kind: a list, nothing, everything."""
QUALITY = """\
[quality_checks]
python_packages = {command = "pip install --quiet six", report = "none"}
node_packages = {command = "npm install --no-save left-pad", report = "none"}
padded = {command = "node tools/pad.js", report = "none"}
tests = "python -m pytest -q"
"""
PAD_JS = 'if (require("left-pad")("1", 3, 0) !== "001") process.exit(1);\n'

LISTED = "pip install six && python -c 'import six; print(\"six is at\", six.__file__)'"
NODE_LISTED = "npm install --no-save left-pad && node tools/pad.js && echo padded"
NOT_LISTED = "pip install -vv attrs; npm install --no-save ms"
WITHOUT = "pip install six || echo nothing is installed here; curl --max-time 5 http://192.0.2.1/ || echo there is no other way"


@pytest.fixture
def installing(provider: Provider, tmp_path: Path) -> Iterator[Line]:
    """A line whose executor may ask this machine's indexes, wherever they are."""
    network = BuildNetwork.from_environment(os.environ)
    trust = {"SSL_CERT_FILE": str(network.ca_bundle)} if network.ca_bundle else {}
    permitted = ",".join(str(each) for each in permitted_here())
    (tmp_path / "home").mkdir()
    line = Line(tmp_path / "home", {**provider.server.environment(), **network.arguments, **trust, NETWORKS: permitted})
    yield line
    assert line.andon("down").exit_code == 0


def test_stages_install_what_their_network_says_and_the_work_lands(installing: Line, provider: Provider, tmp_path: Path):
    """Listed names for an agent, nothing for another, everything for the checks; what was fetched and refused is on record."""
    provider.says(
        Script(
            "scripted: installs",
            (
                conversation(
                    "implement",
                    bash(LISTED),
                    bash(NODE_LISTED),
                    bash(NOT_LISTED),
                    does(create("notes_api/greeting.py", GREETING)),
                    submit("Added greet."),
                ),
                conversation("test", bash(WITHOUT), does(create("tests/test_greeting.py", TEST)), submit("One test.")),
            ),
        )
    )
    repository = a_sample(tmp_path / "notes")
    base = commit_files(
        repository,
        {
            ".andon/Dockerfile": NODE_FROM_PIP,
            ".andon/pipeline.yaml": PIPELINE,
            "quality.toml": QUALITY,
            "tools/pad.js": PAD_JS,
        },
    )

    done = installing.run(REQUEST, "--repo", str(repository), "--yes", timeout_s=900)

    assert done.exit_code == 0, done.stderr
    changed = run_git(repository, "diff", "--name-only", base, done.result["branch"]).split()
    assert sorted(each for each in changed if not each.startswith(".andon/")) == ["notes_api/greeting.py", "tests/test_greeting.py"]
    assert done.result["tests"]["failed"] == 0
    _the_agents_saw(provider)
    _it_is_on_record(installing, done.result["run_id"], Path(done.result["report"]).read_text())


def _the_agents_saw(provider: Provider) -> None:
    """What the tools printed, as the model was told."""
    implement, test = (str(provider.server.calls(stage)[-1].request["messages"]) for stage in ("implement", "test"))
    assert "You may install these packages and no other: with pip `six`; with npm `left-pad`" in implement
    assert "You may install" not in test
    assert "six is at /workspace/.venv/" in implement
    assert "padded" in implement
    assert "403 Client Error" in implement
    assert "No matching distribution found for attrs" in implement
    assert "npm package ms is not on" in implement
    assert "nothing is installed here" in test
    assert "there is no other way" in test


def _it_is_on_record(line: Line, run_id: str, report: str) -> None:
    """Events, report and trace say the same."""
    fetched = {event["job_id"]: event["fetched"] for event in events_of(line, run_id) if event["type"] == "attempt_ended"}
    by_stage = {job.removeprefix(f"{run_id}-").rpartition("-")[0]: each for job, each in fetched.items()}
    for stage in ("baseline", "implement", "validate"):
        names = {each.split("-")[0] for each in by_stage[stage]["files"]}
        assert names == {"pip six", "npm left"}, stage
    assert any("pip attrs: rule packages" in each for each in by_stage["implement"]["refused"])
    assert any("npm ms: rule packages" in each for each in by_stage["implement"]["refused"])
    assert by_stage["test"]["requests"] == 0
    assert by_stage["validate"]["refused"] == []
    assert "implement, round 1, attempt 1 fetched `pip six-" in report
    assert "was refused `` npm ms: rule packages" in report
    path = line.state / "runs" / run_id / "trace.otlp.jsonl"
    trace = wait_until(lambda: (found := SeenTrace.of_file(path)).named("gateway fetch") and found, "the trace names what was fetched")
    assert trace.faults() == []
