"""What an agent can plant for a host that runs git: all of it stays inert. Each attack is first seen to work on plain git."""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox.contract.errors import RejectedTree
from sandbox.git import Git
from sandbox.mirror import Mirror, pack_of
from sandbox.workspace.provision import Manifest, provision
from sandbox.workspace.removal import remove_tree
from sandbox.workspace.seal import Sealed, seal
from tests.fakes.repositories import everything_in, run_git, sample_repository, write_files
from tests.security import git_plants as plants
from tests.security.git_plants import Plant, behind_a_file, naive_git, naive_host

Bench = tuple[Mirror, Manifest, Path]


async def a_workspace(path: Path, kind: str = "plain") -> Bench:
    """Return a mirror, what was provisioned, and the workspace with the repository the program inside makes (DECISIONS D17)."""
    repository = sample_repository(path / "user", kind)
    base = run_git(repository, "rev-parse", "HEAD")
    mirror = await Mirror.open(path / "mirror")
    await mirror.import_base(base, pack_of(Git(repository / ".git"), base))
    root = path / "workspace"
    root.mkdir()
    manifest = await provision(mirror, base, root, uid=os.geteuid(), gid=os.getegid())
    run_git(root, "init", "-q")
    run_git(root, "add", "-A")
    run_git(root, "commit", "-q", "-m", "base")
    return mirror, manifest, root


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return a workspace to copy: making one takes ten times as long."""
    return asyncio.run(a_workspace(tmp_path_factory.mktemp("template")))


@pytest.fixture
def bench(template: Bench, tmp_path: Path) -> Bench:
    mirror, manifest, root = template
    shutil.copytree(root, tmp_path / "workspace", symlinks=True)
    return mirror, manifest, tmp_path / "workspace"


async def handled_by_us(bench: Bench) -> Sealed:
    """Do everything the host does with a workspace: seal, bundle, compare."""
    mirror, manifest, root = bench
    sealed = await seal(mirror, manifest, root, message="agent", at=1_700_000_000)
    if sealed.commit:
        await mirror.bundle_of(sealed.commit, manifest.commit)
        await mirror.patch(manifest.commit, sealed.commit, 100_000)
    return sealed


def is_live(root: Path, canary: Path) -> bool:
    """Return whether a host that trusts the tree runs what is planted in it."""
    canary.unlink(missing_ok=True)
    naive_host(root)
    return canary.exists()


@pytest.mark.parametrize("behind", [False, True], ids=["in a directory", "behind a file"])
@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(plants.fsmonitor, marks=pytest.mark.abuse("G01", "G02")),
        pytest.param(plants.signing_program, marks=pytest.mark.abuse("G01")),
        pytest.param(plants.diff_program, marks=pytest.mark.abuse("G01")),
        pytest.param(plants.hooks, marks=pytest.mark.abuse("G03")),
        pytest.param(plants.hooks_path, marks=pytest.mark.abuse("G03")),
        pytest.param(plants.reference_hook, marks=pytest.mark.abuse("G03")),
        pytest.param(plants.filters, marks=pytest.mark.abuse("G04")),
        pytest.param(plants.filter_process, marks=pytest.mark.abuse("G04")),
        pytest.param(plants.diff_driver, marks=pytest.mark.abuse("G04")),
        pytest.param(plants.text_conversion, marks=pytest.mark.abuse("G04")),
        pytest.param(plants.promisor, marks=pytest.mark.abuse("G06")),
        pytest.param(plants.included_config, marks=pytest.mark.abuse("G09")),
        pytest.param(plants.conditional_config, marks=pytest.mark.abuse("G09")),
        pytest.param(plants.worktree_config, marks=pytest.mark.abuse("G09")),
    ],
)
async def test_a_plant_that_runs_for_a_naive_host_does_not_run_for_us(bench: Bench, tmp_path: Path, plant: Plant, behind: bool):
    """Sealing, bundling, comparing and removing execute nothing of it; the control: plain git does."""
    root, canary = bench[2], tmp_path / "canary"
    plant(root, canary)
    if behind:
        behind_a_file(root)
    canary.unlink(missing_ok=True)
    write_files(root, {"src/result.py": b"x = 1\n"})

    # What lies elsewhere holds no `.git` name: an ordinary directory of odd content, which may be committed, not run.
    sealed = await handled_by_us(bench)

    assert "src/result.py" in {change.path for change in sealed.changes}
    assert not canary.exists()
    assert is_live(root, canary), "the control: this plant is live"
    canary.unlink()
    remove_tree(root)
    assert not canary.exists()


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(plants.common_dir, marks=pytest.mark.abuse("G09")),
        pytest.param(plants.transport, marks=pytest.mark.abuse("G06")),
        pytest.param(plants.remote_program, marks=pytest.mark.abuse("G06")),
    ],
)
async def test_a_plant_with_a_place_of_its_own_does_not_run_for_us_either(bench: Bench, tmp_path: Path, plant: Plant):
    """A redirected common directory, and remotes that are programs; the control: plain git runs them."""
    root, canary = bench[2], tmp_path / "canary"
    plant(root, canary)
    canary.unlink(missing_ok=True)

    await handled_by_us(bench)

    assert not canary.exists()
    assert is_live(root, canary), "the control: this plant is live"


@pytest.mark.abuse("G05")
async def test_an_embedded_repository_is_refused(bench: Bench, tmp_path: Path):
    """Also when the agent's own index tracks it as a submodule; the control: plain git in the outer tree runs its monitor."""
    root, canary = bench[2], tmp_path / "canary"
    plants.embedded(root, canary)
    canary.unlink(missing_ok=True)

    with pytest.raises(RejectedTree, match=r"emb/\.git has a name that looks like \.git"):
        await handled_by_us(bench)

    assert not canary.exists()
    assert is_live(root, canary), "the control: this plant is live"


@pytest.mark.abuse("G07")
async def test_an_index_cannot_write_outside_the_tree(bench: Bench, tmp_path: Path):
    """The agent's index is never read; the control: a checkout by it writes the file."""
    root, victim = bench[2], tmp_path / "victim"
    victim.mkdir()
    plants.index_that_leaves(root, "../victim/planted")

    sealed = await handled_by_us(bench)

    assert sealed.changes == ()
    assert list(victim.iterdir()) == []
    naive_git(root, "checkout-index", "-a", "-f")
    assert [path.name for path in victim.iterdir()] == ["planted"], "the control"


@pytest.mark.abuse("G08")
async def test_a_work_tree_elsewhere_is_not_touched(bench: Bench, tmp_path: Path):
    """`core.worktree` points a careless host at someone else's files; the control: `git clean` deletes them."""
    root, victim = bench[2], tmp_path / "victim"
    write_files(victim, {"precious": b"p"})
    run_git(root, "config", "core.worktree", str(victim))

    sealed = await handled_by_us(bench)
    assert sealed.changes == ()
    assert (victim / "precious").read_bytes() == b"p"

    naive_git(root, "clean", "-fdx")
    assert not (victim / "precious").exists(), "the control"


@pytest.mark.abuse("G11")
async def test_a_workspace_shares_no_inode_with_the_store(template: Bench, tmp_path: Path):
    """Writing to every file of a workspace leaves the store whole; the control: a clone by path shares its objects with the source."""
    mirror, manifest, _ = template
    root = tmp_path / "workspace"
    root.mkdir()
    await provision(mirror, manifest.commit, root, uid=os.geteuid(), gid=os.getegid())
    before = everything_in(mirror.path)

    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in files:
        path.write_bytes(b"overwritten")

    assert {path.stat().st_nlink for path in files} == {1}
    assert everything_in(mirror.path) == before
    source = sample_repository(tmp_path / "source")
    naive_git(tmp_path, "-c", "safe.directory=*", "clone", "--quiet", str(source), "clone")
    shared = [path for path in (tmp_path / "clone/.git/objects").rglob("*") if path.is_file() and path.stat().st_nlink > 1]
    assert shared, "the control"
    shared[0].chmod(0o644)
    shared[0].write_bytes(b"overwritten")
    assert b"corrupt" in subprocess_output(source, "fsck", "--full")


@pytest.mark.abuse("G14")
async def test_index_flags_and_ignore_files_hide_nothing(bench: Bench):
    """skip-worktree, assume-unchanged, a `.gitignore` of `*`, `info/exclude`: what is on disk is what is committed."""
    root = bench[2]
    run_git(root, "update-index", "--skip-worktree", "README.md")
    run_git(root, "update-index", "--assume-unchanged", "HISTORY")
    write_files(root, {".gitignore": b"*\n", ".git/info/exclude": b"*\n", "README.md": b"x", "HISTORY": b"y", "src/hidden.py": b"z"})
    assert run_git(root, "status", "--porcelain") == "M .gitignore", "the control"

    sealed = await handled_by_us(bench)

    assert [change.path for change in sealed.changes] == [".gitignore", "HISTORY", "README.md", "src/hidden.py"]


@pytest.mark.abuse("G15")
async def test_borrowed_objects_are_not_borrowed_by_us(bench: Bench, tmp_path: Path):
    """The agent's `alternates` name another repository; the control: a fetch from the workspace brings its secret along."""
    mirror, manifest, root = bench
    other = sample_repository(tmp_path / "other")
    secret = run_git(other, "hash-object", "-w", "--stdin", stdin=b"canary-51c2")
    write_files(root, {".git/objects/info/alternates": f"{other}/.git/objects\n".encode(), "README.md": b"edited"})
    tree = run_git(root, "mktree", stdin=f"100644 blob {secret}\tstolen\n".encode())
    run_git(root, "update-ref", "refs/heads/stolen", run_git(root, "commit-tree", tree, "-m", "x"))

    sealed = await handled_by_us(bench)

    assert sealed.commit
    names = mirror.git.text("rev-list", "--objects", "--end-of-options", sealed.commit, f"^{manifest.commit}")
    assert secret not in names
    assert secret not in mirror.git.text("cat-file", "--batch-all-objects", "--batch-check")
    receiver = sample_repository(tmp_path / "receiver")
    run_git(receiver, "fetch", "--quiet", str(root), "refs/heads/stolen")
    assert run_git(receiver, "cat-file", "blob", secret) == "canary-51c2", "the control"


@pytest.mark.abuse("G16")
async def test_attributes_change_no_byte(bench: Bench):
    """ident, line endings, encodings, export-ignore: blob and file are equal; the control: plain git stores other bytes."""
    mirror, _, root = bench
    contents = {"a.txt": b"$Id$ one\r\ntwo\n", "b.utf16": "hé".encode("utf-16")}
    attributes = b"* text eol=lf ident export-ignore\n*.utf16 working-tree-encoding=UTF-16\n"
    write_files(root, contents | {".gitattributes": attributes})

    sealed = await handled_by_us(bench)

    assert sealed.commit
    for name in contents:
        assert mirror.git.run("cat-file", "blob", f"{sealed.commit}:{name}") == contents[name]
    run_git(root, "add", "-A")
    stored = {name: naive_git(root, "cat-file", "blob", f":{name}") for name in contents}
    assert all(stored[name] != contents[name] for name in contents), "the control"


@pytest.mark.abuse("G18")
async def test_a_workspace_that_git_cannot_remove_is_removed(bench: Bench, tmp_path: Path):
    """Its `.git` was rewritten; the control: `git worktree remove --force` refuses such a tree."""
    root = bench[2]
    plants.git_file(root, tmp_path / "canary")

    remove_tree(root)

    assert not root.exists()
    repository = sample_repository(tmp_path / "repository")
    run_git(repository, "worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"))
    (tmp_path / "linked/.git").write_text("gitdir: .elsewhere\n")
    naive_git(repository, "worktree", "remove", "--force", str(tmp_path / "linked"))
    assert (tmp_path / "linked/README.md").exists(), "the control"


@pytest.mark.abuse("G20")
async def test_nobody_signs_for_another(bench: Bench):
    """The agent commits as somebody else; ours is made by us, from the files. The control: its own history says what it likes."""
    mirror, manifest, root = bench
    write_files(root, {"README.md": b"edited"})
    run_git(root, "add", "-A")
    run_git(root, "-c", "user.name=x", "commit", "--quiet", "--author=The Chief <chief@example.org>", "--date=1999-01-01", "-m", "approved")
    assert run_git(root, "show", "-s", "--format=%an|%ad", "--date=short", "HEAD") == "The Chief|1999-01-01", "the control"

    sealed = await handled_by_us(bench)

    assert sealed.commit
    shown = run_git(mirror.path, "show", "-s", "--format=%an|%cn|%at|%P|%s", sealed.commit)
    assert shown == f"andon|andon|1700000000|{manifest.commit}|agent"


@pytest.mark.abuse("S18")
async def test_a_review_shows_what_attributes_hide(bench: Bench):
    """`-diff`, `export-ignore` and a NUL byte take a file out of what a person is shown; the control: plain git shows none of it."""
    mirror, manifest, root = bench
    write_files(root, {".gitattributes": b"*.py -diff export-ignore\n", "src/hidden.py": b"payload = 1\n", "run.sh": b"payload 2\n\0"})

    sealed = await handled_by_us(bench)

    assert sealed.commit
    shown = await mirror.patch(manifest.commit, sealed.commit, 100_000)
    assert "+payload = 1" in shown
    assert "+payload 2" in shown
    run_git(root, "add", "-A")
    run_git(root, "commit", "--quiet", "-m", "x")
    assert b"payload" not in naive_git(root, "show", "HEAD"), "the control"
    assert b"hidden.py" not in naive_git(root, "archive", "HEAD"), "the control"


def subprocess_output(root: Path, *args: str) -> bytes:
    """Return what git says on either stream."""
    done = subprocess.run(["git", *args], cwd=root, env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}, capture_output=True, check=False)
    return done.stdout + done.stderr
