"""What is asked for wrongly ends with one clear line and the documented exit code, before anything is spent or changed."""

import json
from pathlib import Path

import pytest

from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from tests.e2e.line import Finished, Line, Provider
from tests.e2e.watching import RESULT_KEYS, a_sample, branches, commit_files, every_byte
from tests.fakes.repositories import run_git

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return a_sample(tmp_path / "notes")


def refused(done: Finished, exit_code: int, *told: str) -> None:
    """Check that a command ended with one line on stderr that says these words, and with one object on stdout if asked for."""
    lines = [line for line in done.stderr.splitlines() if "error: " in line]
    assert done.exit_code == exit_code, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("andon: error: ")
    assert "Traceback" not in done.stderr + done.stdout
    assert "bug in andon" not in done.stderr
    for word in told:
        assert word in lines[0]


def refused_object(done: Finished, exit_code: int) -> None:
    """Check the result object of a run that never began."""
    assert set(done.result) == RESULT_KEYS | {"error"}
    assert (done.result["run_id"], done.result["exit_code"], done.result["state"]) == (None, exit_code, "failed")
    assert done.result["error"] in done.stderr


PIPELINES = {
    "cycle": (
        "pipeline:\n  stages:\n    - {name: a, agent: implement, depends_on: [b]}\n    - {name: b, agent: test, depends_on: [a]}\n",
        "cycle",
    ),
    "unknown stage": ("pipeline:\n  stages:\n    - {name: a, agent: implement, depends_on: [interfaec]}\n", "interfaec"),
    "unknown key": ("pipeline:\n  stages:\n    - {name: a, agent: implement, dependson: [b]}\n", "dependson"),
    "unknown agent": ("pipeline:\n  stages:\n    - {name: a, agent: no-such-agent, role: implement}\n", "no-such-agent"),
    "not yaml": ("pipeline: [", "pipeline.yaml"),
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_pipeline_that_cannot_be_is_refused(line: Line, provider: Provider, repository: Path, tmp_path: Path, kind: str):
    """By name of the file and of what is wrong in it, exit 2."""
    text, told = PIPELINES[kind]
    (tmp_path / "pipeline.yaml").write_text(text)

    done = line.run("Add a thing", "--repo", str(repository), "--pipeline", str(tmp_path / "pipeline.yaml"))

    refused(done, 2, told)
    refused_object(done, 2)
    assert provider.server.log == []


def test_what_is_no_repository_is_refused(line: Line, provider: Provider, repository: Path, tmp_path: Path):
    """A directory that is none, one that does not exist, one without a commit, an unknown revision: each told apart."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "empty").mkdir()
    run_git(tmp_path / "empty", "init", "--quiet")

    refused(line.run("Add a thing", "--repo", str(tmp_path / "plain")), 2, "plain", "not a git repository")
    refused(line.run("Add a thing", "--repo", str(tmp_path / "absent")), 2, "absent")
    refused(line.run("Add a thing", "--repo", str(tmp_path / "empty")), 2, "empty", "no commit")
    refused(line.run("Add a thing", "--repo", str(repository), "--base", "no-such-branch"), 2, "no-such-branch")
    assert provider.server.log == []


def test_a_request_or_name_that_cannot_be_is_refused(line: Line, provider: Provider, repository: Path):
    """No request, an empty one, a bad slug, a budget that is none."""
    refused(line.run("--repo", str(repository)), 2, "say what you want")
    refused(line.run("  \n ", "--repo", str(repository)), 2, "empty")
    refused(line.andon("run", "-", "--repo", str(repository), stdin=""), 2, "empty")
    refused(line.run("Add a thing", "--repo", str(repository), "--slug", "Not A Slug!"), 2, "Not A Slug!")
    refused(line.run("Add a thing", "--repo", str(repository), "--budget", "much"), 2, "much")
    assert line.run("Add a thing", "--repo", str(repository), "--no-such-option").exit_code == 2
    assert provider.server.log == []


def test_a_branch_that_is_taken_is_a_conflict(line: Line, provider: Provider, repository: Path):
    """Exit 6 with its name, checked before a cent is spent; a derived slug takes the next free name instead."""
    run_git(repository, "branch", "andon/taken")
    before = every_byte(repository)

    done = line.run("Add a thing", "--repo", str(repository), "--slug", "taken")

    refused(done, 6, "andon/taken")
    refused_object(done, 6)
    assert every_byte(repository) == before
    assert provider.server.log == []


def test_a_branch_named_andon_is_in_the_way(line: Line, provider: Provider, repository: Path):
    """Git cannot hold `andon` and `andon/x` side by side: exit 6, named."""
    run_git(repository, "branch", "andon")

    refused(line.run("Add a thing", "--repo", str(repository)), 6, "andon")
    assert provider.server.log == []


def test_an_unknown_run_is_refused_by_every_verb(line: Line):
    """Exit 2; too short a prefix says how long it has to be."""
    for verb in ("status", "logs", "diff", "stop", "resume"):
        refused(line.andon(verb, "zzzzzzzzzz"), 2, "zzzzzzzzzz")
        refused(line.andon(verb, "t4"), 2, "too short")


def test_an_ambiguous_prefix_lists_its_matches(line: Line, tmp_path: Path):
    """Two runs that begin alike are both named; nothing is guessed."""
    other = Line(tmp_path, {})
    (other.state / "VERSION").parent.mkdir(parents=True, mode=0o700)
    for name in ("t41dabcdef", "t41dabcdez"):
        (other.state / "runs" / name).mkdir(parents=True)

    refused(other.andon("status", "t41dabc"), 2, "t41dabcdef", "t41dabcdez")


def test_without_a_key_another_request_is_refused(repository: Path, tmp_path: Path):
    """Exit 2, one line that names the variable and the way to see the sample; nothing is started."""
    keyless = Line(tmp_path / "home", {})
    keyless.home.mkdir()

    done = keyless.run("Add a thing", "--repo", str(repository))

    refused(done, 2, "ANTHROPIC_API_KEY")
    refused_object(done, 2)
    assert not (keyless.state / "stack.json").exists()


def test_a_refused_key_ends_the_run_as_a_matter_of_usage(line: Line, provider: Provider, repository: Path, tmp_path: Path):
    """The provider says 401: exit 2, told as such, not tried again and again."""
    right, provider.server.api_key = provider.server.api_key, "another-key"
    try:
        done = line.run("Add a thing", "--repo", str(repository), "--no-baseline")
    finally:
        provider.server.api_key = right

    assert (done.exit_code, done.result["state"]) == (2, "failed"), done.stderr
    assert len(done.stage("spec")["attempts"]) == 1
    assert "key" in done.stderr
    assert branches(repository) == ["main"]


def test_a_repository_without_its_dependencies_gets_a_dockerfile_instead_of_a_bill(line: Line, provider: Provider, repository: Path):
    """Exit 2 before any model call, with a `.andon/Dockerfile` and a `quality.toml` ready to paste (DECISIONS G14)."""
    commit_files(
        repository,
        {"requirements.txt": "no-such-library==1.2.3\n", "tests/test_uses_it.py": "import no_such_library\n\n\ndef test_it():\n    pass\n"},
        removed=("tests/test_app.py", "tests/test_server.py"),
    )
    before = every_byte(repository)

    done = line.run("Add a thing", "--repo", str(repository))

    assert (done.exit_code, done.result["state"]) == (2, "failed"), done.stderr
    assert done.rounds == [("baseline", 1, "fail")]
    assert provider.server.log == []
    for told in (".andon/Dockerfile", "FROM andon/agent", "no-such-library==1.2.3", "quality.toml"):
        assert told in done.stderr, told
        assert told in Path(done.result["report"]).read_text(), told
    assert every_byte(repository) == before


def test_a_foreign_agent_that_is_not_in_the_image_is_found_before_it_costs(
    line: Line, provider: Provider, repository: Path, tmp_path: Path
):
    """Not at its own stage, when others were paid already: the baseline names the program, exit 2."""
    (tmp_path / "pipeline.yaml").write_text("pipeline: {defaults: {agent: {driver: command, command: no-such-agent --task}}}\n")

    done = line.run("Add a thing", "--repo", str(repository), "--pipeline", str(tmp_path / "pipeline.yaml"))

    assert (done.exit_code, done.rounds) == (2, [("baseline", 1, "fail")]), done.stderr
    assert provider.server.log == []
    for told in ("not in the image: no-such-agent", ".andon/Dockerfile", "docs/agents.md"):
        assert told in done.stderr, told


def test_an_image_of_the_repositorys_own_needs_consent(line: Line, provider: Provider, repository: Path):
    """The one build with network is not begun for a Dockerfile nobody agreed to: exit 2 and how to agree (DECISIONS D11)."""
    commit_files(repository, {".andon/Dockerfile": "FROM andon/agent\nRUN touch /x\n"})

    refused(line.run("Add a thing", "--repo", str(repository)), 2, ".andon/Dockerfile", "andon trust")
    assert provider.server.log == []


def test_the_reading_verbs_start_nothing_and_speak_json(tmp_path: Path):
    """On a host where nothing ever ran: no stack, no state directory, and what they say is JSON where asked for."""
    fresh = Line(tmp_path / "home", {})
    fresh.home.mkdir()

    listed = fresh.andon("list")
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert "no runs yet" in listed.stderr
    assert json.loads(fresh.andon("list", "--json").stdout) == []
    refused(fresh.andon("status"), 2, "no run")
    probes = json.loads(fresh.andon("doctor", "--json").stdout)
    assert {"python", "git", "engine", "broker", "state", "model"} <= {probe["name"] for probe in probes}
    assert all(set(probe) == {"name", "status", "detail", "advice"} for probe in probes)
    assert not fresh.state.exists()


def test_every_command_explains_itself(tmp_path: Path):
    """`--help` of each command works without a state directory and names its options."""
    fresh = Line(tmp_path, {})
    commands = [
        each.split()[0]
        for each in fresh.andon("--help").stdout.split("Commands:")[1].split("\n\n")[0].splitlines()
        if each.startswith("  ") and each[2] != " "
    ]

    assert {"run", "resume", "status", "list", "logs", "diff", "stop", "doctor", "up"} <= set(commands)
    for name in commands:
        shown = fresh.andon(name, "--help")
        assert (shown.exit_code, "usage: andon" in shown.stdout.lower()) == (0, True), name
    assert list(tmp_path.iterdir()) == []


def test_the_default_slug_steps_aside_for_a_taken_one(line: Line, provider: Provider, repository: Path, tmp_path: Path):
    """A second run of a feature gets `-2`, said in one line before it begins; stopped by a pipeline that ends at once."""
    run_git(repository, "branch", f"andon/{SAMPLE_FEATURE}")
    (tmp_path / "pipeline.yaml").write_text("pipeline:\n  stages:\n    - {name: docs, agent: docs}\n")

    done = line.run(SAMPLE_REQUEST, "--repo", str(repository), "--pipeline", str(tmp_path / "pipeline.yaml"))

    assert done.exit_code == 0, done.stderr
    assert done.result["branch"] == f"andon/{SAMPLE_FEATURE}-2"
    assert f"{SAMPLE_FEATURE}-2" in done.stderr
    assert sorted(branches(repository)) == [f"andon/{SAMPLE_FEATURE}", f"andon/{SAMPLE_FEATURE}-2", "main"]
