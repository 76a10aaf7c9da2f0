"""Attempts to take more than a job may have; each gives back what it took, and ends a little beyond the bound, wherever it runs."""

import errno
import os
import resource
import shutil
import signal
import sys

from .attempts import Attempt, Stopped, attempt, report

BEGUN = "begun."
"""Before the name of an attempt that is about to be made."""
_BLOCK = b"\0" * (1 << 20)
_PART_BLOCKS = 8
_OVER_PROCESSES = 64
_FILES_MAX = 2048
_LINE = b"x" * 1023 + b"\n"


def run(limits: dict[str, int], done: list[str]) -> None:
    """Make every attempt, and say before each which it is: one may be the end of the container.

    Args:
        limits: What a job has: `pids_max`, `memory_mib`, `workspace_mib`, `workspace_inodes_max`, `tmp_mib`, `home_mib`,
            `files_max`, `log_mib`; the control gets the same numbers, and nothing that holds it to them.
        done: What was attempted already.
    """
    bombs: dict[str, Attempt] = {
        "bombs.forks": lambda: _fork(limits["pids_max"]),
        "bombs.descriptors": lambda: _open(limits["files_max"]),
        "bombs.disk": lambda: _fill("/workspace", limits["workspace_mib"]),
        "bombs.inodes": lambda: _make_files("/workspace", limits["workspace_inodes_max"]),
        "bombs.tmp": lambda: _fill("/tmp", limits["tmp_mib"]),
        "bombs.home": lambda: _fill("/home/agent", limits["home_mib"]),
        "bombs.log": lambda: _print(limits["log_mib"]),
        "bombs.memory": lambda: _allocate(limits["memory_mib"]),
    }
    for name, bomb in bombs.items():
        if name not in done:
            report(f"{BEGUN}{name}", True, "")
            attempt(name, bomb)


def _fork(allowed: int) -> str:
    reading, writing = os.pipe()
    children: list[int] = []
    try:
        while len(children) < allowed + _OVER_PROCESSES:
            pid = os.fork()
            if pid == 0:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
            children.append(pid)
    except OSError as error:
        raise Stopped(f"{errno.errorcode[error.errno or 0]} after {len(children)} processes") from None
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)
    return f"{len(children)} processes at once"


def _open(allowed: int) -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    opened: list[int] = []
    try:
        while len(opened) <= max(allowed, min(_FILES_MAX, 2 * allowed)):
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        raise Stopped(f"{errno.errorcode[error.errno or 0]} after {len(opened)} files") from None
    return f"{len(opened)} files open"


def _fill(place: str, allowed_mib: int) -> str:
    """Write a quarter more than allowed, in files small enough for any bound on one file."""
    directory = os.path.join(place, "prove-fill")
    wanted, written = allowed_mib + max(4, allowed_mib // 4), 0
    try:
        os.makedirs(directory)
        while written < wanted:
            with open(os.path.join(directory, str(written)), "wb", buffering=0) as part:
                for _ in range(_PART_BLOCKS):
                    _require_whole(part.write(_BLOCK))
                    written += 1
    except OSError as error:
        raise Stopped(f"{errno.errorcode[error.errno or 0]} after {written} MiB in {place}") from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return f"{written} MiB written to {place}"


def _require_whole(bytes_written: int | None) -> None:
    if bytes_written != len(_BLOCK):
        raise OSError(errno.ENOSPC, "only a part was written")


def _make_files(place: str, allowed: int) -> str:
    directory, made = os.path.join(place, "prove-files"), 0
    try:
        os.makedirs(directory)
        while made <= allowed:
            os.close(os.open(os.path.join(directory, str(made)), os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error:
        raise Stopped(f"{errno.errorcode[error.errno or 0]} after {made} files in {place}") from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return f"{made} files in {place}"


def _print(mib: int) -> str:
    """Print more than is kept; whether it is kept only the host can tell."""
    for _ in range(mib):
        sys.stdout.buffer.write(_LINE * 1024)
    sys.stdout.buffer.flush()
    return f"{mib} MiB printed"


def _allocate(allowed_mib: int) -> str:
    wanted = allowed_mib + max(16, allowed_mib // 8)
    kept = [bytearray(os.urandom(4096)) * 256 for _ in range(wanted)]
    return f"{len(kept)} MiB of memory"
