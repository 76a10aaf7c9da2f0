"""Another line than the shipped one: the repository's own, the first source's form, one that is given, and one run in sequence."""

from datetime import datetime
from pathlib import Path

import pytest

from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from tests.e2e.line import Line, Provider
from tests.e2e.watching import a_sample, branches, commit_files
from tests.fakes.scripts.rate_limit import SPEC

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

ASSEMBLY_LINE = Path(__file__).parents[1] / "fixtures" / "assembly_line.yaml"
OURS = "claude-sonnet-5-5"

SHORT = f"""
pipeline:
  name: short
  defaults: {{model: {OURS}, steps_max: 9}}
  stages:
    - {{name: interface, agent: interface}}
    - {{name: implement, agent: implement, depends_on: [interface]}}
    - {{name: test, agent: test, depends_on: [interface]}}
    - {{name: validate, type: builtin, depends_on: [implement, test]}}
    - {{name: land, type: builtin, depends_on: [validate]}}
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return a_sample(tmp_path / "notes")


def given_spec(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "spec.yaml").write_text(SPEC.replace("{feature}", SAMPLE_FEATURE))
    return ("--spec", str(tmp_path / "spec.yaml"), "--slug", SAMPLE_FEATURE, "--no-baseline")


def test_the_repositorys_own_pipeline_is_taken_from_the_base_commit(line: Line, repository: Path, tmp_path: Path):
    """`.andon/pipeline.yaml` as committed, not as it lies in the work tree: no docs stage; and in sequence nothing overlaps."""
    commit_files(repository, {".andon/pipeline.yaml": SHORT})
    (repository / ".andon/pipeline.yaml").write_text("pipeline: not even a pipeline\n")

    done = line.run(SAMPLE_REQUEST, "--repo", str(repository), "--mode", "sequential", *given_spec(tmp_path))

    assert done.exit_code == 0, done.stderr
    assert {stage for stage, _, _ in done.rounds} == {"interface", "implement", "test", "red-check", "validate"}
    times = sorted((each["attempts"][0]["started_at"], each["attempts"][0]["ended_at"]) for each in done.result["stages"])
    moments = [datetime.fromisoformat(each) for pair in times for each in pair]
    assert moments == sorted(moments)
    assert "(parallel)" not in done.stderr
    assert "README.md" not in done.result["files"]["modified"]


def test_the_first_sources_pipeline_is_refused_while_its_models_have_no_price(line: Line, provider: Provider, repository: Path):
    """It loads as it is; a model that no price list knows cannot be held by a budget: exit 2 with the setting that maps it."""
    done = line.run(SAMPLE_REQUEST, "--repo", str(repository), "--pipeline", str(ASSEMBLY_LINE))

    assert done.exit_code == 2
    assert "functiongemma-spec-v1" in done.stderr
    assert "models:" in done.stderr
    assert provider.server.log == []
    assert branches(repository) == ["main"]


def test_the_first_sources_pipeline_lands_once_its_models_are_mapped(provider: Provider, repository: Path, tmp_path: Path):
    """Its stage names, aliases and `command: pytest` as they are; each call goes to the model that was named for it."""
    theirs = [f"functiongemma-{name}-v1" for name in ("spec", "interface", "impl", "test", "docs")]
    mapped = Line(tmp_path / "home", provider.server.environment() | {"ANDON_MODELS": ",".join(f"{name}={OURS}" for name in theirs)})
    mapped.home.mkdir()

    done = mapped.run(SAMPLE_REQUEST, "--repo", str(repository), "--pipeline", str(ASSEMBLY_LINE), "--no-baseline")

    assert done.exit_code == 0, done.stderr
    assert {stage for stage, _, _ in done.rounds} == {"spec", "interface", "implementation", "test", "red-check", "validate", "docs"}
    assert {call.request["model"] for call in provider.server.calls()} == {OURS}
    assert {call.stage for call in provider.server.calls()} == {"spec", "interface", "implementation", "test", "docs"}
    assert done.result["tests"]["failed"] == 0
    assert branches(repository) == [f"andon/{SAMPLE_FEATURE}", "main"]
    assert mapped.andon("down").exit_code == 0
