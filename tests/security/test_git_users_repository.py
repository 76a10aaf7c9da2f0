"""A user's repository that came from somewhere else, `.git` and all: it is read and gets its branch, and nothing planted in it runs."""

import os
from pathlib import Path

import pytest

from sandbox.contract.errors import UsageError
from sandbox.git import ANDON
from sandbox.mirror import Mirror
from supervisor.delivery import deliver, snapshot
from tests.fakes.repositories import plant_hooks, run_git, write_files
from tests.security import git_plants as plants
from tests.security.git_plants import Plant, naive_host


def a_repository(path: Path) -> Path:
    root = path / "user"
    write_files(root, {"README.md": b"# Sample\n", "src/app.py": b"x = 1\n"})
    run_git(root, "init", "-q")
    run_git(root, "add", "-A")
    run_git(root, "commit", "-q", "-m", "base")
    return root


def alternate_refs(root: Path, canary: Path) -> None:
    """A program that is asked for the refs of a borrowed store."""
    (root / ".git/objects/info/alternates").write_text(f"{a_repository(root.parent / 'lender')}/.git/objects\n")
    run_git(root, "config", "core.alternateRefsCommand", f"touch {canary}; :")


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(plants.fsmonitor, marks=pytest.mark.abuse("G01")),
        pytest.param(plants.signing_program, marks=pytest.mark.abuse("G01")),
        pytest.param(plants.diff_program, marks=pytest.mark.abuse("G01")),
        pytest.param(plants.git_file, marks=pytest.mark.abuse("G02")),
        pytest.param(plants.hooks, marks=pytest.mark.abuse("G03")),
        pytest.param(plants.hooks_path, marks=pytest.mark.abuse("G03")),
        pytest.param(plants.reference_hook, marks=pytest.mark.abuse("G03")),
        pytest.param(plants.filters, marks=pytest.mark.abuse("G04")),
        pytest.param(plants.filter_process, marks=pytest.mark.abuse("G04")),
        pytest.param(plants.diff_driver, marks=pytest.mark.abuse("G04")),
        pytest.param(plants.text_conversion, marks=pytest.mark.abuse("G04")),
        pytest.param(plants.transport, marks=pytest.mark.abuse("G06")),
        pytest.param(plants.remote_program, marks=pytest.mark.abuse("G06")),
        pytest.param(plants.embedded, marks=pytest.mark.abuse("G05")),
        pytest.param(plants.included_config, marks=pytest.mark.abuse("G09")),
        pytest.param(plants.conditional_config, marks=pytest.mark.abuse("G09")),
        pytest.param(plants.worktree_config, marks=pytest.mark.abuse("G09")),
        pytest.param(plants.common_dir, marks=pytest.mark.abuse("G09")),
    ],
)
async def test_a_repository_with_a_plant_is_read_and_delivered_to_without_running_it(tmp_path: Path, plant: Plant):
    """From the snapshot to the new branch; the control: the first commands a person types there run it."""
    root, canary = a_repository(tmp_path), tmp_path / "canary"
    plant(root, canary)
    canary.unlink(missing_ok=True)

    await a_feature_lands_in(root, tmp_path)

    assert not canary.exists()
    naive_host(root)
    assert canary.exists(), "the control: this plant is live"


async def a_feature_lands_in(root: Path, path: Path) -> None:
    base = await snapshot(root, None, home=path)
    mirror = await Mirror.open(path / "mirror")
    await mirror.import_base(base.commit, base.pack)
    commit = await mirror.commit_files(base.commit, {"new.py": b"x"}, message="land", author=ANDON, committer=ANDON, at=7)
    await deliver(root, "andon/new", commit, base.commit, await mirror.bundle_of(commit, base.commit))


@pytest.mark.abuse("G06")
async def test_a_repository_that_fetches_what_it_lacks_is_refused(tmp_path: Path):
    """A partial clone: nothing is asked of its remote. The control: plain git asks, and the remote is a program."""
    root, canary = a_repository(tmp_path), tmp_path / "canary"
    plants.promisor(root, canary)

    with pytest.raises(UsageError, match="partial clone"):
        await snapshot(root, None, home=tmp_path)

    assert not canary.exists()
    naive_host(root)
    assert canary.exists(), "the control"


@pytest.mark.abuse("G15")
async def test_a_repository_that_borrows_objects_asks_no_program_for_its_refs(tmp_path: Path):
    """A borrowed store is the user's own choice, and is read; the program named beside it is not run. The control: plain git runs it."""
    root, canary = a_repository(tmp_path), tmp_path / "canary"
    alternate_refs(root, canary)

    await a_feature_lands_in(root, tmp_path)

    assert not canary.exists()
    run_git(root, "rev-list", "--alternate-refs", "--count", "HEAD")
    assert canary.exists(), "the control"


@pytest.mark.abuse("G03")
async def test_a_persons_own_hooks_do_not_run_either(tmp_path: Path):
    """A delivery is no commit of theirs: `core.hooksPath` of the person's own configuration has no say. The control: a commit runs it."""
    root, home = a_repository(tmp_path), tmp_path / "home"
    home.mkdir()
    plant_hooks(home, tmp_path / "canary")
    (home / ".gitconfig").write_text(f"[core]\n\thooksPath = {home}/hooks\n[user]\n\tname = Ada\n\temail = a@b\n")

    base = await snapshot(root, None, home=home)
    mirror = await Mirror.open(tmp_path / "mirror")
    await mirror.import_base(base.commit, base.pack)
    commit = await mirror.commit_files(base.commit, {"new.py": b"x"}, message="land", author=ANDON, committer=ANDON, at=7)
    await deliver(root, "andon/new", commit, base.commit, await mirror.bundle_of(commit, base.commit))

    assert base.author_name == "Ada"
    assert not (tmp_path / "canary").exists()
    os.spawnve(
        os.P_WAIT,
        "/usr/bin/git",
        ["git", "-C", str(root), "commit", "-q", "--allow-empty", "-m", "x"],
        {"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )
    assert (tmp_path / "canary").exists(), "the control"
