"""A short piece of `make chaos`, so that every `make test` breaks something at random; its seed is in the output of a failure."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.chaos import scene
from tests.chaos.faults import SEED_VARIABLE, VICTIMS, Plan, Tally
from tests.chaos.paper_site import PaperSite
from tests.chaos.real_site import RealSite
from tests.e2e.line import Provider
from tests.fakes.repositories import run_git
from tests.fakes.scripted_model import Logged


@pytest.fixture
def seed() -> int:
    chosen = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(10**9))
    print(f"{SEED_VARIABLE}={chosen}")
    return chosen


@pytest.mark.timeout(240)
def test_runs_on_paper_land_once_whatever_dies(seed: int, tmp_path: Path):
    """Sixteen faults over two supervisors, three executors, their sandboxes and the broker."""
    tmp_path.chmod(0o711)
    tally = Tally()
    shares = {"supervisor": 2, "executor": 6, "container": 6, "broker": 2}

    with Provider() as provider:
        provider.says(scene.script(dawdle_s=0.8))
        plan = Plan(seed, shares, pause_s_mean=0.6, stop_s_max=4.0)  # type: ignore[arg-type]
        wrong = asyncio.run(PaperSite(tmp_path / "paper", provider, print).run(plan, tally, people=3, deadline_s=90))

    print(tally.table())
    assert wrong == []
    assert tally.total == 16


@pytest.mark.docker
@pytest.mark.timeout(300)
def test_runs_in_containers_land_once_whatever_dies(seed: int, tmp_path: Path, agent_image: str):
    """One fault for each kind of victim, over a stack and containers as a person has them."""
    tally = Tally()

    with Provider() as provider:
        provider.says(scene.script(dawdle_s=1.5))
        site = RealSite(tmp_path / "real", provider, people=2, say=print)
        wrong = site.run(Plan(seed, dict.fromkeys(VICTIMS, 1), pause_s_mean=0.8, stop_s_max=4.0), tally)

    print(tally.table())
    assert wrong == []
    assert tally.total >= len(VICTIMS) - 2, "the runs were over before the faults were made"


def a_call(turn: int, **usage: int) -> Logged:
    """Return one call as the provider logs it."""
    every = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
    return Logged("r1", "implement", 1, 2, turn, 200, {}, {"model": "claude-sonnet-5-5"}, every | usage)


def test_a_call_that_is_not_on_the_bill_is_noticed():
    """The control of the bill: a thousand tokens of output cost a cent, and a run that says less is wrong."""
    calls = [a_call(0, output_tokens=1_000)]

    assert scene.problems_of_bill(calls, "r1", 0.01) == []
    assert len(scene.problems_of_bill(calls, "r1", 0.009)) == 1
    assert scene.problems_of_bill(calls, "another", 0.0) == []


def test_work_that_is_nowhere_is_noticed(tmp_path: Path):
    """The control of the salvage: what the provider knows to be written has to be at the landed commit or on the attempt's own ref."""
    repository = a_repository(tmp_path, scene.written_by("implement", 0, 1, 2))
    commit = run_git(repository, "rev-parse", "HEAD")
    written = [a_call(1)]

    assert scene.problems_of_work([a_call(0)], "r1", repository, []) == []
    assert len(scene.problems_of_work(written, "r1", repository, [])) == 1
    assert scene.problems_of_work(written, "r1", repository, [commit]) == []
    run_git(repository, "update-ref", "refs/andon/salvage/r1/implement-1-2", commit)
    assert scene.problems_of_work(written, "r1", repository, []) == []
    assert len(scene.problems_of_work([a_call(3)], "r1", repository, [commit])) == 1, "the second file is missing"


def test_a_repository_that_is_not_as_it_was_is_noticed(tmp_path: Path):
    """The control of the user's repository: another byte, a lock, a branch too many, two commits, foreign content."""
    repository = a_repository(tmp_path, "base")
    before = scene.Before.of(repository)
    assert scene.problems_of_repository(before, "andon/x", landed=False) == []

    (repository / ".git" / "refs" / "heads" / "andon").mkdir()
    (repository / ".git" / "refs" / "heads" / "andon" / "x.lock").touch()
    assert len(scene.problems_of_repository(before, "andon/x", landed=False)) == 1
    (repository / ".git" / "refs" / "heads" / "andon" / "x.lock").unlink()
    run_git(repository, "-c", "core.logAllRefUpdates=false", "branch", "andon/x")
    assert len(scene.problems_of_repository(before, "andon/x", landed=False)) == 1
    assert len(scene.problems_of_repository(before, "andon/x", landed=True)) == 2, "no commit on the base, and not what was asked for"
    (repository / "more").touch()
    assert len(scene.problems_of_repository(before, "andon/x", landed=True)) == 3


def a_repository(tmp_path: Path, text: str) -> Path:
    """Return a repository of one commit whose implementation is `text`."""
    repository = tmp_path / "repository"
    path = repository / scene.WRITTEN["implement"][0]
    path.parent.mkdir(parents=True)
    path.write_text(text)
    run_git(repository, "init", "--quiet", "--initial-branch=main")
    run_git(repository, "add", "--all")
    run_git(repository, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "--message=base")
    return repository
