"""What somebody does who has an engine, the group `docker` and a clone, and nothing of root's: the commands of README.md."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from tests.e2e.line import Provider
from tests.e2e.people import Person, processes_at
from tests.e2e.watching import wait_until
from tests.fakes.repositories import run_git, sample_repository, write_files
from tests.fakes.scripts.any_repository import ANY_REPOSITORY, FEATURE, PIPELINE, REQUEST

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(900)]

ON_THE_DEFAULT_ENGINE = pytest.mark.parametrize("engine", ["default"], indirect=True)


@pytest.fixture(autouse=True)
def _leaves_no_process(member: Person):
    """The last one out stops the stack: a moment after a command, nothing of this person runs, and no socket directory is left."""
    sockets = Path(f"/tmp/andon-{member.uid}")
    before = {*sockets.glob("*")}  # the matrix keeps stacks of this person up
    yield
    wait_until(lambda: not processes_at(member.home) and {*sockets.glob("*")} == before, "the stack has stopped", 30)


def test_the_member_is_not_root_in_disguise(member: Person):
    """What the other tests prove, they prove for a user who reads nothing of root's and writes nothing of this checkout."""
    assert member.calls("id", "-u").stdout.strip() == str(member.uid) != "0"
    assert "docker" in member.calls("id", "-Gn").stdout.split()
    assert member.calls("ls", "/root").returncode != 0
    assert member.calls("touch", str(Path(__file__).parent / "mine")).returncode != 0


@ON_THE_DEFAULT_ENGINE
def test_make_run_lands_the_sample_without_a_key(member: Person, agent_image: str):
    """The main command of the README: a replay, said to be one, through the same containers, to a commit on a branch."""
    done = member.calls("make", "run", f"FEATURE={SAMPLE_REQUEST}")

    assert done.returncode == 0, done.stderr
    assert "replay" in done.stdout + done.stderr
    (sample,) = (member.home / ".local/state/andon/samples").iterdir()
    branch = _git_as(member, sample, "rev-parse", f"andon/{SAMPLE_FEATURE}")
    assert branch in done.stdout or branch[:12] in done.stdout
    assert sample.stat().st_uid == member.uid


@ON_THE_DEFAULT_ENGINE
def test_any_other_request_without_a_key_is_one_line_and_two(member: Person, agent_image: str):
    """It costs nothing, starts nothing, and says what to do; `make` passes the text on whatever is in it."""
    done = member.calls("make", "run", "FEATURE=$HOME `id` \"quoted\" 'too' # ; $(shell id)\nand a second line")

    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "ANTHROPIC_API_KEY" in line and "make" not in line]
    assert "Traceback" not in done.stderr


@ON_THE_DEFAULT_ENGINE
def test_a_repository_brings_its_own_image(member: Person, provider: Provider, agent_image: str):
    """`.andon/Dockerfile` of the base commit, trusted by --yes, is built and used by a user who owns no uid but one."""
    place = member.home / "own-image"
    repository = sample_repository(place, "conftest")
    write_files(
        repository,
        {
            ".andon/Dockerfile": b"FROM andon/agent\nCOPY conftest.py /opt/venv/lib/python3.11/site-packages/only_in_the_image.py\n",
            "tests/test_image.py": b"import only_in_the_image\n\n\ndef test_it_is_there():\n    assert only_in_the_image\n",
        },
    )
    run_git(repository, "-c", "core.hooksPath=/dev/null", "add", "-A")
    run_git(repository, "-c", "core.hooksPath=/dev/null", "commit", "--quiet", "-m", "an image of its own")
    (place / "short.yaml").write_text(PIPELINE)
    member.owns(place)
    provider.says(ANY_REPOSITORY)

    andon = (*member.andon[-1:], "run", REQUEST, "--repo", str(repository), "--pipeline", str(place / "short.yaml"), "--json")
    refused = member.calls(*andon, extra=provider.server.environment())
    done = member.calls(*andon, "--yes", extra=provider.server.environment())

    assert refused.returncode == 2
    assert "andon trust" in refused.stderr
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["branch"] == f"andon/{FEATURE}"
    assert result["tests"] == {"passed": 3, "failed": 0, "skipped": 0}


def test_no_engine_is_told_apart_from_no_permission(member: Person):
    """Somebody outside the group is told of the group, not that an engine is missing."""
    outsider = [part for part in member.as_user if part != "--init-groups"]
    outsider.insert(-1, "--clear-groups")
    done = subprocess.run(
        [*outsider, "make", "run"],
        cwd=member.checkout,
        env=dict(member.environment or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2  # make's own; the command's is shown
    assert "Error 5" in done.stderr
    assert re.search(r"permission denied.*usermod -aG docker", done.stderr)


def _git_as(person: Person, repository: Path, *arguments: str) -> str:
    return person.calls("git", "-C", str(repository), *arguments).stdout.strip()
