"""The private repository in the workspace."""

import os
import subprocess
from pathlib import Path

from sandbox.inside import workspace_git
from sandbox.inside.paths import Paths, base_environment


def environment(tmp_path: Path) -> dict[str, str]:
    return {**base_environment(Paths.below(str(tmp_path))), "PATH": os.environ["PATH"]}


def git(workspace: Path, *args: str) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(["git", *args], cwd=workspace, env=env, check=True, capture_output=True, text=True).stdout


def test_the_base_is_one_commit_and_the_tree_is_clean(tmp_path: Path) -> None:
    """Ignored files that were provisioned are part of the base; git's commands then work as in any repository."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / ".gitignore").write_text("*.log\n")
    (workspace / "kept.log").write_text("in base\n")
    (workspace / "a.txt").write_text("one\r\n")

    said = workspace_git.begin(workspace, environment(tmp_path)).wait()

    assert said == "private git: ready"
    assert git(workspace, "log", "--format=%an %s %at").splitlines() == ["andon base 946684800"]
    assert git(workspace, "status", "--short") == ""
    assert git(workspace, "ls-files").split() == [".gitignore", "a.txt", "kept.log"]
    (workspace / "a.txt").write_text("two\r\n")
    assert "+two" in git(workspace, "diff")


def test_equal_trees_give_equal_commits(tmp_path: Path) -> None:
    """So that a replayed conversation reads the same `git log`."""
    heads = []
    for name in ("one", "two"):
        workspace = tmp_path / name
        workspace.mkdir()
        (workspace / "a").write_text("same")
        workspace_git.begin(workspace, environment(tmp_path)).wait()
        heads.append(git(workspace, "rev-parse", "HEAD"))

    assert heads[0] == heads[1]


def test_an_empty_workspace_is_a_repository_too(tmp_path: Path) -> None:
    """With an empty first commit."""
    workspace = tmp_path / "workspace"
    workspace.mkdir()

    assert workspace_git.begin(workspace, environment(tmp_path)).wait() == "private git: ready"
    assert git(workspace, "log", "--format=%s").strip() == "base"


def test_without_git_the_work_goes_on(tmp_path: Path) -> None:
    """It is said and stops nothing."""
    said = workspace_git.begin(tmp_path, {"PATH": "/nowhere"}).wait()

    assert said.startswith("private git: none")


def test_a_failing_git_is_said_with_its_words(tmp_path: Path) -> None:
    """The first command that fails ends the attempt at it."""
    (tmp_path / ".git").write_text("not a repository")

    said = workspace_git.begin(tmp_path, environment(tmp_path)).wait()

    assert said.startswith("private git: `git init` ended with")
