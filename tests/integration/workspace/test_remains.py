"""What is kept of a tree that was refused: every changed byte that can be read within the bound, and a word about the rest."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from sandbox.contract.errors import RejectedTree
from sandbox.git import Git
from sandbox.mirror import Mirror, pack_of
from sandbox.workspace.provision import Manifest, provision
from sandbox.workspace.remains import Remains, remains_of
from sandbox.workspace.seal import seal
from tests.fakes.repositories import run_git, sample_repository


class Bench:
    def __init__(self, mirror: Mirror, manifest: Manifest, root: Path) -> None:
        self.mirror, self.manifest, self.root = mirror, manifest, root

    async def remains(self, **options: int) -> Remains:
        return await remains_of(self.mirror, self.manifest, self.root, **options)

    async def is_refused(self) -> bool:
        try:
            await seal(self.mirror, self.manifest, self.root, message="x")
        except RejectedTree:
            return True
        return False


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    repository = sample_repository(tmp_path / "user", "plain")
    base = run_git(repository, "rev-parse", "HEAD")
    mirror = await Mirror.open(tmp_path / "mirror")
    await mirror.import_base(base, pack_of(Git(repository / ".git"), base))
    (tmp_path / "workspace").mkdir()
    manifest = await provision(mirror, base, tmp_path / "workspace", uid=os.geteuid(), gid=os.getegid())
    return Bench(mirror, manifest, tmp_path / "workspace")


def contents(remains: Remains) -> dict[str, bytes | str]:
    """Return path to bytes, or to a link's target."""
    found: dict[str, bytes | str] = {}
    with tarfile.open(fileobj=io.BytesIO(remains.archive)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            found[member.name] = file.read() if file else member.linkname
    return found


async def test_what_was_changed_is_kept_and_what_is_as_it_was_is_not(bench: Bench):
    """A new file, a changed one, a link; the rest is in the base commit."""
    (bench.root / "new.txt").write_bytes(b"new\n")
    (bench.root / "README.md").write_bytes(b"changed\n")
    (bench.root / "link").symlink_to("../../outside")

    remains = await bench.remains()

    assert contents(remains) == {"new.txt": b"new\n", "README.md": b"changed\n", "link": "../../outside"}
    assert remains.left_out == []


async def test_an_untouched_workspace_leaves_no_archive(bench: Bench):
    """Nothing is as good as nothing."""
    assert (await bench.remains()).archive == b""


async def test_every_shape_that_is_refused_leaves_the_others_kept(bench: Bench):
    """A pipe, a hard link, a `.GIT`, a name that is no UTF-8, a file nobody may read: one of them must not cost the work beside it."""
    (bench.root / "work.py").write_bytes(b"print()\n")
    os.mkfifo(bench.root / "pipe")
    os.link(bench.root / "work.py", bench.root / "twin.py")
    (bench.root / ".GIT").mkdir()
    (bench.root / ".GIT" / "config").write_bytes(b"[core]\n")
    (bench.root / os.fsdecode(b"\xff.txt")).write_bytes(b"odd\n")
    (bench.root / ".git").mkdir()
    (bench.root / ".git" / "secret").write_bytes(b"the agent's own")
    assert await bench.is_refused()

    remains = await bench.remains()

    kept = contents(remains)
    assert (kept["work.py"], kept["twin.py"], kept[".GIT/config"]) == (b"print()\n", b"print()\n", b"[core]\n")
    assert b"odd\n" in kept.values()
    assert not any(name.startswith(".git/") for name in kept)
    assert len(remains.left_out) == 1
    assert "pipe" in remains.left_out[0]


@pytest.mark.parametrize(("size_bytes", "is_kept"), [(1_000, True), (1_001, False)])
async def test_what_does_not_fit_is_left_out_and_said(bench: Bench, size_bytes: int, is_kept: bool):
    """The bound is of all contents together; smaller files after it still fit."""
    (bench.root / "a-large").write_bytes(bytes(size_bytes))
    (bench.root / "b-small").write_bytes(b"x" * (0 if is_kept else 10))

    remains = await bench.remains(bytes_max=1_000)

    assert ("a-large" in contents(remains)) is is_kept
    assert "b-small" in contents(remains)
    assert (remains.left_out == []) is is_kept


async def test_many_that_are_left_out_are_counted(bench: Bench):
    """Twenty names and a number."""
    for number in range(25):
        os.mkfifo(bench.root / f"pipe-{number:02}")

    left_out = (await bench.remains()).left_out

    assert len(left_out) == 21
    assert left_out[-1] == "and 5 more"


async def test_a_link_to_a_directory_is_not_followed(bench: Bench, tmp_path: Path):
    """What lies outside is nobody's business."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "key").write_bytes(b"secret")
    (bench.root / "door").symlink_to(tmp_path / "outside")

    assert contents(await bench.remains()) == {"door": str(tmp_path / "outside")}


async def test_without_git_everything_is_kept(bench: Bench, tmp_path: Path):
    """A mirror that is broken cannot tell what is new."""
    remains = await remains_of(bench.mirror, bench.manifest.model_copy(update={"commit": "f" * 40}), bench.root)

    assert "README.md" in contents(remains)
