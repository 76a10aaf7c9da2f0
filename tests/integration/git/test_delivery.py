"""The user's repository, read and delivered to, in every shape; and nothing else in it touched."""

import asyncio
import hashlib
import os
import tempfile
from pathlib import Path

import pytest

from sandbox.contract.errors import ConflictError, GitError, RejectedBundle, UsageError
from sandbox.contract.tree_rules import TreeLimits
from sandbox.git import ANDON, Identity
from sandbox.mirror import Mirror
from sandbox.workspace.provision import provision
from sandbox.workspace.seal import seal
from supervisor.delivery import Snapshot, deliver, snapshot
from tests.fakes.repositories import KINDS, everything_in, plant_hooks, run_git, sample_repository, write_files

AUTHOR = Identity(name="Ada", email="ada@example.org")


async def landed(path: Path, base: Snapshot, files: dict[str, bytes | None]) -> tuple[str, bytes]:
    """Return a commit on the base, made in a mirror, and its git bundle."""
    mirror = await Mirror.open(path / "landing-mirror")
    await mirror.import_base(base.commit, base.pack)
    commit = await mirror.commit_files(base.commit, files, message="land", author=AUTHOR, committer=ANDON, at=7)
    return commit, await mirror.bundle_of(commit, base.commit)


def only_a_branch_was_added(before: dict[str, tuple[int, int, str]], after: dict[str, tuple[int, int, str]], branch: str) -> bool:
    """Return whether nothing changed but one loose ref, its directories, and one pack."""
    added = {path for path in after if path not in before}
    packs = {path for path in added if path.rpartition("/")[0].endswith("objects/pack")}
    refs = {path for path in added if "refs/heads/" in path and path.partition("refs/heads/")[2] in {branch, branch.partition("/")[0]}}
    kept = {path: seen for path, seen in after.items() if path not in added}
    return (
        kept == before and added == packs | refs and {Path(path).suffix for path in packs} <= {".pack", ".idx", ".rev"} and len(refs) == 2
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_a_feature_travels_from_the_repository_to_its_new_branch(tmp_path: Path, kind: str):
    """Snapshot, two mirrors, workspace, seal, quarantine, landing, delivery: only the edits arrive, only a branch is new."""
    repository = sample_repository(tmp_path / "user", kind)
    before = everything_in(tmp_path / "user")

    base = await snapshot(repository, None, home=tmp_path)
    mirror = await Mirror.open(tmp_path / "supervisor")
    await mirror.import_base(base.commit, base.pack)
    executor = await Mirror.open(tmp_path / "executor")
    await executor.import_base(base.commit, await mirror.pack_of(base.commit))
    (tmp_path / "workspace").mkdir()
    manifest = await provision(executor, base.commit, tmp_path / "workspace", uid=os.geteuid(), gid=os.getegid())
    write_files(tmp_path / "workspace", {"src/app/new.py": b"x\r\n", "README.md": b"edited"})
    (tmp_path / "workspace/src/app/new.py").chmod(0o755)
    (tmp_path / "workspace/HISTORY").unlink()
    sealed = await seal(executor, manifest, tmp_path / "workspace", message="transport")
    assert sealed.commit
    received = await mirror.receive(await executor.bundle_of(sealed.commit, base.commit), base.commit, TreeLimits())
    commit = await mirror.commit_like(received, base.commit, message="land", author=AUTHOR, committer=ANDON, at=7)
    await deliver(repository, "andon/new", commit, base.commit, await mirror.bundle_of(commit, base.commit))

    assert only_a_branch_was_added(before, everything_in(tmp_path / "user"), "andon/new")
    assert not (tmp_path / "user/hook-ran").exists()
    differing = run_git(repository, "diff", "--raw", "--no-renames", "--ignore-submodules=none", base.commit, "andon/new").splitlines()
    assert [(line.split()[1], line.split("\t")[1]) for line in differing] == [
        ("000000", "HISTORY"),
        ("100644", "README.md"),
        ("100755", "src/app/new.py"),
    ]
    assert run_git(repository, "rev-parse", "andon/new^") == base.commit
    assert run_git(repository, "fsck", "--strict", "--no-dangling", "andon/new") == ""
    assert not base.dirty


async def test_the_author_is_whom_git_itself_would_name(tmp_path: Path):
    """The repository's configuration first, then the person's own, else nobody."""
    repository = sample_repository(tmp_path / "user")
    (tmp_path / ".gitconfig").write_text("[user]\n\tname = Global\n\temail = g@example.org\n")

    from_repository = await snapshot(repository, None, home=tmp_path)
    run_git(repository, "config", "--unset", "user.name")
    mixed = await snapshot(repository, None, home=tmp_path)
    nobody = await snapshot(repository, None, home=tmp_path / "absent")

    assert (from_repository.author_name, from_repository.author_email) == ("Ref O'Sitory", "ref@example.org")
    assert (mixed.author_name, mixed.author_email) == ("Global", "ref@example.org")
    assert nobody.author_name == ""


async def test_a_base_may_be_named_as_git_names_revisions(tmp_path: Path):
    """Branches, tags, abbreviations, ancestors; from a directory within the work tree too."""
    repository = sample_repository(tmp_path)
    head = run_git(repository, "rev-parse", "HEAD")
    run_git(repository, "-c", "core.hooksPath=/dev/null", "tag", "-a", "v1", "-m", "annotated")

    for rev in ("main", "v1", head[:10], "HEAD^0"):
        found = await snapshot(repository, rev, home=tmp_path)
        assert (found.commit, found.base_name) == (head, rev)
    assert (await snapshot(repository / "src/app", None, home=tmp_path)).base_name == "main"
    assert (await snapshot(repository, "HEAD~1", home=tmp_path)).commit == run_git(repository, "rev-parse", "HEAD~1")
    run_git(repository, "-c", "core.hooksPath=/dev/null", "checkout", "-q", "--detach")
    assert (await snapshot(repository, None, home=tmp_path)).base_name == "HEAD"


async def test_what_the_base_says_about_itself_is_reported(tmp_path: Path):
    """Branches in our name space, the Dockerfile, LFS, submodules, what agents do not get."""
    repository = sample_repository(tmp_path, "everything")
    write_files(repository, {".andon/Dockerfile": b"FROM andon/agent\n", "assets/.gitattributes": b"*.png filter=lfs diff=lfs\n"})
    run_git(repository, "-c", "core.hooksPath=/dev/null", "add", ".andon", "assets")
    run_git(repository, "-c", "core.hooksPath=/dev/null", "commit", "-q", "-m", "more")
    for branch in ("andon/one", "andon/two/deep", "andonation", "other"):
        run_git(repository, "-c", "core.hooksPath=/dev/null", "branch", branch)

    found = await snapshot(repository, None, home=tmp_path)

    assert found.branches == ("andon/one", "andon/two/deep")
    assert found.dockerfile == b"FROM andon/agent\n"
    assert found.dockerfile_sha256 == hashlib.sha256(found.dockerfile).hexdigest()
    assert found.notices[0] == "files kept by Git LFS are pointers in the sandbox"
    assert found.notices[1] == "1 submodule(s) stay as they are and are empty in the sandbox: vendor/library"
    assert found.notices[2].startswith("10 file(s) stay as they are and are not given to agents: .env, .env.local, ")
    assert all(notice.isprintable() for notice in found.notices)


@pytest.mark.parametrize("how", ["edited", "same size", "deleted", "staged", "staged deletion", "link for file"])
async def test_uncommitted_changes_are_noticed_and_left_alone(tmp_path: Path, how: str):
    """In the index or on disk, with a filter and fsmonitor configured that would tell if they ran."""
    repository = sample_repository(tmp_path / "user")
    run_git(repository, "config", "filter.told.clean", f"touch {tmp_path}/filter-ran; cat")
    run_git(repository, "config", "core.fsmonitor", f"touch {tmp_path}/fsmonitor-ran; :")
    (repository / ".git/info/attributes").write_text("* filter=told\n")
    if how == "edited":
        (repository / "README.md").write_text("edited and longer")
    elif how == "same size":
        (repository / "README.md").write_text("# Simple\n"[:9])
    elif how in {"staged", "staged deletion"}:
        run_git(repository, "update-index", "--force-remove", "README.md")
        (repository / "README.md").unlink()
    elif how == "deleted":
        (repository / "README.md").unlink()
    else:
        (repository / "README.md").unlink()
        (repository / "README.md").symlink_to("HISTORY")
    for canary in (tmp_path / "user/hook-ran", tmp_path / "filter-ran", tmp_path / "fsmonitor-ran"):
        canary.unlink(missing_ok=True)
    before = everything_in(tmp_path / "user")

    found = await snapshot(repository, None, home=tmp_path)

    assert found.dirty
    assert found.notices == ("uncommitted changes are not part of the run; commit them first if they should be",)
    assert everything_in(tmp_path / "user") == before
    assert not (tmp_path / "filter-ran").exists()
    assert not (tmp_path / "fsmonitor-ran").exists()


async def test_a_touched_or_sparse_file_is_no_change(tmp_path: Path):
    """Equal content with another time; a file that is left out on purpose."""
    repository = sample_repository(tmp_path)
    (repository / "README.md").touch()
    run_git(repository, "-c", "core.hooksPath=/dev/null", "update-index", "--skip-worktree", "HISTORY")
    (repository / "HISTORY").unlink()
    write_files(repository, {"untracked": b"x"})

    assert not (await snapshot(repository, None, home=tmp_path)).dirty


async def test_what_is_no_usable_repository_is_a_usage_error(tmp_path: Path):
    """Exit 2, one line, what to do."""
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty").mkdir()
    run_git(tmp_path / "empty", "init", "-q")
    (tmp_path / "sha256").mkdir()
    run_git(tmp_path / "sha256", "init", "-q", "--object-format=sha256")
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling/.git").write_text("gitdir: /nowhere\n")
    repository = sample_repository(tmp_path / "user")
    partial = sample_repository(tmp_path / "partial")
    run_git(partial, "config", "remote.origin.promisor", "true")

    for path, rev, message in (
        (tmp_path / "absent", None, "is not a directory"),
        (tmp_path / "nothing", None, "is not a git repository"),
        (tmp_path / "empty", None, "has no commits on its current branch"),
        (tmp_path / "sha256", None, "is a sha256 repository; only SHA-1"),
        (tmp_path / "dangling", None, "which is not a git directory"),
        (repository, "nonsense", "has no commit 'nonsense'"),
        (repository, "--output=x", "has no commit '--output=x'"),
        (repository, "HEAD:README.md", "has no commit"),
        (partial, None, "is a partial clone"),
    ):
        with pytest.raises(UsageError, match=message):
            await snapshot(path, rev, home=tmp_path)
    assert not list(tmp_path.rglob("x"))


async def test_a_branch_is_delivered_once(tmp_path: Path):
    """The same again is nothing; another commit, or a name in the way, is a conflict and changes nothing."""
    repository = sample_repository(tmp_path / "user")
    base = await snapshot(repository, None, home=tmp_path)
    commit, bundle = await landed(tmp_path, base, {"a": b"1"})
    other, other_bundle = await landed(tmp_path, base, {"a": b"2"})

    await deliver(repository, "andon/x", commit, base.commit, bundle)
    before = everything_in(tmp_path / "user")
    await deliver(repository, "andon/x", commit, base.commit, bundle)
    with pytest.raises(ConflictError, match="exists already, at"):
        await deliver(repository, "andon/x", other, base.commit, other_bundle)
    assert everything_in(tmp_path / "user") == before
    with pytest.raises(ConflictError, match="in its way"):
        await deliver(repository, "andon/x/y", other, base.commit, other_bundle)
    with pytest.raises(GitError, match="is not a ref we touch"):
        await deliver(repository, "../x", other, base.commit, other_bundle)


async def test_two_deliveries_at_once_give_one_branch(tmp_path: Path):
    """Compare-and-swap decides."""
    repository = sample_repository(tmp_path / "user")
    base = await snapshot(repository, None, home=tmp_path)
    pairs = [await landed(tmp_path, base, {"a": b"%d" % number}) for number in range(3)]

    ends = await asyncio.gather(
        *(deliver(repository, "andon/x", commit, base.commit, bundle) for commit, bundle in pairs), return_exceptions=True
    )

    assert sorted(type(end).__name__ for end in ends) == ["ConflictError", "ConflictError", "NoneType"]


async def test_a_bundle_that_is_not_what_was_announced_changes_nothing(tmp_path: Path):
    """Another commit, a base that is gone, broken bytes."""
    repository = sample_repository(tmp_path / "user")
    base = await snapshot(repository, None, home=tmp_path)
    commit, bundle = await landed(tmp_path, base, {"a": b"1"})
    other, _ = await landed(tmp_path, base, {"a": b"2"})
    before = everything_in(tmp_path / "user")

    with pytest.raises(RejectedBundle, match="does not hold"):
        await deliver(repository, "andon/x", other, base.commit, bundle)
    with pytest.raises(RejectedBundle):
        await deliver(repository, "andon/x", commit, base.commit, bundle[:-20])
    with pytest.raises(ConflictError, match="no longer in"):
        await deliver(repository, "andon/x", commit, "1" * 40, bundle)

    assert everything_in(tmp_path / "user") == before


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="not run (needs root)")
@pytest.mark.parametrize("kind", ["plain", "linked_worktree", "bare"])
async def test_as_root_the_result_belongs_to_the_repository_s_owner(tmp_path_factory: pytest.TempPathFactory, kind: str):
    """So that the user's next `git gc` works; a path with a colon and quotes is a path."""
    top = tmp_path_factory.mktemp('odd: "path"')
    for directory in (top, *top.parents):  # the session's own directories are its user's alone
        if directory.is_relative_to(Path(tempfile.gettempdir())) and directory != Path(tempfile.gettempdir()):
            directory.chmod(0o755)
    repository = sample_repository(top / "user", kind)
    for path in (top / "user", *(top / "user").rglob("*")):
        os.chown(path, 64_321, 64_322, follow_symlinks=False)

    base = await snapshot(repository, None, home=top)
    commit, bundle = await landed(top, base, {"a": b"1"})
    await deliver(repository, "andon/x", commit, base.commit, bundle)

    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in (top / "user").rglob("*")}
    assert owners == {(64_321, 64_322)}


async def test_hooks_filters_and_drivers_of_the_repository_stay_silent(tmp_path: Path):
    """Reading and delivering run nothing of the user's, however it is configured."""
    repository = sample_repository(tmp_path / "user", "everything")
    canary = tmp_path / "canary"
    plant_hooks(tmp_path / "elsewhere-hooks", canary)
    for key, value in {
        "core.hooksPath": str(tmp_path / "elsewhere-hooks/hooks"),
        "core.fsmonitor": f"touch {canary}; :",
        "core.sshCommand": f"touch {canary}; :",
        "core.pager": f"touch {canary}; cat",
        "core.editor": f"touch {canary}; :",
        "core.alternateRefsCommand": f"touch {canary}; :",
        "diff.external": f"touch {canary}; :",
        "diff.told.textconv": f"touch {canary}; cat",
        "filter.rot13.clean": f"touch {canary}; cat",
        "filter.rot13.smudge": f"touch {canary}; cat",
        "gpg.program": f"touch {canary}; :",
        "commit.gpgSign": "true",
        "uploadpack.packObjectsHook": f"touch {canary}; :",
        "credential.helper": f"!touch {canary}; :",
        "alias.rev-parse": f"!touch {canary}; :",
        "core.logAllRefUpdates": "always",
        "gc.auto": "1",
        "receive.fsckObjects": "true",
    }.items():
        run_git(repository, "config", key, value)
    canary.unlink(missing_ok=True)
    before = everything_in(tmp_path / "user")

    base = await snapshot(repository, None, home=tmp_path)
    commit, bundle = await landed(tmp_path, base, {"binary.bin": b"$Id$\n"})
    await deliver(repository, "andon/x", commit, base.commit, bundle)

    assert not canary.exists()
    assert not (tmp_path / "user/hook-ran").exists()
    assert only_a_branch_was_added(before, everything_in(tmp_path / "user"), "andon/x")
