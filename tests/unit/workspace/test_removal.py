"""Deleting what an agent left, whatever it looks like."""

import os
import tempfile
from pathlib import Path

import pytest

from sandbox.workspace.removal import remove_contents, remove_tree


def make_deep(path: Path, levels: int) -> None:
    """Make directories deeper than any path may be long."""
    current = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir("d" * 100, dir_fd=current)
        below = os.open("d" * 100, os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
        os.close(current)
        current = below
    with os.fdopen(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=current), "w") as file:
        file.write("deep")
    os.close(current)


def test_three_thousand_levels_are_deleted_without_recursion_or_many_descriptors(tmp_path: Path):
    """`shutil.rmtree` breaks here."""
    (tmp_path / "tree").mkdir()
    make_deep(tmp_path / "tree", 3_000)

    remove_tree(tmp_path / "tree")

    assert list(tmp_path.iterdir()) == []


def test_links_are_deleted_and_not_followed(tmp_path: Path):
    """To files, to directories, to nothing."""
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "to-directory").symlink_to(outside)
    (tree / "to-file").symlink_to(outside / "kept")
    (tree / "to-nothing").symlink_to("nowhere")

    remove_tree(tree)

    assert (outside / "kept").is_dir()
    assert not tree.exists()


def test_special_files_odd_names_and_wide_directories_are_deleted(tmp_path: Path):
    """FIFOs do not block."""
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    os.mkfifo(tree / "a/fifo")
    for number in range(500):
        (tree / f"a/b/{number}").mkdir()
    with open(os.fsencode(tree) + b"/\xff\n", "wb"):  # noqa: PTH123
        pass

    remove_tree(tree)

    assert not tree.exists()


def test_directories_without_rights_are_deleted_by_their_owner():
    """`chmod 000` does not protect an agent's litter, also where we are not root."""
    with tempfile.TemporaryDirectory() as above:
        Path(above).chmod(0o777)
        child = os.fork()
        if child == 0:
            if os.geteuid() == 0:
                os.setuid(65_534)
            tree = Path(above, "tree")
            (tree / "locked/below").mkdir(parents=True)
            (tree / "locked").chmod(0)
            remove_tree(tree)
            os._exit(int(tree.exists()))
        _, status = os.waitpid(child, 0)

        assert status == 0
        assert not Path(above, "tree").exists()


def test_the_root_must_be_a_directory_and_may_be_absent(tmp_path: Path):
    """A link in its place is refused."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "real")

    remove_tree(tmp_path / "absent")
    with pytest.raises(OSError, match="link"):
        remove_tree(tmp_path / "link")

    assert (tmp_path / "real/file").read_text() == "kept"


def test_contents_go_and_the_directory_stays(tmp_path: Path):
    """For a mount point or a directory made by someone else."""
    (tmp_path / "tree/a").mkdir(parents=True)

    remove_contents(tmp_path / "tree")

    assert list((tmp_path / "tree").iterdir()) == []
