"""A mirror over real git: bases in and out, trees, changes, commits, joins, refs."""

import asyncio
from pathlib import Path

import pytest

from sandbox.contract.errors import ConflictError, GitError, Rejected, UnsafePath
from sandbox.contract.tree import Change, Tree
from sandbox.contract.tree_rules import TreeLimits
from sandbox.git import ANDON, Git, Identity, list_tree
from sandbox.mirror import Mirror, pack_of
from tests.fakes.repositories import SUBMODULE_COMMIT, run_git, sample_repository

AUTHOR = Identity(name="Ada", email="ada@example.org")


class Bench:
    """A user's repository and a mirror that holds its HEAD."""

    def __init__(self, repository: Path, mirror: Mirror, base: str) -> None:
        self.repository, self.mirror, self.base = repository, mirror, base

    @classmethod
    async def made(cls, path: Path, kind: str = "plain") -> "Bench":
        repository = sample_repository(path, kind)
        mirror = await Mirror.open(path / "mirror")
        base = run_git(repository, "rev-parse", "HEAD")
        await mirror.import_base(base, pack_of(Git(repository / ".git"), base))
        return cls(repository, mirror, base)

    async def commit(self, files: dict[str, bytes | None], parent: str | None = None) -> str:
        return await self.mirror.commit_files(parent or self.base, files, message="edit", author=AUTHOR, committer=ANDON, at=7)

    def show(self, *args: str) -> str:
        return run_git(self.mirror.path, *args)


async def test_a_base_arrives_without_history_and_git_is_content(tmp_path: Path):
    """The mirror is a shallow repository that fsck accepts and that knows one commit."""
    bench = await Bench.made(tmp_path, "everything")

    assert bench.show("rev-list", "--count", bench.base) == "1"
    assert bench.show("fsck", "--strict") == ""
    assert await bench.mirror.read_ref(f"refs/andon/base/{bench.base}") == bench.base


async def test_importing_a_base_twice_or_from_many_at_once_is_one_import(tmp_path: Path):
    """Also after a crash between the pack and the ref."""
    bench = await Bench.made(tmp_path)
    pack = await bench.mirror.pack_of(bench.base)
    other = await Mirror.open(tmp_path / "other")

    await asyncio.gather(*(other.import_base(bench.base, pack) for _ in range(4)))
    run_git(other.path, "update-ref", "-d", f"refs/andon/base/{bench.base}")
    await other.import_base(bench.base, pack)

    assert (other.path / "shallow").read_text() == f"{bench.base}\n"
    assert await other.pack_of(bench.base)


async def test_a_pack_that_is_broken_or_another_s_is_refused(tmp_path: Path):
    """And the mirror can still take the right one."""
    bench = await Bench.made(tmp_path)
    pack = await bench.mirror.pack_of(bench.base)
    other = await Mirror.open(tmp_path / "other")

    with pytest.raises(GitError):
        await other.import_base(bench.base, pack[:-30])
    with pytest.raises(GitError, match="does not hold commit"):
        await other.import_base("1" * 40, pack)
    await other.import_base(bench.base, pack)
    with pytest.raises(GitError, match="not an object name"):
        await other.import_base("--help", pack)


async def test_a_tree_is_listed_and_read(tmp_path: Path):
    """Entries with modes and sizes; reading is bounded and only of regular files."""
    bench = await Bench.made(tmp_path, "everything")

    def look(tree: Tree) -> None:
        entries = tree.entries()
        assert tree.commit == bench.base
        assert entries["run.sh"].mode == "100755"
        assert entries["absolute"].mode == "120000"
        assert (entries["vendor/library"].sha, entries["vendor/library"].size_bytes) == (SUBMODULE_COMMIT, None)
        assert entries["latin-\udce9.txt"].size_bytes == 10
        assert tree.read("windows.txt") == b"one\r\ntwo\r\n"
        assert tree.read("empty") == b""
        assert tree.read("binary.bin") == bytes(range(256))
        for path in ("nowhere", "absolute", "vendor/library", "docs"):
            with pytest.raises(KeyError):
                tree.read(path)
        with pytest.raises(Rejected, match="256 bytes; at most 255"):
            tree.read("binary.bin", bytes_max=255)

    await bench.mirror.inspect([bench.base], look)


async def test_many_trees_are_compared_in_one_call(tmp_path: Path):
    """What `fn` returns comes back."""
    bench = await Bench.made(tmp_path)
    edited = await bench.commit({"README.md": b"new\n"})

    def differing(before: Tree, after: Tree) -> list[str]:
        return [path for path in after.entries() if before.read(path) != after.read(path)]

    assert await bench.mirror.inspect([bench.base, edited], differing) == ["README.md"]


async def test_changes_name_both_sides_of_everything(tmp_path: Path):
    """Modified, deleted, added; a rename is two changes; a submodule is never hidden."""
    bench = await Bench.made(tmp_path, "everything")
    edited = await bench.commit(
        {"README.md": b"new\n", "src/app/core.py": None, "src/app/kernel.py": b"def answer() -> int:\n    return 42\n"}
    )

    changes = {change.path: change for change in await bench.mirror.changes(bench.base, edited)}

    assert list(changes) == ["README.md", "src/app/core.py", "src/app/kernel.py"]
    sides = (changes["README.md"].old, changes["README.md"].new)
    assert [side.size_bytes for side in sides if side] == [9, 4]
    assert changes["src/app/core.py"].new is None
    assert changes["src/app/kernel.py"].old is None


async def test_a_moved_submodule_is_a_change(tmp_path: Path):
    """`diff.ignoreSubmodules` and `.gitmodules` have no say."""
    bench = await Bench.made(tmp_path, "submodule")
    stream = (
        f"commit refs/heads/x\nmark :1\ncommitter a <a@b> 0 +0000\ndata 0\nfrom {bench.base}\n"
        f"M 160000 {'2' * 40} vendor/library\n\nget-mark :1\ndone\n"
    )
    moved = run_git(bench.mirror.path, "fast-import", "--quiet", "--done", stdin=stream.encode())

    (change,) = await bench.mirror.changes(bench.base, moved)

    assert (change.path, change.old and change.old.mode, change.new and change.new.sha) == ("vendor/library", "160000", "2" * 40)


async def test_a_patch_is_text_and_bounded(tmp_path: Path):
    """Neither attributes nor a NUL hide a file's difference; a cut is said."""
    bench = await Bench.made(tmp_path)
    edited = await bench.commit({".gitattributes": b"* -diff\n", "a.txt": b"one\ntwo\n", "b.py": b"x = 1\0\n"})

    patch = await bench.mirror.patch(bench.base, edited, 100_000)
    cut = await bench.mirror.patch(bench.base, edited, 50)

    assert "+one\n+two\n" in patch
    assert "+x = 1\0\n" in patch
    assert cut.startswith(patch[:50])
    assert cut.endswith("longer than 50 bytes and was cut here]\n")


async def test_a_commit_like_another_has_its_tree_and_our_names(tmp_path: Path):
    """The same arguments give the same commit."""
    bench = await Bench.made(tmp_path)
    transport = await bench.commit({"a": b"1"})

    first = await bench.mirror.commit_like(
        transport, bench.base, message="feat: x\n\nAndon-Run: y", author=AUTHOR, committer=ANDON, at=1_700_000_000
    )
    second = await bench.mirror.commit_like(
        transport, bench.base, message="feat: x\n\nAndon-Run: y", author=AUTHOR, committer=ANDON, at=1_700_000_000
    )

    assert first == second != transport
    assert bench.show("show", "-s", "--format=%an %ae|%cn|%at %ct|%P|%B", first) == (
        f"Ada ada@example.org|andon|1700000000 1700000000|{bench.base}|feat: x\n\nAndon-Run: y"
    )
    assert bench.show("rev-parse", f"{first}^{{tree}}") == bench.show("rev-parse", f"{transport}^{{tree}}")


async def test_files_are_written_into_a_commit_with_the_modes_they_had(tmp_path: Path):
    """An exec bit stays, a file may become a directory, what is not there may be deleted."""
    bench = await Bench.made(tmp_path, "exec")

    commit = await bench.commit({"run.sh": b"#!/bin/sh\n", "README.md": None, "README.md/inside": b"x", "nowhere": None})

    entries = list_tree(bench.mirror.git, commit)
    assert entries["run.sh"].mode == "100755"
    assert entries["README.md/inside"].mode == "100644"
    assert "README.md" not in entries
    for path in ("../up", "/etc/x", ".git/config", "a/.GIT/x", ""):
        with pytest.raises(UnsafePath):
            await bench.commit({path: b""})


async def test_disjoint_changes_join_and_the_join_is_the_same_each_time(tmp_path: Path):
    """Additions, deletions and mode-preserving edits of both sides, on the base's untouched rest."""
    bench = await Bench.made(tmp_path, "everything")
    left = await bench.commit({"src/new.py": b"1", "README.md": None})
    right = await bench.commit({"tests/new.py": b"2", "same": b"3"})
    third = await bench.commit({"same": b"3"})

    joined = await bench.mirror.join(bench.base, [left, right, third], at=5)

    assert joined == await bench.mirror.join(bench.base, [left, right, third], at=5)
    paths = [change.path for change in await bench.mirror.changes(bench.base, joined)]
    assert paths == ["README.md", "same", "src/new.py", "tests/new.py"]
    assert bench.show("rev-parse", f"{joined}^") == bench.base


@pytest.mark.parametrize(
    ("left", "right", "named"),
    [
        ({"a": b"1"}, {"a": b"2"}, "a"),
        ({"README.md": None}, {"README.md": b"2"}, "README.md"),
        ({"d": b"1"}, {"d/x": b"2"}, "d/x"),
        ({"New.py": b"1"}, {"new.py": b"2"}, "New.py, new.py"),
    ],
)
async def test_changes_that_are_not_disjoint_do_not_join(
    tmp_path: Path, left: dict[str, bytes | None], right: dict[str, bytes | None], named: str
):
    """The paths are named."""
    bench = await Bench.made(tmp_path)

    with pytest.raises(ConflictError, match=f": {named}$"):
        await bench.mirror.join(bench.base, [await bench.commit(left), await bench.commit(right)], at=5)


async def test_a_file_a_sibling_replaced_by_a_directory_joins(tmp_path: Path):
    """One side's own deletion makes room for its own addition."""
    bench = await Bench.made(tmp_path)
    left = await bench.commit({"README.md": None, "README.md/part": b"x"})

    joined = await bench.mirror.join(bench.base, [left], at=5)

    assert "README.md/part" in list_tree(bench.mirror.git, joined)


async def test_a_ref_moves_only_from_where_it_is_thought_to_be(tmp_path: Path):
    """Compare-and-swap, creation included."""
    bench = await Bench.made(tmp_path)
    mirror, one, two = bench.mirror, bench.base, await bench.commit({"a": b"1"})

    await mirror.update_ref("refs/andon/salvage/x/1", one, None)
    with pytest.raises(ConflictError, match="not at nothing"):
        await mirror.update_ref("refs/andon/salvage/x/1", two, None)
    with pytest.raises(ConflictError, match="is at"):
        await mirror.update_ref("refs/andon/salvage/x/1", one, two)
    await mirror.update_ref("refs/andon/salvage/x/1", two, one)
    with pytest.raises(ConflictError, match="in its way"):
        await mirror.update_ref("refs/andon/salvage/x", one, None)

    assert await mirror.list_refs("refs/andon/salvage/") == {"refs/andon/salvage/x/1": two}
    assert await mirror.read_ref("refs/andon/salvage/x/1") == two
    assert await mirror.read_ref("refs/andon/none") is None
    assert not (mirror.path / "logs").exists()


@pytest.mark.parametrize(
    "ref",
    [
        "HEAD",
        "refs/tags/x",
        "refs/heads/../x",
        "refs/heads/a..b",
        "refs/heads/-x",
        "refs/heads/a b",
        "refs/heads/x.lock",
        "refs/heads/.x",
        "refs/heads/x/",
        "refs/heads//x",
        "refs/heads/x*",
        "refs/heads/a\n",
        "refs/heads/a@{1}",
        "refs/andon/" + "x" * 300,
        "refs/heads/a/x.lock/b",
    ],
)
async def test_refs_that_are_not_ours_are_not_touched(tmp_path: Path, ref: str):
    """A closed set of places, and git's own rules for names."""
    mirror = await Mirror.open(tmp_path / "mirror")

    with pytest.raises(GitError, match="is not a ref we touch"):
        await mirror.update_ref(ref, "1" * 40, None)


@pytest.mark.parametrize(
    "ref", ["refs/heads/andon/add-x", "refs/heads/feature/#12", "refs/heads/größe", "refs/andon/base/a.b", "refs/heads/v1.2"]
)
async def test_ordinary_refs_are(tmp_path: Path, ref: str):
    """A blueprint's branch may have any name git allows."""
    bench = await Bench.made(tmp_path)

    await bench.mirror.update_ref(ref, bench.base, None)

    assert await bench.mirror.read_ref(ref) == bench.base


async def test_a_result_travels_between_mirrors(tmp_path: Path):
    """Bundle out, quarantine in: the same commit, also when it is a thin pack."""
    bench = await Bench.made(tmp_path, "everything")
    large = b"".join(b"line %d\n" % number for number in range(5_000))
    base = await bench.commit({"large.txt": large})
    executor = await Mirror.open(tmp_path / "executor")
    await executor.import_base(base, await bench.mirror.pack_of(base))
    result = await executor.commit_files(base, {"large.txt": large + b"one more\n"}, message="m", author=ANDON, committer=ANDON, at=1)
    bundle = await executor.bundle_of(result, base)

    assert len(bundle) < 2_000
    assert await bench.mirror.receive(bundle, base, TreeLimits()) == result
    assert await bench.mirror.receive(bundle, base, TreeLimits()) == result
    assert [change.path for change in await bench.mirror.changes(base, result)] == ["large.txt"]
    assert isinstance((await bench.mirror.changes(base, result))[0], Change)
