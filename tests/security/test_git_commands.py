"""What the host lets git do: names are never options, and no command fetches what a tree asks for."""

import os
import re
from pathlib import Path

import pytest

from sandbox.contract.errors import GitError, UnsafePath, UsageError
from sandbox.contract.ids import parse_slug
from sandbox.git import ANDON, Git
from sandbox.mirror import Mirror, pack_of
from sandbox.workspace.provision import provision
from sandbox.workspace.seal import seal
from tests.fakes.repositories import run_git, sample_repository, write_files
from tests.security.git_plants import naive_git

OPTIONS = ["--output={victim}", "--upload-pack=touch {victim}", "-O{victim}", "--exec=touch {victim}", "HEAD --output={victim}", "-u"]


async def a_mirror(path: Path, kind: str = "plain") -> tuple[Mirror, str]:
    repository = sample_repository(path / "user", kind)
    base = run_git(repository, "rev-parse", "HEAD")
    mirror = await Mirror.open(path / "mirror")
    await mirror.import_base(base, pack_of(Git(repository / ".git"), base))
    return mirror, base


@pytest.mark.abuse("G10")
@pytest.mark.parametrize("template", OPTIONS)
async def test_a_name_that_looks_like_an_option_is_refused_where_a_commit_or_ref_belongs(tmp_path: Path, template: str):
    """By everything that is told one; nothing is written."""
    mirror, base = await a_mirror(tmp_path)
    name = template.format(victim=tmp_path / "victim")

    for call in (
        mirror.changes(name, base),
        mirror.changes(base, name),
        mirror.patch(base, name, 100),
        mirror.bundle_of(name, base),
        mirror.bundle_of(base, name),
        mirror.pack_of(name),
        mirror.inspect([name], lambda tree: tree),
        mirror.join(name, [base], at=0),
        mirror.commit_like(base, name, message="m", author=ANDON, committer=ANDON, at=0),
        mirror.read_ref(name),
        mirror.list_refs(name),
        mirror.update_ref(name, base, None),
        mirror.update_ref(f"refs/heads/{name}", base, None),
        mirror.update_ref("refs/heads/x", name, None),
        mirror.update_ref("refs/heads/x", base, name),
    ):
        with pytest.raises(GitError):
            await call

    assert not (tmp_path / "victim").exists()
    assert await mirror.list_refs("refs/heads") == {}


@pytest.mark.abuse("G10")
def test_control_a_name_is_an_option_for_plain_git(tmp_path: Path):
    """It writes a file of the attacker's choice, and runs a program."""
    repository = sample_repository(tmp_path / "user")

    naive_git(repository, "log", f"--output={tmp_path}/written")
    naive_git(repository, "ls-remote", f"--upload-pack=touch {tmp_path}/run;", ".")

    assert (tmp_path / "written").exists()
    assert (tmp_path / "run").exists()


@pytest.mark.abuse("G10", "A02")
@pytest.mark.parametrize(
    "text",
    [
        "-u",
        "--upload-pack=x",
        "../../x",
        "/etc/passwd",
        "a\n",
        "a\0b",
        "a" * 300,
        "",
        ".git",
        "a/b",
        "a.lock",
        "A",
        "é",
        "a-",
        "a b",
        "a@{1}",
        "*",
        ">",
    ],
)
def test_a_slug_is_a_few_plain_letters(text: str):
    """It becomes a branch, a path and a subject."""
    with pytest.raises(UsageError):
        parse_slug(text)


@pytest.mark.abuse("A02")
def test_control_a_naive_host_joins_and_matches_what_it_should_not(tmp_path: Path):
    """An absolute path wins over the directory it is joined to, and `$` matches before a last newline."""
    assert Path("/srv/features") / "/etc/passwd" == Path("/etc/passwd")
    assert re.match(r"^[a-z]+$", "a\n")


@pytest.mark.abuse("G10")
async def test_files_named_like_options_travel_as_files(tmp_path: Path):
    """Out to a workspace, edited, sealed, compared, joined."""
    mirror, base = await a_mirror(tmp_path, "odd_names")
    root = tmp_path / "workspace"
    root.mkdir()
    manifest = await provision(mirror, base, root, uid=os.geteuid(), gid=os.getegid())
    write_files(root, {"--output=x": b"edited", "-leading-dash": b"edited", "--upload-pack=y": b"new"})

    sealed = await seal(mirror, manifest, root, message="agent")

    assert sealed.commit
    assert [change.path for change in sealed.changes] == ["--output=x", "--upload-pack=y", "-leading-dash"]
    assert "--upload-pack=y" in await mirror.patch(base, sealed.commit, 10_000)
    joined = await mirror.join(base, [sealed.commit], at=0)
    assert [change.path for change in await mirror.changes(base, joined)] == ["--output=x", "--upload-pack=y", "-leading-dash"]
    with pytest.raises(UnsafePath):
        await mirror.commit_files(base, {"../x": b""}, message="m", author=ANDON, committer=ANDON, at=0)


@pytest.mark.abuse("G19")
@pytest.mark.parametrize(
    "verb",
    ["clone", "fetch", "pull", "push", "remote", "submodule", "checkout", "switch", "add", "status", "commit", "diff", "archive", "apply"],
)
def test_commands_that_fetch_or_touch_a_work_tree_are_not_ours(tmp_path: Path, verb: str):
    """So none of the faults of clones, submodules and git bundle addresses can be reached."""
    with pytest.raises(AssertionError, match="is not one of the commands the host may run"):
        Git(tmp_path).run(verb)


@pytest.mark.abuse("G19")
async def test_a_submodule_is_an_empty_directory(tmp_path: Path):
    """Its address is text to us; the control: a clone with submodules goes where `.gitmodules` leads."""
    other = sample_repository(tmp_path / "other")
    (tmp_path / "outer").mkdir()
    outer = tmp_path / "outer"
    run_git(outer, "init", "--quiet")
    run_git(outer, "submodule", "--quiet", "add", str(other), "library")
    run_git(outer, "commit", "--quiet", "-m", "x")
    base = run_git(outer, "rev-parse", "HEAD")
    mirror = await Mirror.open(tmp_path / "mirror")
    await mirror.import_base(base, pack_of(Git(outer / ".git"), base))
    root = tmp_path / "workspace"
    root.mkdir()

    await provision(mirror, base, root, uid=os.geteuid(), gid=os.getegid())

    assert list((root / "library").iterdir()) == []
    naive_git(tmp_path, "-c", "protocol.file.allow=always", "clone", "--quiet", "--recurse-submodules", str(outer), "clone")
    assert (tmp_path / "clone/library/README.md").exists(), "the control"
