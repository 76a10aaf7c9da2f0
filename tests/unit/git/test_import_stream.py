"""New commits by a stream: what reaches the store, and that nothing does unless the commit was made."""

import os
import time
from pathlib import Path

import pytest

from sandbox.contract.errors import GitError
from sandbox.git import ANDON, Git, ImportStream, list_tree, objects_reader, remove_abandoned_imports
from sandbox.git.import_stream import ABANDONED_S, hand_over
from tests.fakes.repositories import run_git, sample_repository

LARGE = b"x" * 600_000
"""More than is kept back before git is started."""


def a_store(path: Path) -> tuple[Git, str]:
    repository = sample_repository(path)
    return Git(repository / ".git"), run_git(repository, "rev-parse", "HEAD")


def in_store(git: Git) -> set[str]:
    return {str(path.relative_to(git.git_dir)) for path in git.git_dir.rglob("*")}


def commit_of(stream: ImportStream, parent: str, files: dict[str, bytes]) -> str:
    written = [("100644", stream.blob(data), path) for path, data in files.items()]
    return stream.commit(parent=parent, deleted=[], written=written, message="m", author=ANDON, committer=ANDON, at=0)


@pytest.mark.parametrize("count", [3, 300], ids=["loose", "pack"])
def test_a_commit_is_the_store_s_with_all_its_files(tmp_path: Path, count: int):
    """Git leaves few objects loose and many in a pack; either way fsck is content and every byte is there."""
    git, parent = a_store(tmp_path)
    files = {f"many/{number}": b"%d " % number * 700 for number in range(count)} | {"large": LARGE, "empty": b""}

    with ImportStream(git) as stream:
        commit = commit_of(stream, parent, files)

    tree = list_tree(git, commit)
    with objects_reader(git) as reader:
        assert {path: reader.one(tree[path].sha) for path in files} == files
    assert run_git(git.git_dir, "fsck", "--strict", commit) == ""
    assert not list(git.git_dir.glob("objects/tmp_*"))


def test_the_same_commit_twice_is_one(tmp_path: Path):
    """What the store has already stays as it is."""
    git, parent = a_store(tmp_path)
    with ImportStream(git) as stream:
        first = commit_of(stream, parent, {"a": b"a"})
    before = {path: (git.git_dir / path).stat().st_ino for path in in_store(git)}

    with ImportStream(git) as stream:
        second = commit_of(stream, parent, {"a": b"a"})

    assert second == first
    assert {path: (git.git_dir / path).stat().st_ino for path in in_store(git)} == before


def test_what_the_store_has_is_not_replaced(tmp_path: Path):
    """By an object of the same name and other bytes, that is; new ones come beside it, in directories that are there and that are not."""
    store, made = tmp_path / "objects", tmp_path / "made"
    for name, data in {"objects/aa/1": b"old", "made/aa/1": b"forged", "made/aa/2": b"new", "made/pack/p.idx": b"i"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)

    hand_over(made, store)

    assert {str(path.relative_to(store)): path.read_bytes() for path in store.glob("*/*")} == {
        "aa/1": b"old",
        "aa/2": b"new",
        "pack/p.idx": b"i",
    }


def test_of_a_stream_without_a_commit_nothing_stays(tmp_path: Path):
    """Git has read a part of it by then and is killed; no object, no directory, no crash report is left."""
    git, _ = a_store(tmp_path)
    before = in_store(git)

    def broken_off() -> None:
        with ImportStream(git) as stream:
            stream.blob(LARGE)
            assert in_store(git) > before, "the control: git had been started"
            raise KeyError

    with pytest.raises(KeyError):
        broken_off()

    assert in_store(git) == before


def test_a_commit_git_refuses_reaches_no_store(tmp_path: Path):
    """The parent is not there: an error with git's words, and no object of it."""
    git, _ = a_store(tmp_path)
    before = in_store(git)

    with ImportStream(git) as stream, pytest.raises(GitError, match=r"git fast-import .*1111111"):
        commit_of(stream, "1" * 40, {"a": LARGE})

    assert {path for path in in_store(git) - before if not path.startswith("fast_import_crash_")} == set()


def test_a_git_that_is_not_done_in_time_is_an_error(tmp_path: Path):
    """The bound is on the whole of the stream, the caller's pauses included."""
    git, _ = a_store(tmp_path)

    def endless() -> None:
        with ImportStream(git, timeout_s=0.05) as stream:
            until = time.monotonic() + 20
            while time.monotonic() < until:
                stream.blob(LARGE)

    with pytest.raises(GitError, match=r"took longer than 0\.05 s"):
        endless()


def test_a_store_nobody_can_write_to_is_an_error_that_names_it(tmp_path: Path):
    """Not one of the tree that is imported."""
    with ImportStream(Git(tmp_path / "absent")) as stream, pytest.raises(GitError, match=r"nothing can be written to .*absent/objects"):
        stream.blob(LARGE)


@pytest.mark.parametrize(("age_s", "stays"), [(ABANDONED_S - 60, True), (ABANDONED_S + 60, False)])
def test_what_a_killed_import_left_goes_an_hour_later(tmp_path: Path, age_s: float, stays: bool):
    """Git's report of one that failed as well. Younger ones may belong to an import that runs."""
    left, report = tmp_path / "objects" / "tmp_objdir-andon-x", tmp_path / "fast_import_crash_1"
    (left / "pack").mkdir(parents=True)
    for path in (left / "pack" / "tmp_pack_1", report, tmp_path / "config"):
        path.write_bytes(b"x")
    for path in (left, report, tmp_path / "config"):
        os.utime(path, (time.time() - age_s,) * 2)

    remove_abandoned_imports(tmp_path)

    assert [path.exists() for path in (left, report, tmp_path / "config")] == [stays, stays, True]
