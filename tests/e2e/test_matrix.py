"""Repositories of every shape, for root and for an ordinary member of the `docker` group, on both engines; pairwise, and whole as `slow`.

Each cell is a real `andon run`: two agents, a join, validate, land. What lands differs from the base by the work alone.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from sandbox.executor.slots import NO_UID_OF_ITS_OWN
from tests.e2e.line import Finished, Line, Provider
from tests.e2e.people import Person, processes_at, the_tester
from tests.e2e.watching import events_of, sandboxes, stack_pids
from tests.fakes.repositories import TOPOLOGIES, everything_in, run_git, sample_repository
from tests.fakes.scripts.any_repository import ANY_REPOSITORY, CREATED, FEATURE, MODIFIED, PIPELINE, REQUEST
from tests.leaks import mounts_below, settled
from tests.servers.engines import Engines, TestEngine

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(900)]

REPOSITORIES = ("everything", *TOPOLOGIES)
PEOPLE = ("root", "member")
ENGINES = ("debian", "current")
PAIRWISE = {
    ("everything", "root", "debian"),
    ("everything", "member", "current"),
    ("linked_worktree", "root", "current"),
    ("linked_worktree", "member", "debian"),
    ("bare", "root", "debian"),
    ("bare", "member", "current"),
    ("shallow", "root", "current"),
    ("shallow", "member", "debian"),
}
"""Every pair of two axes' values is in one of these."""
CELLS = [
    pytest.param(*cell, id="-".join(cell), marks=() if cell in PAIRWISE else pytest.mark.slow)
    for cell in product(REPOSITORIES, PEOPLE, ENGINES)
]
COMMON_DIR = {"everything": "repository/.git", "linked_worktree": "repository/.git", "bare": "bare.git", "shallow": "shallow/.git"}
NO_QUOTA = "no quota mount without root: the workspace is a plain directory"

STRICT = ("/bin/sh", "-c", 'umask 077; exec "$@"', "sh")
"""Hardened machines log people in like this; the cells of the current engine do."""

Lines = Callable[[Person, TestEngine], Line]


@pytest.fixture
def person(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Person:
    """The one who runs the line."""
    if request.param == "root":
        return the_tester(tmp_path_factory.getbasetemp())
    found: Person = request.getfixturevalue("member")
    return found


@pytest.fixture(scope="session")
def lines(provider: Provider, member: Person, engines: Engines) -> Iterator[Lines]:
    """One stack for each person and engine, kept up; at the end each is told to go, before its person and engine, and is gone."""
    up: dict[tuple[int, str], tuple[Person, Line]] = {}

    def line_of(person: Person, engine: TestEngine) -> Line:
        key = (person.uid, engine.name)
        if key not in up:
            home = person.home / f"on-{engine.name}"
            home.mkdir(mode=0o700)
            person.owns(home)
            environment = {"DOCKER_HOST": engine.url, "PATH": os.environ["PATH"], **(person.environment or {}), "HOME": str(home)}
            command = (*(STRICT if engine.name == "current" else ()), *person.andon)
            up[key] = person, Line(home, {**environment, **provider.server.environment()}, command)
            started = up[key][1].andon("up", timeout_s=900)
            assert started.exit_code == 0, started.stderr
        return up[key][1]

    yield line_of
    for person, line in up.values():
        down = line.andon("down")
        assert down.exit_code == 0, down.stderr
        assert settled(lambda line=line: [*processes_at(line.home).values()]) == []  # type: ignore[misc]
        assert not sockets_of(line, person).exists()
    for uid in {person.uid for person, _ in up.values()} - {0}:
        Path(f"/tmp/andon-{uid}").rmdir()  # empty, or this fails


def the_landed_tree_is_the_base_and_the_work(place: Path, common: Path, result: dict[str, Any]) -> None:
    """Every entry, by mode, kind and object: submodules, links, line endings, exec bits, odd names and `.env` files included."""

    def entries(commit: str) -> dict[str, str]:
        listing = run_git(common, "-c", "safe.directory=*", "ls-tree", "-r", "-z", "--full-tree", commit)
        return {path: entry for entry, _, path in (line.partition("\t") for line in listing.split("\0") if line)}

    base, landed = entries(result["base"]), entries(f"refs/heads/andon/{FEATURE}")
    assert landed.keys() - base.keys() == set(CREATED)
    assert base.keys() - landed.keys() == set()
    assert {path for path in base if base[path] != landed[path]} == set(MODIFIED)
    assert run_git(common, "-c", "safe.directory=*", "rev-list", "--max-count=1", f"refs/heads/andon/{FEATURE}") == result["commit"]
    assert run_git(common, "-c", "safe.directory=*", "rev-parse", f"{result['commit']}^") == result["base"]
    assert {entry[:6] for entry in base.values()} == {"100644", "100755", "120000", "160000"}
    # `ls-tree` shows 100644 for the mode git wrote in 2005.
    for commit in (result["base"], result["commit"]):
        assert b"100664 old-mode.txt\0" in _git_bytes(common, "cat-file", "tree", f"{commit}^{{tree}}")


def _git_bytes(common: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-c", "safe.directory=*", *arguments], cwd=common, capture_output=True, check=True).stdout


def only_a_branch_was_added(before: dict[str, Any], after: dict[str, Any], common_dir: str) -> None:
    """Objects and one ref; every other byte and mode, of every directory around it, is what it was, and no hook ran."""
    allowed = (f"{common_dir}/objects/", f"{common_dir}/refs/heads/andon/")
    added = after.keys() - before.keys()
    assert {path for path in before if after.get(path) != before[path]} == set()
    assert {path for path in added if not f"{path}/".startswith(allowed)} == set()
    assert f"{common_dir}/refs/heads/andon/{FEATURE}" in added
    assert "hook-ran" not in after


def nothing_runs_or_lies_about(line: Line, person: Person) -> None:
    """No container, no mount, no socket of an attempt; of processes the stack alone."""
    sockets = sockets_of(line, person)
    pids = set(stack_pids(line).values())
    assert settled(lambda: [str(each["Id"]) for each in sandboxes(line)]) == []
    assert mounts_below(line.home) == []
    assert sockets.is_dir()
    assert [path for path in sockets.rglob("*") if not path.is_dir()] == []
    assert settled(lambda: [command for pid, command in processes_at(line.home).items() if pid not in pids]) == []


def sockets_of(line: Line, person: Person) -> Path:
    """Return where this stack's executor makes its sockets."""
    instance = sha256(os.fsencode(line.state / "executor")).hexdigest()[:8]
    return Path(f"/tmp/andon-{person.uid}") / instance


def foreign_entries(place: Path, person: Person) -> list[str]:
    """Return what below `place` is not the person's."""
    found = []
    for directory, directories, files in os.walk(os.fsencode(place)):
        for name in directories + files:
            path = os.path.join(directory, name)  # noqa: PTH118  # bytes: names need not be UTF-8
            if os.lstat(path).st_uid != person.uid:
                found.append(os.fsdecode(path))
    return found


def test_every_pair_of_values_is_in_the_default_suite():
    """Leaving a cell to `make matrix` takes no pair of repository, person and engine out of `make test`."""
    axes = (REPOSITORIES, PEOPLE, ENGINES)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert {(cell[one], cell[other]) for cell in PAIRWISE} == set(product(axes[one], axes[other]))


@pytest.mark.parametrize("kind,person,engine", CELLS, indirect=["person", "engine"])  # noqa: PT006  # read by our conftest
def test_the_work_lands_and_everything_else_stays(
    kind: str, person: Person, engine: TestEngine, agent_image: str, lines: Lines, provider: Provider, member: Person
):
    """A repository of this shape, worked on by this person with this engine; root with Debian's engine works on somebody else's."""
    line = lines(person, engine)
    owner = member if engine.name == "debian" else person
    place = owner.home / f"{kind}-on-{engine.name}-for-{person.uid}"
    repository = sample_repository(place, kind)
    owner.owns(place)
    (line.home / "short.yaml").write_text(PIPELINE)
    person.owns(line.home / "short.yaml")
    before = everything_in(place)
    provider.says(ANY_REPOSITORY)

    done = line.run(REQUEST, "--repo", str(repository), "--pipeline", str(line.home / "short.yaml"))

    assert done.exit_code == 0, done.stderr
    assert provider.server.violations == []
    assert done.result["branch"] == f"andon/{FEATURE}"
    assert done.result["files"] == {"created": sorted(CREATED), "modified": list(MODIFIED), "deleted": []}
    the_agent_saw_a_clean_checkout(provider)
    only_a_branch_was_added(before, everything_in(place), COMMON_DIR[kind])
    the_landed_tree_is_the_base_and_the_work(place, place / COMMON_DIR[kind], done.result)
    assert foreign_entries(place, owner) == []
    what_is_missing_is_said(line, person, done)
    nothing_runs_or_lies_about(line, person)


def the_agent_saw_a_clean_checkout(provider: Provider) -> None:
    """`git status` and `git diff` in the sandbox are empty before the agent's first change, and `git log` has the base."""
    (second,) = [call for call in provider.server.calls("implement") if call.turn == 1]
    (result,) = [block for block in second.request["messages"][-1]["content"] if block["type"] == "tool_result"]
    told = result["content"] if isinstance(result["content"], str) else "".join(block["text"] for block in result["content"])
    assert told.split() == ["1", "[exit", "code", "0]"], told


def what_is_missing_is_said(line: Line, person: Person, done: Finished) -> None:
    """An ordinary user has no uid per slot and no quota mount: every attempt records it and `doctor` says it; root has both."""
    ended = [event for event in events_of(line, done.result["run_id"]) if event["type"] == "attempt_ended"]
    doctor = line.andon("doctor")
    assert doctor.exit_code == 0, doctor.stdout
    assert [event["outcome"] for event in ended] == ["submitted"] * 4, [event["reason"] for event in ended]
    for lacking in (NO_UID_OF_ITS_OWN, NO_QUOTA):
        assert {lacking in event["missing"] for event in ended} == {person.uid != 0}
    for words in ("no uid per slot", "no quota mount"):
        assert (words in doctor.stdout) == (person.uid != 0)
