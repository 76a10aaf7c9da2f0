"""How git is run: environment, verbs, bounds, cancellation."""

import asyncio
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from sandbox.contract.errors import GitError
from sandbox.git import ANDON, Git, GitOutputTooLarge, Identity, ImportStream, in_thread, objects_reader, objects_stream, version
from tests.fakes.repositories import run_git, sample_repository


def a_git(tmp_path: Path) -> tuple[Git, str]:
    repository = sample_repository(tmp_path)
    return Git(repository / ".git"), run_git(repository, "rev-parse", "HEAD")


def test_the_environment_is_built_from_empty(tmp_path: Path):
    """Nothing of ours is inherited: not PATH, not GIT_*, not HOME."""
    names = set(Git(tmp_path).environment())

    assert names - {name for name in names if name.startswith("GIT_")} == {"PATH", "HOME", "LC_ALL", "MALLOC_TRIM_THRESHOLD_"}
    assert not {name for name in names if name in os.environ} - {"PATH", "HOME", "LC_ALL"}
    assert Git(tmp_path).environment()["GIT_ALLOW_PROTOCOL"] == ""


def test_a_verb_that_is_not_allowed_is_never_started(tmp_path: Path):
    """Porcelain, transports and writing forms of reading verbs are bugs of ours."""
    git = Git(tmp_path)

    for verb in ("status", "add", "checkout", "fetch", "push", "clone", "worktree", "gc", "-c"):
        with pytest.raises(AssertionError, match="not one of the commands"):
            git.run(verb)
    with pytest.raises(AssertionError, match="not one of the commands"):
        git.run("config", "core.hooksPath", "/tmp/x")
    with pytest.raises(AssertionError, match="not one of the commands"):
        git.run("symbolic-ref", "HEAD", "refs/heads/x")


def test_a_failure_says_what_git_said(tmp_path: Path):
    """The last lines, printable, bounded."""
    git, _ = a_git(tmp_path)

    with pytest.raises(GitError, match=r"git rev-parse failed \(128\): fatal: Needed a single revision"):
        git.run("rev-parse", "--verify", "--end-of-options", "nonsense")


def test_options_in_a_name_are_only_a_name(tmp_path: Path):
    """`--end-of-options` stands before everything that is not ours."""
    git, _ = a_git(tmp_path)
    target = tmp_path / "written"

    with pytest.raises(GitError):
        git.run("diff-tree", "--end-of-options", f"--output={target}", "HEAD")
    assert not target.exists()


def test_output_beyond_the_bound_is_an_error_or_is_cut(tmp_path: Path):
    """The command is ended in both cases."""
    git, commit = a_git(tmp_path)
    full = git.run("cat-file", "commit", commit)

    assert git.run("cat-file", "commit", commit, output_bytes_max=len(full)) == full
    with pytest.raises(GitOutputTooLarge, match="more than 10 bytes"):
        git.run("cat-file", "commit", commit, output_bytes_max=10)
    assert git.run("cat-file", "commit", commit, output_bytes_max=10, truncate=True) == full[:10]


def test_a_command_that_hangs_is_killed_at_its_deadline(tmp_path: Path):
    """`cat-file --batch` waits for input for ever."""
    git, _ = a_git(tmp_path)
    reading, writing = os.pipe()
    started = time.monotonic()

    with os.fdopen(reading, "rb") as silent, os.fdopen(writing, "wb"), pytest.raises(GitError, match="took longer than"):
        git.run("cat-file", "--batch", stdin=silent, timeout_s=0.2)
    assert time.monotonic() - started < 5


def test_a_stream_yields_many_objects_in_order_and_skips_what_nobody_took(tmp_path: Path):
    """Large and empty ones among them."""
    git, _ = a_git(tmp_path)
    contents = [b"", b"x" * 3_000_000, *(b"%d" % number for number in range(2_500))]
    shas = [git.run("fast-import", "--quiet", "--done", stdin=stream_of(data)).decode().strip() for data in contents[:2]]
    names = shas + [sha for sha in shas[:1] for _ in range(2_500)]

    with objects_stream(git, names) as objects:
        taken = {index: objects.read() for index, _ in enumerate(objects) if index in {1, 2_400}}

    assert taken == {1: contents[1], 2_400: b""}


def stream_of(data: bytes) -> bytes:
    return b"blob\nmark :1\ndata %d\n%s\nget-mark :1\ndone\n" % (len(data), data)


def test_a_missing_object_is_an_error(tmp_path: Path):
    """Not an empty file."""
    git, _ = a_git(tmp_path)

    with objects_reader(git) as reader, pytest.raises(GitError, match="is not in this repository"):
        reader.one("1" * 40)
    with objects_stream(git, ["1" * 40]) as objects, pytest.raises(GitError, match="is not in this repository"):
        list(objects)


def test_an_import_leaves_no_ref_and_keeps_modes_it_does_not_know(tmp_path: Path):
    """A file of mode 100664 is as it was, byte for byte in the tree object."""
    repository = sample_repository(tmp_path, "exec")
    git = Git(repository / ".git")
    parent = run_git(repository, "rev-parse", "HEAD")
    refs_before = run_git(repository, "for-each-ref")

    with ImportStream(git) as stream:
        written = [("100644", stream.blob(b"new"), 'quote"d \\ näme\n.txt')]
        commit = stream.commit(parent=parent, deleted=["HISTORY"], written=written, message="m\0", author=ANDON, committer=ANDON, at=0)

    raw = subprocess.run(["git", "cat-file", "tree", f"{commit}^{{tree}}"], cwd=repository, capture_output=True, check=True).stdout
    assert b"100664 old-mode.txt\0" in raw
    assert 'quote"d \\ näme\n.txt'.encode() in raw
    assert b"HISTORY" not in raw
    assert run_git(repository, "for-each-ref") == refs_before


def test_identities_fit_git_s_format():
    """Angle brackets, controls and emptiness are removed, other scripts stay."""
    assert Identity(name="Zoë <admin>\n", email="a@b>").name == "Zoë admin"
    assert Identity(name="  ", email="<>").email == "unknown"
    assert Identity(name="x" * 999, email="e").name == "x" * 200


def test_this_machine_s_git_is_recent_enough():
    """Otherwise every other test here is about something else."""
    assert version() >= (2, 39, 4)


async def test_a_cancelled_call_ends_only_when_its_thread_has():
    """So that clean-up never meets a thread that still writes."""
    started, go_on = threading.Event(), threading.Event()
    ended: list[str] = []

    def work() -> None:
        started.set()
        go_on.wait(10)
        ended.append("thread")

    task = asyncio.ensure_future(in_thread(work))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["thread"]
