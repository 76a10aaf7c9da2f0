"""The scripted feature really works on the sample: real files, real tools of the agent, real pytest, real HTTP; no container."""

import http.client
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from sandbox.inside.agent.tools.bash import Bash
from sandbox.inside.agent.tools.edit import Edit
from sandbox.inside.agent.tools.toolbox import Toolbox
from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST, sample_files
from tests.fakes.script import Script
from tests.fakes.scripts import rate_limit
from tests.fakes.scripts.rate_limit import HAPPY, REWORK_TWICE, TESTS_NOTHING, WRONG_LINE

ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPYCACHEPREFIX": str(Path(__file__).parents[2] / ".cache" / "pycache"),
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}
CRITERIA = ["001_1", "001_2", "001_3", "002_1", "002_2", "003_1", "003_2"]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    for name, data in sample_files().items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def play(script: Script, stage: str, workspace: Path, round_: int = 1) -> None:
    """Run every call of a stage through the agent's own tools; each has to succeed."""
    base = workspace.parent
    tools = Toolbox([Bash(workspace, ENVIRONMENT, base / "state", base / "output"), Edit(workspace, ())])
    told = script.conversation(stage, round_, 1)
    assert told is not None
    for turn in told.turns:
        for call in turn.calls:
            if call.name != "submit":
                text = json.dumps(dict(call.arguments)).replace("/workspace/", f"{workspace}/").replace("{feature}", SAMPLE_FEATURE)
                result = tools.call(call.name, json.loads(text), 60)
                assert not result.is_error, result.text


def outcomes_of(workspace: Path) -> dict[str, str]:
    """Run the sample's checks as they are and return every test's outcome or the first line of its failure."""
    report = workspace.parent / "report.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}"], cwd=workspace, env=ENVIRONMENT, capture_output=True, timeout=60
    )
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        wrong = [child for child in case if child.tag in {"failure", "error"}]
        outcomes[str(case.get("name"))] = str(wrong[0].get("message")).split("\n")[0] if wrong else "passed"
    return outcomes


def green(outcomes: dict[str, str]) -> set[str]:
    return {name for name, outcome in outcomes.items() if outcome == "passed"}


@contextmanager
def served(workspace: Path) -> Iterator[http.client.HTTPConnection]:
    """Serve the API as a user would and yield a connection to it."""
    argv = [sys.executable, "-m", "notes_api", "--port", "0"]
    with subprocess.Popen(argv, cwd=workspace, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip().removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=10)
        try:
            yield connection
        finally:
            connection.close()
            process.terminate()


def get(connection: http.client.HTTPConnection, path: str = "/notes") -> tuple[int, str | None, bytes]:
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.getheader("Retry-After"), response.read()


def test_the_scripts_and_the_demo_mean_the_same_feature() -> None:
    """The request of the demo is the one the script answers."""
    assert (rate_limit.SAMPLE_REQUEST, rate_limit.SAMPLE_FEATURE) == (SAMPLE_REQUEST, SAMPLE_FEATURE)


def test_the_sample_is_green_as_it_is(workspace: Path) -> None:
    """Its own checks are the baseline."""
    outcomes = outcomes_of(workspace)

    assert len(outcomes) == 7
    assert green(outcomes) == outcomes.keys()


def test_the_specification_is_well_formed(workspace: Path) -> None:
    """Three requirements, seven criteria, each of Given, When and Then."""
    play(HAPPY, "spec", workspace)

    spec = yaml.safe_load((workspace / f".andon/features/{SAMPLE_FEATURE}/spec.yaml").read_text())
    assert spec["feature"] == SAMPLE_FEATURE
    assert [requirement["id"] for requirement in spec["requirements"]] == ["REQ-001", "REQ-002", "REQ-003"]
    criteria = []
    for requirement in spec["requirements"]:
        lines = requirement["acceptance"]
        assert [line.split()[0] for line in lines] == ["Given", "When", "Then"] * (len(lines) // 3)
        criteria += [f"{requirement['id'][4:]}_{number}" for number in range(1, len(lines) // 3 + 1)]
    assert criteria == CRITERIA


def test_the_new_tests_are_red_on_the_stubs_for_the_right_reason(workspace: Path) -> None:
    """One for each criterion; each requirement has a red one; the sample's own tests stay green."""
    before = green(outcomes_of(workspace))
    play(HAPPY, "interface", workspace)
    play(HAPPY, "test", workspace)

    outcomes = outcomes_of(workspace)

    new = {name: outcome for name, outcome in outcomes.items() if name.startswith("test_req_")}
    assert sorted({name.removeprefix("test_req_")[:5] for name in new}) == CRITERIA
    red = {name: outcome for name, outcome in new.items() if outcome != "passed"}
    assert all(outcome.startswith(("NotImplementedError", "assert")) for outcome in red.values()), red
    assert {name[9:12] for name in red} == {"001", "002", "003"}
    assert before <= green(outcomes)


def test_the_feature_is_green_and_works_over_http(workspace: Path) -> None:
    """100 requests are answered, the 101st is 429 with Retry-After, for every route."""
    for stage in ("interface", "implement", "test", "docs"):
        play(HAPPY, stage, workspace)

    outcomes = outcomes_of(workspace)
    with served(workspace) as connection:
        first = [get(connection)[0] for _ in range(100)]
        status, retry_after, body = get(connection)
        other_route = get(connection, "/health")[0]

    assert green(outcomes) == outcomes.keys()
    assert len(outcomes) == 7 + 8
    assert first == [200] * 100
    assert status == 429
    assert retry_after is not None
    assert 1 <= int(retry_after) <= 60
    assert "error" in json.loads(body)
    assert other_route == 429


def test_the_documentation_tells_of_it(workspace: Path) -> None:
    """Only documentation is changed."""
    before = sample_files()
    play(HAPPY, "docs", workspace)

    changed = {name for name in before if (workspace / name).read_bytes() != before[name]}
    assert changed == {"README.md", "CHANGELOG.md", "docs/api.md"}
    assert all("Retry-After" in (workspace / name).read_text() for name in changed)


def test_one_wrong_line_is_caught_by_the_tests(workspace: Path) -> None:
    """By the one that counts to 101."""
    play(WRONG_LINE, "interface", workspace)
    play(WRONG_LINE, "implement", workspace)
    play(WRONG_LINE, "test", workspace)

    outcomes = outcomes_of(workspace)

    assert outcomes[rate_limit.TEST_ONE_TOO_MANY_FAILS] != "passed"
    assert WRONG_LINE.conversation("implement", 2, 1) is None


def test_the_rework_is_red_twice_and_then_green(workspace: Path) -> None:
    """Each round begins with the files of the one before."""
    play(REWORK_TWICE, "interface", workspace)
    play(REWORK_TWICE, "test", workspace)

    reds = []
    for round_ in (1, 2, 3):
        play(REWORK_TWICE, "implement", workspace, round_)
        outcomes = outcomes_of(workspace)
        reds.append(len(outcomes) - len(green(outcomes)))

    assert reds[0] > 0
    assert reds[1] > 0
    assert reds[2] == 0


def test_tests_of_nothing_are_green_on_the_stubs(workspace: Path) -> None:
    """Named as they should be, and deciding nothing."""
    play(TESTS_NOTHING, "interface", workspace)
    play(TESTS_NOTHING, "test", workspace)

    outcomes = outcomes_of(workspace)

    assert green(outcomes) == outcomes.keys()
    assert sorted(name[9:14] for name in outcomes if name.startswith("test_req_")) == CRITERIA
