"""Salvaged work and its restoration, over real git: what `andon salvage` is made of."""

from pathlib import Path

import pytest

from sandbox.contract.errors import ConflictError, UsageError
from sandbox.contract.result import Outcome
from sandbox.git import ANDON
from sandbox.mirror import Mirror
from supervisor.api.run_files import files_of
from supervisor.bootstrap.salvage import Salvaged, restore, salvaged
from supervisor.config import StateDirectory
from supervisor.delivery import snapshot
from supervisor.errors import UnknownRun
from tests.fakes.repositories import run_git, sample_repository
from tests.fakes.run_events import RUN, Story

WRITTEN: dict[str, bytes | None] = {"src/app/core.py": b"half\r\nwritten \xff\x00", "new/odd näme ☂.txt": b"", "README.md": None}
NAME = f"{RUN}/implement-1-2"
BRANCH = f"andon/salvage/{NAME}"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return sample_repository(tmp_path / "theirs", "everything")


@pytest.fixture
async def state(tmp_path: Path, repository: Path) -> StateDirectory:
    """Return a state directory with one attempt's work, on an interface commit that is not in the user's repository."""
    state = StateDirectory.open(tmp_path / "state")
    state.mirrors.mkdir()
    mirror = await Mirror.open(state.mirror)
    taken = await snapshot(repository, None)
    await mirror.import_base(taken.commit, taken.pack)
    made = {"message": "x", "author": ANDON, "committer": ANDON}
    interface = await mirror.commit_files(taken.commit, {"src/app/stub.py": b"..."}, **made, at=5)  # type: ignore[arg-type]
    work = await mirror.commit_files(interface, WRITTEN, **made, at=7)  # type: ignore[arg-type]
    await mirror.update_ref(f"refs/andon/salvage/{NAME}", work, None)
    await mirror.update_ref("refs/andon/salvage/01jd8m6zzz/docs-3-1", interface, None)
    story = (
        Story(repository=str(repository)).accepted().dispatched("implement").started("implement").ended("implement", outcome=Outcome.LOST)
    )
    story.started("implement", attempt=2).ended("implement", attempt=2, outcome=Outcome.TIMEOUT, reason="20 min are over")
    files_of(state, RUN).append(story.log)
    return state


def every_byte(repository: Path) -> dict[str, bytes]:
    """Return every file of a repository but what a new branch needs: its ref and the objects."""
    files = {str(path.relative_to(repository)): path for path in sorted(repository.rglob("*")) if path.is_file() and not path.is_symlink()}
    return {name: path.read_bytes() for name, path in files.items() if "/objects/" not in name and "refs/heads/andon" not in name}


async def test_what_is_salvaged_is_told_with_why_and_how_much(state: StateDirectory) -> None:
    """Newest first; a run whose files are gone is still there, with less to say."""
    gone, work = await salvaged(state)

    assert (work.name, work.feature, work.outcome, work.reason) == (NAME, "add-rate-limiting", "timeout", "20 min are over")
    assert (work.files, work.stage, work.round, work.attempt, work.executor) == (3, "implement", 1, 2, "host-1")
    assert work.deletions > 0
    assert (gone.name, gone.feature, gone.files, gone.ended_at) == ("01jd8m6zzz/docs-3-1", "", 1, None)


async def test_one_runs_work_is_found_by_the_beginning_of_its_id(state: StateDirectory) -> None:
    """As everywhere; a beginning of two is refused with both."""
    assert [work.name for work in await salvaged(state, RUN[:8])] == [NAME]
    with pytest.raises(UnknownRun, match="01jd8m6zzz"):
        await salvaged(state, "01jd8m6")
    assert await salvaged(StateDirectory(state.root / "empty")) == []


async def test_every_byte_is_restored(state: StateDirectory, repository: Path) -> None:
    """One commit on the run's base: what the attempt was given and what it wrote, with modes; the rest of the repository is untouched."""
    before = every_byte(repository)
    head = run_git(repository, "rev-parse", "HEAD")

    done = await restore(state, f"{RUN[:8]}/implement-1-2", None, None)

    assert (done.repository, done.branch) == (repository, BRANCH)
    assert run_git(repository, "rev-list", "--parents", "-n1", BRANCH) == f"{done.commit} {head}"
    of_mirror = run_git(state.mirror, "rev-parse", f"refs/andon/salvage/{NAME}^{{tree}}")
    assert run_git(repository, "rev-parse", f"{BRANCH}^{{tree}}") == of_mirror
    assert run_git(repository, "fsck", "--strict", "--no-dangling") == ""
    for path, data in WRITTEN.items():
        shown = run_git(repository, "ls-tree", "-z", BRANCH, "--", path)
        assert bool(shown) == (data is not None)
    assert every_byte(repository) == before
    assert RUN in run_git(repository, "log", "-1", "--format=%(trailers:key=Andon-Run,valueonly)", BRANCH)


async def test_to_restore_twice_is_to_restore_once(state: StateDirectory, repository: Path) -> None:
    """The same work makes the same commit, so the second time finds its branch where it should be."""
    first = await restore(state, NAME, None, None)

    assert await restore(state, NAME, None, None) == first


async def test_a_branch_that_is_taken_is_left_alone(state: StateDirectory, repository: Path) -> None:
    """Whoever made it keeps it; another name works."""
    run_git(repository, "branch", BRANCH)
    before = run_git(repository, "rev-parse", BRANCH)

    with pytest.raises(ConflictError, match="exists already"):
        await restore(state, NAME, None, None)
    done = await restore(state, NAME, None, "mine/again")

    assert run_git(repository, "rev-parse", BRANCH) == before
    assert run_git(repository, "rev-parse", "mine/again") == done.commit


async def test_a_repository_without_the_base_is_refused(state: StateDirectory, tmp_path: Path) -> None:
    """A branch on nothing would be worth nothing, so none is made."""
    other = sample_repository(tmp_path / "other", "plain")
    run_git(other, "commit", "--amend", "-m", "another history")
    run_git(other, "reflog", "expire", "--expire=all", "--all")
    run_git(other, "gc", "--quiet", "--prune=now")

    with pytest.raises(ConflictError, match="base commit"):
        await restore(state, NAME, other, None)

    assert run_git(other, "branch", "--list", "andon/*") == ""


@pytest.mark.parametrize(
    ("name", "branch", "told"),
    [
        (f"{RUN}/implement-1-1", None, "nothing is salvaged"),
        (RUN, None, "nothing is salvaged"),
        (NAME, "-x", "no name for a branch"),
        (NAME, "a..b", "no name for a branch"),
        ("01jd8m6zzz/docs-3-1", None, "--repo"),
    ],
)
async def test_what_cannot_be_meant_is_refused(state: StateDirectory, repository: Path, name: str, branch: str | None, told: str) -> None:
    """With what to do, and without a branch."""
    with pytest.raises(UsageError, match=told):
        await restore(state, name, None, branch)

    assert run_git(repository, "branch", "--list", "andon/*") == ""


async def test_work_of_a_run_without_files_goes_where_a_person_says(state: StateDirectory, repository: Path) -> None:
    """The mirror alone knows enough to restore it."""
    done = await restore(state, "01jd8m6zzz/docs-3-1", repository, None)

    assert run_git(repository, "diff", "--name-only", "HEAD", done.branch) == "src/app/stub.py"
    assert isinstance((await salvaged(state))[0], Salvaged)
