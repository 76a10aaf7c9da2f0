"""From a commit to a directory and back: everything a workspace can hold, and what becomes of it."""

import os
import socket
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.contract.errors import InfrastructureError, RejectedTree
from sandbox.contract.tree_rules import TreeLimits
from sandbox.git import Git, list_tree
from sandbox.mirror import Mirror, pack_of
from sandbox.workspace.provision import Manifest, provision
from sandbox.workspace.seal import Sealed, chunks, seal
from tests.fakes.repositories import SUBMODULE_COMMIT, run_git, sample_repository, write_files


class Bench:
    """A mirror with one base commit and a workspace made from it."""

    def __init__(self, mirror: Mirror, manifest: Manifest, root: Path, limits: TreeLimits) -> None:
        self.mirror, self.manifest, self.root, self.limits = mirror, manifest, root, limits

    @classmethod
    async def made(cls, path: Path, kind: str = "plain", limits: TreeLimits | None = None) -> "Bench":
        repository = sample_repository(path / "user", kind)
        base = run_git(repository, "rev-parse", "HEAD")
        mirror = await Mirror.open(path / "mirror")
        await mirror.import_base(base, pack_of(Git(repository / ".git"), base))
        (path / "workspace").mkdir()
        manifest = await provision(mirror, base, path / "workspace", uid=os.geteuid(), gid=os.getegid(), limits=limits)
        return cls(mirror, manifest, path / "workspace", limits or TreeLimits())

    async def seal(self) -> Sealed:
        return await seal(self.mirror, self.manifest, self.root, message="agent", limits=self.limits, at=1_700_000_000)

    async def refused(self) -> str:
        with pytest.raises(RejectedTree) as error:
            await self.seal()
        return str(error.value)

    async def changed(self) -> list[str]:
        return [change.path for change in (await self.seal()).changes]


async def test_a_workspace_holds_every_byte_and_exec_bit_and_no_git(tmp_path: Path):
    """No line ending, ident or filter is applied; withheld entries are absent and named."""
    bench = await Bench.made(tmp_path, "everything")

    assert (bench.root / "windows.txt").read_bytes() == b"one\r\ntwo\r\n"
    assert (bench.root / "mixed.txt").read_bytes() == b"one\r\ntwo\nthree\r"
    assert (bench.root / "binary.bin").read_bytes() == bytes(range(256))
    assert (bench.root / "run.sh").stat().st_mode & 0o7777 == 0o755
    assert (bench.root / "old-mode.txt").stat().st_mode & 0o7777 == 0o644
    assert (bench.root / "docs/dangling").readlink() == Path("nowhere/yet")
    assert (bench.root / "naïve/日本語.txt").read_bytes() == b"nihongo\n"
    assert (bench.root / ".env.example").exists()
    assert list((bench.root / "vendor/library").iterdir()) == []
    assert not (bench.root / ".git").exists()
    for absent in (".env", ".env.local", "absolute", "docs/escaping", "docs/winding", "new\nline.txt", "back\\slash.txt"):
        assert not (bench.root / absent).is_symlink()
        assert not (bench.root / absent).exists()
    assert bench.manifest.withheld_count == len(bench.manifest.withheld) == 11
    assert {entry.path: entry.reason for entry in bench.manifest.withheld}[".env"] == "is a .env file"


async def test_an_untouched_workspace_changes_nothing(tmp_path: Path):
    """Submodules, links, old modes, odd names: all of it is carried over."""
    bench = await Bench.made(tmp_path, "everything")

    sealed = await bench.seal()

    assert (sealed.commit, sealed.changes, sealed.dropped.count) == (None, (), 0)


async def test_edits_are_committed_and_everything_else_is_carried_over(tmp_path: Path):
    """The commit differs from its base in the edited paths and in nothing else."""
    bench = await Bench.made(tmp_path, "everything")
    (bench.root / "windows.txt").write_bytes(b"one\r\nthree\r\n")
    (bench.root / "src/app/new.py").write_text("x = 1\n")
    (bench.root / "docs/new").symlink_to("../README.md")
    (bench.root / "HISTORY").unlink()
    (bench.root / "README.md").chmod(0o755)
    (bench.root / "latest.md").unlink()
    (bench.root / "latest.md").write_text("a file now")

    sealed = await bench.seal()

    assert sealed.commit is not None
    assert [change.path for change in sealed.changes] == [
        "HISTORY", "README.md", "docs/new", "latest.md", "src/app/new.py", "windows.txt",
    ]  # fmt: skip
    before, after = list_tree(bench.mirror.git, bench.manifest.commit), list_tree(bench.mirror.git, sealed.commit)
    assert {path for path in before | after if before.get(path) != after.get(path)} == {change.path for change in sealed.changes}
    assert after["vendor/library"].sha == SUBMODULE_COMMIT
    assert (after["README.md"].mode, after["docs/new"].mode, after["latest.md"].mode) == ("100755", "120000", "100644")
    assert run_git(bench.mirror.path, "show", f"{sealed.commit}:windows.txt") == "one\r\nthree"
    assert (
        run_git(bench.mirror.path, "show", "-s", "--format=%an|%at|%P|%s", sealed.commit)
        == f"andon|1700000000|{bench.manifest.commit}|agent"
    )
    assert run_git(bench.mirror.path, "for-each-ref", "refs/andon/tmp") == ""


async def test_files_and_directories_may_take_each_other_s_place(tmp_path: Path):
    """A directory becomes a link, a file becomes a directory."""
    bench = await Bench.made(tmp_path)
    (bench.root / "README.md").unlink()
    write_files(bench.root, {"README.md/part": b"x"})
    (bench.root / "tests/test_core.py").unlink()
    (bench.root / "tests").rmdir()
    (bench.root / "tests").symlink_to("src")

    assert await bench.changed() == ["README.md", "README.md/part", "tests", "tests/test_core.py"]


async def test_the_agent_s_own_git_is_not_looked_at(tmp_path: Path):
    """Whatever `.git` in the root is: a directory full of traps, a file, a FIFO (DECISIONS D17)."""
    bench = await Bench.made(tmp_path)
    write_files(bench.root, {".git/config": b"[core]\n\tfsmonitor = touch /tmp/x\n", ".git/a/.git/HEAD": b"x"})
    os.mkfifo(bench.root / ".git/fifo")

    sealed = await bench.seal()

    assert (sealed.commit, sealed.dropped.count) == (None, 0)


async def test_litter_is_dropped_counted_and_named(tmp_path: Path):
    """The shipped list, the base's `.gitignore`, `.env` files; not judged, not walked, not committed."""
    bench = await Bench.made(tmp_path)
    write_files(
        bench.root,
        {
            "src/app/__pycache__/core.pyc": b"x",
            "node_modules/evil/.git/config": b"x",
            "debug.log": b"x",
            "build/deep/out": b"x",
            "src/build/kept": b"not the root's build",
            ".env": b"SECRET=1",
            "src/.gitignore": b"*\n",
        },
    )
    os.mkfifo(bench.root / "node_modules/fifo")

    sealed = await bench.seal()

    assert [change.path for change in sealed.changes] == ["src/.gitignore", "src/build/kept"]
    assert sealed.dropped.count == 5
    assert sealed.dropped.examples == (".env", "build/", "debug.log", "node_modules/", "src/app/__pycache__/")


async def test_files_of_the_base_are_never_litter(tmp_path: Path):
    """A committed file is the user's, whatever it is called; editing and deleting it count."""
    bench = await Bench.made(tmp_path, "odd_names")
    (bench.root / "kept.log").write_text("edited\n")

    assert await bench.changed() == ["kept.log"]

    (bench.root / "kept.log").unlink()

    assert await bench.changed() == ["kept.log"]


async def test_more_litter_than_is_named_is_still_counted(tmp_path: Path):
    """Twenty examples are enough."""
    bench = await Bench.made(tmp_path)
    write_files(bench.root, {f"{number}.pyc": b"" for number in range(30)})

    sealed = await bench.seal()

    assert (sealed.dropped.count, len(sealed.dropped.examples)) == (30, 20)


async def test_empty_directories_and_touched_files_are_no_change(tmp_path: Path):
    """Git keeps neither."""
    bench = await Bench.made(tmp_path)
    (bench.root / "empty/below").mkdir(parents=True)
    (bench.root / "README.md").touch()
    (bench.root / "README.md").chmod(0o600)

    assert await bench.changed() == []


def fifo(root: Path) -> None:
    os.mkfifo(root / "result.json")


def unix_socket(root: Path) -> None:
    here = Path.cwd()
    os.chdir(root)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
    finally:
        os.chdir(here)


def hard_link(root: Path) -> None:
    (root / "other").hardlink_to(root / "README.md")


def setuid(root: Path) -> None:
    write_files(root, {"tool": b"x"})
    (root / "tool").chmod(0o4755)


def sparse(root: Path) -> None:
    with (root / "huge").open("wb") as file:
        file.truncate(1 << 40)


def not_utf8(root: Path) -> None:
    with open(os.fsencode(root) + b"/caf\xe9", "wb"):  # noqa: PTH123
        pass


def deep(root: Path) -> None:
    write_files(root, {"/".join(["d"] * 64 + ["f"]): b""})


def deep_empty(root: Path) -> None:
    (root / "/".join(["d"] * 65)).mkdir(parents=True)


def long_path(root: Path) -> None:
    write_files(root, {"/".join(["n" * 200] * 6): b""})


def nested_repository(root: Path) -> None:
    write_files(root, {"emb/.git/config": b"[core]\n"})


def disguised_repository(root: Path) -> None:
    write_files(root, {"emb/.GIT/config": b"[core]\n"})


def root_repository_in_capitals(root: Path) -> None:
    write_files(root, {".Git/config": b"[core]\n"})


def absolute_link(root: Path) -> None:
    (root / "result.json").symlink_to("/etc/shadow")


def escaping_link(root: Path) -> None:
    (root / "src/up").symlink_to("../../outside")


def winding_link(root: Path) -> None:
    (root / "self").symlink_to(".")
    (root / "out").symlink_to("self/../etc")


def link_to_git(root: Path) -> None:
    (root / "hooks").symlink_to(".git/hooks")


def control_name(root: Path) -> None:
    write_files(root, {"a\x1b[2Jb": b""})


def newline_name(root: Path) -> None:
    write_files(root, {"a\nb": b""})


def bidi_name(root: Path) -> None:
    write_files(root, {"a\u202eb": b""})


def backslash_name(root: Path) -> None:
    write_files(root, {"a\\b": b""})


def case_collision(root: Path) -> None:
    write_files(root, {"readme.MD": b""})


def case_collision_of_directories(root: Path) -> None:
    write_files(root, {"SRC/other.py": b""})


def form_collision(root: Path) -> None:
    write_files(root, {unicodedata.normalize("NFC", "é.txt"): b"", unicodedata.normalize("NFD", "é.txt"): b""})


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (fifo, "result.json is a FIFO; only files, directories and links are taken"),
        (unix_socket, "socket is a socket; only"),
        (hard_link, "README.md has several names (hard links)"),
        (setuid, "tool has special permission bits (4755)"),
        (sparse, "huge has 1099511627776 bytes; at most 67108864"),
        (not_utf8, "'caf\\udce9' has a name that is not UTF-8"),
        (deep, "is 65 levels deep; at most 64"),
        (deep_empty, "is 65 levels deep; at most 64"),
        (long_path, "is longer than 1024 bytes"),
        (nested_repository, "emb/.git has a name that looks like .git"),
        (disguised_repository, "emb/.GIT has a name that looks like .git"),
        (root_repository_in_capitals, ".Git has a name that looks like .git"),
        (absolute_link, "result.json is a link to an absolute path"),
        (escaping_link, "src/up is a link that leaves the tree"),
        (winding_link, "out is a link that climbs in the middle"),
        (link_to_git, "hooks is a link to a name that looks like .git"),
        (control_name, "'a\\x1b[2Jb' has a name that holds a control"),
        (newline_name, "'a\\nb' has a name that holds a control"),
        (bidi_name, "'a\\u202eb' has a name that holds a control or invisible"),
        (backslash_name, "holds a slash or a backslash"),
        (case_collision, "README.md and readme.MD differ only in case"),
        (case_collision_of_directories, "SRC and src differ only in case"),
        (form_collision, "differ only in case or Unicode form"),
    ],
)
async def test_shapes_no_tree_may_hold_are_refused_with_a_reason(tmp_path: Path, plant: Callable[[Path], None], reason: str):
    """At once, and no commit is made."""
    bench = await Bench.made(tmp_path)
    plant(bench.root)
    started = time.monotonic()

    message = await bench.refused()

    assert reason in message
    assert message.isprintable()
    assert time.monotonic() - started < 5


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="not run (needs root)")
async def test_a_device_is_refused_and_not_opened(tmp_path: Path):
    """Reading /dev/zero would never end."""
    bench = await Bench.made(tmp_path)
    os.mknod(bench.root / "zero", 0o20666, os.makedev(1, 5))

    assert "zero is a device" in await bench.refused()


@pytest.mark.parametrize(
    ("limits", "files", "reason"),
    [
        (TreeLimits(entries_max=20), {f"{n}": b"" for n in range(20)}, "more than 20 files and directories"),
        (TreeLimits(changed_files_max=3), {f"{n}": b"" for n in range(4)}, "more than 3 changed files"),
        (TreeLimits(changed_bytes_max=10), {"a": b"x" * 6, "b": b"x" * 5}, "more than 10 bytes of changed files"),
        (TreeLimits(file_bytes_max=100), {"a": b"x" * 101}, "a has 101 bytes; at most 100"),
    ],
)
async def test_limits_hold_at_their_edge(tmp_path: Path, limits: TreeLimits, files: dict[str, bytes], reason: str):
    """One less is fine, one more is refused with the number."""
    bench = await Bench.made(tmp_path, limits=limits)
    write_files(bench.root, files)

    assert reason in await bench.refused()

    for name in sorted(files)[: 1 if len(files) < 5 else 9]:
        (bench.root / name).unlink()
    await bench.seal()


async def test_of_a_refused_tree_nothing_is_in_the_store(tmp_path: Path):
    """Git takes files in while the walk goes on; what is refused at the very end leaves no object behind."""
    bench = await Bench.made(tmp_path)
    write_files(bench.root, {f"new/{number}": os.urandom(10_000) for number in range(60)})
    before = set(bench.mirror.path.rglob("*"))
    os.mkfifo(bench.root / "zz")

    assert "zz is a FIFO" in await bench.refused()

    assert set(bench.mirror.path.rglob("*")) == before
    (bench.root / "zz").unlink()
    assert len(await bench.changed()) == 60
    assert set(bench.mirror.path.rglob("*")) > before


@pytest.mark.parametrize("extra_bytes", [-2, -1, 0, 1, 2])
async def test_files_as_long_as_one_reading_are_taken_whole(tmp_path: Path, extra_bytes: int):
    """New, changed at the same size, and unchanged."""
    bench = await Bench.made(tmp_path)
    data = os.urandom((1 << 20) + extra_bytes)
    write_files(bench.root, {"long": data, "README.md": (bench.root / "README.md").read_bytes()[::-1]})

    sealed = await bench.seal()

    assert [(change.path, change.new and change.new.size_bytes) for change in sealed.changes] == [
        ("README.md", (bench.root / "README.md").stat().st_size),
        ("long", len(data)),
    ]
    assert bench.mirror.git.run("cat-file", "blob", f"{sealed.commit}:long") == data
    assert bench.mirror.git.run("cat-file", "blob", f"{sealed.commit}:README.md") == (bench.root / "README.md").read_bytes()


@pytest.mark.parametrize("said_bytes", [9, 11, 3 << 20])
def test_a_file_that_grows_or_shrinks_while_it_is_read_is_refused(tmp_path: Path, said_bytes: int):
    """Nothing writes any more; whoever does all the same gains nothing."""
    (tmp_path / "file").write_bytes(b"x" * 10)
    with (tmp_path / "file").open("rb") as file, pytest.raises(RejectedTree, match="file changed while it was read"):
        list(chunks(file.fileno(), "file", said_bytes))
    with (tmp_path / "file").open("rb") as file:
        assert b"".join(chunks(file.fileno(), "file", 10)) == b"x" * 10


async def test_a_large_file_of_the_base_may_stay_and_not_change(tmp_path: Path):
    """It is compared in pieces; beyond the limit only its size or content is judged."""
    limits = TreeLimits(file_bytes_max=8)
    bench = await Bench.made(tmp_path, limits=limits)

    assert await bench.changed() == []

    (bench.root / "tests/test_core.py").write_bytes((bench.root / "tests/test_core.py").read_bytes().replace(b"42", b"43"))

    assert "tests/test_core.py has 75 bytes; at most 8" in await bench.refused()


async def test_what_was_withheld_cannot_be_replaced(tmp_path: Path):
    """Neither a submodule's files, nor a link, nor the directory something kept is in."""
    bench = await Bench.made(tmp_path, "everything")

    for path in ("vendor/library/lib.py", "absolute", "docs/escaping", "docs/escaping/below"):
        write_files(bench.root, {path: b"x"})
        message = await bench.refused()
        assert "of the base commit is, which was not given to the agent and is kept as it is" in message
        (bench.root / path).unlink()
        if path == "docs/escaping/below":
            (bench.root / "docs/escaping").rmdir()

    (bench.root / "vendor/library").rmdir()
    (bench.root / "vendor").rmdir()
    write_files(bench.root, {"vendor": b"a file"})
    assert "vendor is a file where vendor/library of the base commit is kept" in await bench.refused()


async def test_deleting_a_submodule_s_empty_directory_keeps_the_submodule(tmp_path: Path):
    """As with the rest that was withheld: absence on disk says nothing."""
    bench = await Bench.made(tmp_path, "submodule")
    (bench.root / "vendor/library").rmdir()

    assert await bench.changed() == []


async def test_an_env_file_the_agent_made_is_dropped_and_the_base_s_is_kept(tmp_path: Path):
    """The user's secrets are neither shown nor overwritten."""
    bench = await Bench.made(tmp_path, "odd_names")
    write_files(bench.root, {".env": b"SECRET=agent", "a.txt": b"x"})

    sealed = await bench.seal()

    assert sealed.commit is not None
    assert [change.path for change in sealed.changes] == ["a.txt"]
    assert sealed.dropped.examples == (".env",)
    assert run_git(bench.mirror.path, "show", f"{sealed.commit}:.env") == "SECRET=canary-7f3a"


async def test_names_that_collide_in_the_base_may_go_on_colliding(tmp_path: Path):
    """The base has `Case.txt` and `case.txt`: editing one is fine, adding a third is not."""
    bench = await Bench.made(tmp_path, "odd_names")
    write_files(bench.root, {"Case.txt": b"edited", "other.txt": b"new"})

    assert await bench.changed() == ["Case.txt", "other.txt"]

    write_files(bench.root, {"CASE.txt": b""})

    assert "CASE.txt and Case.txt differ only in case" in await bench.refused()


async def test_a_workspace_is_made_only_in_an_empty_directory(tmp_path: Path):
    """Never over something, never through a link."""
    bench = await Bench.made(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")

    for target, reason in (
        (bench.root, "is not empty"),
        (tmp_path / "link", "cannot be opened"),
        (tmp_path / "absent", "cannot be opened"),
    ):
        with pytest.raises(InfrastructureError, match=reason):
            await provision(bench.mirror, bench.manifest.commit, target, uid=os.geteuid(), gid=os.getegid())


async def test_the_same_workspace_gives_the_same_commit_after_a_restart(tmp_path: Path):
    """The manifest survives as JSON in the slot's lease file, so a crash loses nothing."""
    bench = await Bench.made(tmp_path, "everything")
    write_files(bench.root, {"a.txt": b"x"})
    first = await bench.seal()
    bench.manifest = Manifest.model_validate_json(bench.manifest.model_dump_json())

    assert await bench.seal() == first


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="not run (needs root)")
async def test_everything_belongs_to_the_slot_s_user(tmp_path: Path):
    """Files, links and directories; the root included."""
    bench = await Bench.made(tmp_path, "everything")
    (tmp_path / "other").mkdir()

    await provision(bench.mirror, bench.manifest.commit, tmp_path / "other", uid=200_001, gid=200_002)

    for path in (tmp_path / "other", *(tmp_path / "other").rglob("*")):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (200_001, 200_002)
