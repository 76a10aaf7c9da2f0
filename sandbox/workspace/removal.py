"""Delete a tree an agent wrote, whatever it looks like; not the decision which tree (the executor's janitor)."""

import contextlib
import os
import stat
from pathlib import Path


def remove_tree(path: Path) -> None:
    """Delete a directory and everything in it; nothing to do if it is absent.

    Follows no link, needs one or two descriptors at any depth, does not recurse, and does not leave the file system the
    directory is on. Nothing else may write to the tree meanwhile: its container is dead.

    Args:
        path: The directory itself; if it is a link or a file, that is refused.

    Raises:
        OSError: Something could not be deleted, e.g. it is a mount point or belongs to another user.
    """
    with contextlib.suppress(FileNotFoundError):
        remove_contents(path)
        path.rmdir()


def remove_contents(path: Path) -> None:
    """Delete everything in a directory and keep the directory; see `remove_tree`.

    Raises:
        FileNotFoundError: There is no such directory.
        OSError: Something could not be deleted.
    """
    current = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        device = os.fstat(current).st_dev
        # One entry per open level: the directory's name in its parent, its inode, the sub-directories left in it.
        levels = [("", os.fstat(current).st_ino, _clear(current))]
        while True:
            name, _, subdirectories = levels[-1]
            if subdirectories:
                child = _enter(current, subdirectories.pop(), device)
                current = _swap(current, child[1])
                levels.append((child[0], os.fstat(current).st_ino, _clear(current)))
            elif len(levels) == 1:
                return
            else:
                levels.pop()
                parent = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=current)
                current = _swap(current, parent)
                if os.fstat(parent).st_ino != levels[-1][1]:
                    raise OSError(f"{path} changed while it was deleted")
                os.rmdir(name, dir_fd=current)
    finally:
        os.close(current)


def _clear(directory: int) -> list[str]:
    """Delete the files of an open directory and return the names of its sub-directories."""
    with os.scandir(directory) as entries:
        listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in listed:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
    return [name for name, is_directory in listed if is_directory]


def _enter(directory: int, name: str, device: int) -> tuple[str, int]:
    """Open a sub-directory for deletion; an owner who may not read it is given the right first."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    if stat.S_IMODE(mode) & 0o700 != 0o700:
        with contextlib.suppress(PermissionError):  # not ours: as root it opens all the same, else the open says why
            os.chmod(name, 0o700, dir_fd=directory)
    child = os.open(name, flags, dir_fd=directory)
    if os.fstat(child).st_dev != device:
        os.close(child)
        raise OSError(f"{name!r} is a mount point and is not deleted")
    return name, child


def _swap(old: int, new: int) -> int:
    os.close(old)
    return new
