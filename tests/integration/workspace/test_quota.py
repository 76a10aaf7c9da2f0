"""A workspace's own file system: limits, fallback, clean-up."""

import asyncio
import errno
import os
import sys
from pathlib import Path

import pytest

from sandbox.contract.errors import RejectedTree
from sandbox.git import Git
from sandbox.mirror import Mirror, pack_of
from sandbox.workspace.provision import provision
from sandbox.workspace.quota import release_filesystem, workspace_filesystem
from tests.fakes.repositories import run_git, sample_repository, write_files

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not run (needs root)")


def mount_options(path: Path) -> str | None:
    """Return the options of the last mount at `path`."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((line[3] for line in reversed(lines) if line[1] == str(path)), None)


def make_empty_files(path: Path, count: int) -> None:
    for number in range(count):
        (path / str(number)).touch()


@pytest.mark.root
@needs_root
async def test_bytes_and_inodes_are_limited_and_nothing_is_left(tmp_path: Path):
    """ENOSPC for both, no setuid, no devices; afterwards neither mount nor directory."""
    path = tmp_path / "workspace"

    async with workspace_filesystem(path, 16, 100, 200_001, 200_001) as quota:
        assert (quota.kind, quota.reason) == ("tmpfs", "")
        assert {"nosuid", "nodev"} <= set((mount_options(path) or "").split(","))
        assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777) == (200_001, 200_001, 0o700)
        with pytest.raises(OSError) as too_large:  # noqa: PT011
            (path / "large").write_bytes(b"x" * (17 << 20))
        with pytest.raises(OSError) as too_many:  # noqa: PT011
            make_empty_files(path, 100)
        assert (too_large.value.errno, too_many.value.errno) == (errno.ENOSPC, errno.ENOSPC)

    assert mount_options(path) is None
    assert not path.exists()


@pytest.mark.root
@needs_root
async def test_a_commit_that_does_not_fit_is_refused_before_it_is_written(tmp_path: Path):
    """The message says what to raise."""
    repository = sample_repository(tmp_path / "user")
    write_files(repository, {"large": os.urandom(17 << 20)})
    run_git(repository, "-c", "core.hooksPath=/dev/null", "add", "large")
    run_git(repository, "-c", "core.hooksPath=/dev/null", "commit", "-q", "-m", "large")
    base = run_git(repository, "rev-parse", "HEAD")
    mirror = await Mirror.open(tmp_path / "mirror")
    await mirror.import_base(base, pack_of(Git(repository / ".git"), base))

    async with workspace_filesystem(tmp_path / "workspace", 16, 1_000, 0, 0):
        with pytest.raises(RejectedTree, match="17 MiB: more than the workspace holds; raise workspace_mib"):
            await provision(mirror, base, tmp_path / "workspace", uid=0, gid=0)
        assert list((tmp_path / "workspace").iterdir()) == []


@pytest.mark.root
@needs_root
async def test_a_workspace_that_is_still_in_use_is_detached(tmp_path: Path):
    """An open file keeps the memory, not the mount point."""
    path = tmp_path / "workspace"

    async with workspace_filesystem(path, 16, 100, 0, 0):
        (path / "held").write_text("x")
        held = (path / "held").open()

    assert not path.exists()
    held.close()


@pytest.mark.root
@needs_root
async def test_what_a_crash_left_is_removed_first(tmp_path: Path):
    """Mounts on top of each other included."""
    path = tmp_path / "workspace"
    left = [workspace_filesystem(path, 16, 100, 0, 0), workspace_filesystem(path, 16, 100, 0, 0)]
    await left[0].__aenter__()
    (path / "old").write_text("x")

    async with left[1]:
        assert list(path.iterdir()) == []

    release_filesystem(path)
    await left[0].__aexit__(None, None, None)
    assert mount_options(path) is None


async def test_without_rights_the_workspace_is_a_plain_directory_and_says_so(tmp_path: Path):
    """The reason goes into the job's record."""
    if os.geteuid() == 0:
        reading = await asyncio.create_subprocess_exec(
            *("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"),
            *(sys.executable, "-c", PLAIN, str(tmp_path / "workspace")),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )
        said = (await reading.communicate())[0].decode()
        assert said.startswith("plain no quota mount (Operation not permitted): the workspace is a plain directory [")
    else:
        async with workspace_filesystem(tmp_path / "workspace", 16, 100, os.geteuid(), os.getegid()) as quota:
            assert quota.reason == "no quota mount without root: the workspace is a plain directory"
            write_files(tmp_path / "workspace", {"a/b": b""})
    assert not (tmp_path / "workspace").exists()


PLAIN = """
import asyncio, os, pathlib, sys
from sandbox.workspace.quota import workspace_filesystem

async def main(path):
    async with workspace_filesystem(path, 16, 100, 200001, 200001) as quota:
        (path / "a" / "b").mkdir(parents=True)
        print(quota.kind, quota.reason, [path.stat().st_uid, oct(path.stat().st_mode)])

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""


@pytest.mark.root
@needs_root
async def test_cancelled_work_leaves_no_mount(tmp_path: Path):
    """Whenever it comes: before, during or after the mount."""
    path = tmp_path / "workspace"

    async def work() -> None:
        async with workspace_filesystem(path, 16, 100, 0, 0):
            await asyncio.sleep(10)

    for yields in (0, 1, 2, 5, 50):
        task = asyncio.ensure_future(work())
        for _ in range(yields):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert mount_options(path) is None
        assert not path.exists()
