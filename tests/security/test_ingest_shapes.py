"""What an agent can leave for a host that reads: links, pipes, bombs. Each harms a host that reads as programs usually do."""

import asyncio
import os
import shutil
import subprocess
import sys
import tarfile
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.contract.errors import RejectedTree
from sandbox.executor.outputs import read_report
from sandbox.executor.slots import Slot
from sandbox.git import Git
from sandbox.mirror import Mirror, pack_of
from sandbox.workspace.provision import Manifest, provision
from sandbox.workspace.remains import Remains, remains_of
from sandbox.workspace.removal import remove_tree
from sandbox.workspace.seal import Sealed, seal
from tests.fakes.repositories import run_git, sample_repository, write_files
from tests.security.naive import naive

SECRET = b"canary-90ab"
RECURSIVE_WALK = """
def walk(directory):
    for name in os.listdir(directory):
        if os.path.isdir(f"/proc/self/fd/{directory}/{name}"):
            walk(os.open(name, os.O_RDONLY, dir_fd=directory))
walk(os.open(sys.argv[1], os.O_RDONLY))
"""


class Bench:
    """A workspace, and what a host of ours does with one."""

    def __init__(self, mirror: Mirror, manifest: Manifest, root: Path) -> None:
        self.mirror, self.manifest, self.root = mirror, manifest, root
        self.secret = root.parent / "secret"

    async def seal(self) -> Sealed:
        return await seal(self.mirror, self.manifest, self.root, message="agent")

    async def refusal(self) -> str:
        started = time.monotonic()
        with pytest.raises(RejectedTree) as error:
            await self.seal()
        assert time.monotonic() - started < 30
        return str(error.value)

    async def remains(self) -> Remains:
        return await remains_of(self.mirror, self.manifest, self.root)

    def report(self, name: str) -> bytes:
        """Read a report where a check would have left it."""
        slot = Slot(0, None, self.root.parent, self.root.parent / "s")
        if not slot.out.exists():
            self.root.rename(slot.out)
        return read_report(slot, name)


async def _template(path: Path) -> tuple[Mirror, Manifest, Path]:
    repository = sample_repository(path / "user")
    base = run_git(repository, "rev-parse", "HEAD")
    mirror = await Mirror.open(path / "mirror")
    await mirror.import_base(base, pack_of(Git(repository / ".git"), base))
    (path / "workspace").mkdir()
    return mirror, await provision(mirror, base, path / "workspace", uid=os.geteuid(), gid=os.getegid()), path / "workspace"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mirror, Manifest, Path]:
    return asyncio.run(_template(tmp_path_factory.mktemp("template")))


@pytest.fixture
def bench(template: tuple[Mirror, Manifest, Path], tmp_path: Path) -> Bench:
    mirror, manifest, root = template
    shutil.copytree(root, tmp_path / "home/workspace", symlinks=True)
    bench = Bench(mirror, manifest, tmp_path / "home/workspace")
    bench.secret.write_bytes(SECRET)
    return bench


@pytest.mark.abuse("I01")
async def test_a_link_to_a_secret_is_neither_read_nor_written_through(bench: Bench):
    """As a result, as a report, as remains; the control: open() reads and overwrites what it points at."""
    link = bench.root / "result.json"
    link.symlink_to(bench.secret)

    assert "result.json is a link to an absolute path" in await bench.refusal()
    assert SECRET not in (await bench.remains()).archive
    assert link.read_bytes() == SECRET, "the control"
    link.write_bytes(b"overwritten")
    assert bench.secret.read_bytes() == b"overwritten", "the control"
    with pytest.raises(OSError, match="symbolic links"):
        bench.report("result.json")


@pytest.mark.abuse("I02")
async def test_the_host_writes_into_no_directory_an_agent_has_had(bench: Bench, tmp_path: Path):
    """A workspace is filled once, while it is empty and a real directory; the control: a bundle written into it lands elsewhere."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (bench.root / ".task").symlink_to(victim)
    (tmp_path / "swapped").symlink_to(victim)

    for target in (bench.root, tmp_path / "swapped", bench.root / ".task"):
        with pytest.raises(Exception, match=r"is not empty|cannot be opened"):
            await provision(bench.mirror, bench.manifest.commit, target, uid=os.geteuid(), gid=os.getegid())

    assert list(victim.iterdir()) == []
    (bench.root / ".task/bundle.md").write_text("x")
    assert (victim / "bundle.md").exists(), "the control"


@pytest.mark.abuse("I03")
async def test_links_stay_links_in_whatever_is_kept(bench: Bench, tmp_path: Path):
    """The archive of a refused tree; the control: a copying host takes the secret along."""
    (bench.root / "stolen").symlink_to(bench.secret)

    kept = await bench.remains()

    (tmp_path / "archive.tar").write_bytes(kept.archive)
    with tarfile.open(tmp_path / "archive.tar") as archive:
        assert [(entry.name, entry.issym(), entry.size) for entry in archive] == [("stolen", True, 0)]
    shutil.copytree(bench.root, tmp_path / "copied")
    assert (tmp_path / "copied/stolen").read_bytes() == SECRET, "the control"


@pytest.mark.abuse("I04")
def test_control_an_archive_writes_outside_its_directory(tmp_path: Path):
    """Nothing of ours unpacks one (`test_places`); the control: a program that does is led out of its directory."""
    (tmp_path / "into").mkdir()
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))

    with tarfile.open(tmp_path / "evil.tar") as archive:
        archive.extractall(tmp_path / "into", filter="fully_trusted")

    assert (tmp_path / "outside").exists()


@pytest.mark.abuse("I05")
async def test_a_pipe_blocks_nobody(bench: Bench):
    """Refused at once everywhere, and its directory can be removed; the control: a reader waits for ever."""
    os.mkfifo(bench.root / "result.json")

    assert "result.json is a FIFO" in await bench.refusal()
    assert any("result.json (holds no bytes" in line for line in (await bench.remains()).left_out)
    assert naive("open(sys.argv[1]).read()", bench.root / "result.json", timeout_s=1) == "hangs", "the control"
    with pytest.raises(ValueError, match="regular file"):
        bench.report("result.json")


@pytest.mark.abuse("I06")
async def test_three_thousand_levels_are_refused_and_removed(bench: Bench):
    """The control: a walk that calls itself breaks."""
    deep = os.open(bench.root, os.O_RDONLY)
    for _ in range(3_000):
        os.mkdir("d", dir_fd=deep)
        deeper = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = deeper
    os.close(deep)

    assert "is 65 levels deep; at most 64" in await bench.refusal()
    assert any("levels deep" in line for line in (await bench.remains()).left_out)
    assert naive(RECURSIVE_WALK, bench.root) in {"RecursionError", "OSError"}, "the control"
    remove_tree(bench.root)
    assert not bench.root.exists()


@pytest.mark.abuse("I07")
async def test_a_terabyte_of_nothing_is_judged_by_its_size(bench: Bench):
    """It takes no block of the disk, so no quota stops it; the control: whoever reads it runs out of memory."""
    with (bench.root / "huge").open("wb") as file:
        file.truncate(1 << 40)

    assert (bench.root / "huge").stat().st_blocks == 0
    assert "huge has 1099511627776 bytes; at most 67108864" in await bench.refusal()
    assert any("1099511627776 bytes do not fit" in line for line in (await bench.remains()).left_out)
    assert naive("open(sys.argv[1], 'rb').read()", bench.root / "huge") in {"MemoryError", "OverflowError"}, "the control"


@pytest.mark.abuse("I08")
async def test_too_many_files_are_refused_before_they_are_committed(bench: Bench):
    """The control: plain git would take every one of them."""
    (bench.root / "many").mkdir()
    for number in range(20_001):
        os.close(os.open(bench.root / f"many/{number}", os.O_CREAT | os.O_WRONLY))

    assert "more than 20000 changed files" in await bench.refusal()
    run_git(bench.root, "init", "-q")
    run_git(bench.root, "add", "-A")
    assert len(run_git(bench.root, "ls-files", "many").splitlines()) == 20_001, "the control"


@pytest.mark.abuse("I11")
@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b"a\x1b[2Jb", "a\u202eb".encode(), "a\u200bb".encode()])
async def test_names_that_break_or_mislead_a_reader_are_refused(bench: Bench, name: bytes):
    """The reason can be printed; the control: a listing of names breaks, shows two for one, or shows what is not there."""
    with open(os.fsencode(bench.root) + b"/" + name, "wb"):  # noqa: PTH123
        pass
    raw = os.fsdecode(name)

    message = await bench.refusal()

    assert message.isprintable()
    assert message.isascii()
    assert b"\xe9" not in message.encode()
    assert _misleads(raw), "the control"


def _misleads(name: str) -> bool:
    """Return whether a line with this name cannot be encoded, is two lines, or does something else than be shown."""
    try:
        lines = name.encode().decode().splitlines()
    except UnicodeEncodeError:
        return True
    return len(lines) > 1 or not lines[0].isprintable()


@pytest.mark.abuse("I12")
@pytest.mark.parametrize(("one", "other"), [("a.py", "A.py"), ("é.txt", "é.txt"), ("Straße", "STRASSE")])
async def test_names_that_are_one_elsewhere_are_refused(bench: Bench, one: str, other: str):
    """By case and by Unicode form; the control: a checkout into a table that folds them keeps one of two files."""
    other = unicodedata.normalize("NFD", other) if one == other else other
    write_files(bench.root, {one: b"1", other: b"2"})

    assert "differ only in case or Unicode form" in await bench.refusal()
    names = {path.name for path in bench.root.iterdir()} & {one, other}
    folded = {unicodedata.normalize("NFC", name).casefold() for name in names}
    assert (len(names), len(folded)) == (2, 1), "the control"


@pytest.mark.abuse("I13")
async def test_a_second_name_of_a_file_is_refused(bench: Bench):
    """The control: who writes to the name that is allowed changes the one that is not."""
    (bench.root / "src/allowed.py").hardlink_to(bench.root / "README.md")

    (bench.root / "src/allowed.py").write_bytes(b"changed by another name")

    assert (bench.root / "README.md").read_bytes() == b"changed by another name", "the control"
    assert "has several names (hard links)" in await bench.refusal()


SWAPPER = """
import ctypes, os, sys
one, other = (os.fsencode(path) for path in sys.argv[1:])
exchange = ctypes.CDLL(None).renameat2
while True:
    exchange(-100, one, -100, other, 2)
"""
"""Exchanges two names in one system call, some hundred thousand times a second."""


@pytest.fixture
def swapped(bench: Bench) -> Iterator[Bench]:
    """Return a workspace in which another process exchanges one file for a link and back as fast as it can."""
    (bench.root / "file").write_bytes(b"x" * len(SECRET))
    other = bench.root.parent / "other"
    other.symlink_to(bench.secret)
    child = subprocess.Popen([sys.executable, "-I", "-c", SWAPPER, str(bench.root / "file"), str(other)])
    yield bench
    child.kill()
    child.wait()


@pytest.mark.abuse("I14")
async def test_what_is_opened_is_what_was_seen(swapped: Bench):
    """No container lives while we read; still, no race is won against us. The control: look first and open then reads the secret."""
    reasons: set[str] = set()
    until = time.monotonic() + 30
    # Until the exchange came between our look and our opening, which the reason tells.
    while not any("changed while it was read" in reason or "cannot be read" in reason for reason in reasons):
        assert time.monotonic() < until, f"the exchange never came in between: {reasons}"
        try:
            commit = (await swapped.seal()).commit
        except RejectedTree as error:
            reasons.add(str(error))
        else:
            assert commit is None or SECRET not in swapped.mirror.git.run("cat-file", "blob", f"{commit}:file")

    assert _read_by_a_naive_host(swapped.root / "file"), "the control"


def _read_by_a_naive_host(path: Path) -> bool:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if not path.is_symlink() and path.read_bytes() == SECRET:
                return True
        except OSError:
            continue
    return False
