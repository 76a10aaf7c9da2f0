"""What an agent can plant for a host that runs git: all of it stays inert (ABUSE G01-G09, G14, G16). Each has its control."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.contract.errors import RejectedTree
from sandbox.git import Git
from sandbox.mirror import Mirror, pack_of
from sandbox.workspace.provision import Manifest, provision
from sandbox.workspace.removal import remove_tree
from sandbox.workspace.seal import seal
from tests.fakes.repositories import plant_hooks, run_git, sample_repository, write_files


async def a_workspace(path: Path) -> tuple[Mirror, Manifest, Path]:
    repository = sample_repository(path / "user")
    base = run_git(repository, "rev-parse", "HEAD")
    mirror = await Mirror.open(path / "mirror")
    await mirror.import_base(base, pack_of(Git(repository / ".git"), base))
    root = path / "workspace"
    root.mkdir()
    manifest = await provision(mirror, base, root, uid=os.geteuid(), gid=os.getegid())
    # As the program in the container does (DECISIONS D17).
    run_git(root, "init", "-q")
    run_git(root, "add", "-A")
    run_git(root, "commit", "-q", "-m", "base")
    return mirror, manifest, root


def naive_host(root: Path) -> None:
    """Do what we never do: run porcelain in the tree."""
    for args in (["status"], ["add", "-A"], ["diff", "HEAD"], ["commit", "-q", "-m", "x"], ["checkout", "-q", "--", "."]):
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null"}
        identity = {f"GIT_{role}_{part}": "x" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        subprocess.run(["git", *args], cwd=root, env=environment | identity, capture_output=True, check=False, timeout=30)


def fsmonitor(root: Path, canary: Path) -> None:
    run_git(root, "config", "core.fsmonitor", f"touch {canary}; :")


def hooks(root: Path, canary: Path) -> None:
    plant_hooks(root / ".git", canary)


def hooks_path(root: Path, canary: Path) -> None:
    plant_hooks(root / "tools", canary)
    run_git(root, "config", "core.hooksPath", "tools/hooks")


def filters(root: Path, canary: Path) -> None:
    run_git(root, "config", "filter.x.clean", f"touch {canary}; cat")
    run_git(root, "config", "filter.x.smudge", f"touch {canary}; cat")
    write_files(root, {".gitattributes": b"*.py filter=x\n", "src/new.py": b"x\n"})


def diff_driver(root: Path, canary: Path) -> None:
    run_git(root, "config", "diff.external", f"touch {canary}; :")
    write_files(root, {"README.md": b"edited\n"})


def included_config(root: Path, canary: Path) -> None:
    write_files(root, {"tools/config": f'[core]\n\tfsmonitor = "touch {canary}; :"\n'.encode()})
    run_git(root, "config", "include.path", "../tools/config")


def git_file(root: Path, canary: Path) -> None:
    fsmonitor(root, canary)
    (root / ".git").rename(root / ".elsewhere")
    (root / ".git").write_text("gitdir: .elsewhere\n")


def common_dir(root: Path, canary: Path) -> None:
    fsmonitor(root, canary)
    (root / ".git").rename(root / ".elsewhere")
    write_files(root, {".git/HEAD": b"ref: refs/heads/main\n", ".git/commondir": b"../.elsewhere\n"})


@pytest.mark.parametrize("plant", [fsmonitor, hooks, hooks_path, filters, diff_driver, included_config, git_file, common_dir])
async def test_a_plant_that_runs_for_a_naive_host_does_not_run_for_us(tmp_path: Path, plant: Callable[[Path, Path], None]):
    """Sealing, bundling, comparing and removing execute nothing of it."""
    mirror, manifest, root = await a_workspace(tmp_path)
    plant(root, tmp_path / "canary")
    (tmp_path / "canary").unlink(missing_ok=True)
    write_files(root, {"src/result.py": b"x = 1\n"})

    # `.elsewhere` holds no `.git` name and is an ordinary directory of odd content: it may be refused or taken, not run.
    sealed = await seal(mirror, manifest, root, message="agent")
    assert sealed.commit
    await mirror.bundle_of(sealed.commit, manifest.commit)
    await mirror.patch(manifest.commit, sealed.commit, 100_000)
    assert not (tmp_path / "canary").exists()

    naive_host(root)
    assert (tmp_path / "canary").exists(), "the control: this plant is live"

    remove_tree(root)


async def test_an_embedded_repository_is_refused(tmp_path: Path):
    """Also when the agent's own index tracks it as a submodule."""
    mirror, manifest, root = await a_workspace(tmp_path)
    (root / "emb").mkdir()
    run_git(root / "emb", "init", "-q")

    with pytest.raises(RejectedTree, match=r"emb/\.git has a name that looks like \.git"):
        await seal(mirror, manifest, root, message="agent")


async def test_index_flags_and_ignore_files_hide_nothing(tmp_path: Path):
    """skip-worktree, assume-unchanged, a `.gitignore` of `*`, `info/exclude`: what is on disk is what is committed."""
    mirror, manifest, root = await a_workspace(tmp_path)
    run_git(root, "update-index", "--skip-worktree", "README.md")
    run_git(root, "update-index", "--assume-unchanged", "HISTORY")
    write_files(root, {".gitignore": b"*\n", ".git/info/exclude": b"*\n", "README.md": b"x", "HISTORY": b"y", "src/hidden.py": b"z"})
    assert run_git(root, "status", "--porcelain") == "M .gitignore"

    sealed = await seal(mirror, manifest, root, message="agent")

    assert [change.path for change in sealed.changes] == [".gitignore", "HISTORY", "README.md", "src/hidden.py"]


async def test_attributes_change_no_byte(tmp_path: Path):
    """ident, line endings, encodings, export-ignore: blob and file are equal."""
    mirror, manifest, root = await a_workspace(tmp_path)
    contents = {"a.txt": b"$Id$ one\r\ntwo\n", "b.utf16": "hé".encode("utf-16"), ".gitattributes": b"* text eol=lf ident export-ignore\n"}
    write_files(root, contents | {".gitattributes": contents[".gitattributes"] + b"*.utf16 working-tree-encoding=UTF-16\n"})

    sealed = await seal(mirror, manifest, root, message="agent")

    assert sealed.commit
    blobs = {change.path: change.new for change in sealed.changes}
    for name in ("a.txt", "b.utf16"):
        entry = blobs[name]
        assert entry
        assert mirror.git.run("cat-file", "blob", entry.sha) == contents[name]


async def test_a_work_tree_elsewhere_is_not_touched(tmp_path: Path):
    """`core.worktree` points a careless `clean`, `reset` or `add` at someone else's files."""
    mirror, manifest, root = await a_workspace(tmp_path)
    victim = tmp_path / "victim"
    write_files(victim, {"precious": b"p"})
    run_git(root, "config", "core.worktree", str(victim))

    sealed = await seal(mirror, manifest, root, message="agent")

    assert sealed.changes == ()
    assert (victim / "precious").read_bytes() == b"p"


async def test_a_file_that_is_swapped_for_a_link_while_we_read_is_not_followed(tmp_path: Path):
    """The container is dead by then; still, what is opened must be what was seen."""
    mirror, manifest, root = await a_workspace(tmp_path)
    (tmp_path / "secret").write_text("canary")
    (root / "src/app/core.py").unlink()
    (root / "src/app/core.py").symlink_to(tmp_path / "secret")

    with pytest.raises(RejectedTree, match="is a link to an absolute path"):
        await seal(mirror, manifest, root, message="agent")

    (root / "src/app/core.py").unlink()
    (root / "src/app").rename(root / "src/moved")
    (root / "src/app").symlink_to(tmp_path)
    with pytest.raises(RejectedTree, match="src/app is a link to an absolute path"):
        await seal(mirror, manifest, root, message="agent")
