"""Looks for a secret everywhere a process of a sandbox can read, without knowing it: its shape and its digest are enough."""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from functools import partial

from .attempts import Stopped, attempt

_CHUNK_BYTES = 1 << 20
_OVERLAP_BYTES = 256
_FILE_BYTES_MAX = 64 << 20
_MEMORY_BYTES_MAX = 512 << 20
_PROC_FILES = ("environ", "cmdline", "maps", "limits", "status", "mountinfo", "comm", "stat")


class Wanted:
    """What is looked for."""

    def __init__(self, shape: str, digest: str, born: float) -> None:
        """Look for what matches `shape` (a pattern of bytes) and has this SHA-256; it was made at `born`, Unix seconds."""
        self._shape = re.compile(shape.encode())
        self._digest = digest
        self.born = born

    def is_in(self, data: bytes) -> bool:
        """Return whether it is in some bytes."""
        return any(hashlib.sha256(match).hexdigest() == self._digest for match in self._shape.findall(data))

    def is_in_any(self, chunks: Iterable[bytes]) -> bool:
        """Return whether it is in a stream of bytes, also across two chunks."""
        rest = b""
        for chunk in chunks:
            if self.is_in(rest + chunk):
                return True
            rest = chunk[-_OVERLAP_BYTES:]
        return False


def run(name: str, wanted: Wanted) -> None:
    """Look in the environment, every process, every file younger than the secret, and all memory that can be read."""
    attempt(f"{name}.environment", lambda: _in_environment(wanted))
    attempt(f"{name}.processes", lambda: _in_processes(wanted))
    attempt(f"{name}.files", lambda: in_files(wanted))
    search_memory(name, wanted)


def search_memory(name: str, wanted: Wanted) -> None:
    """Look in all memory that can be read."""
    attempt(f"{name}.memory", lambda: _in_memory(wanted))


def _in_environment(wanted: Wanted) -> str:
    variables = [variable for variable, value in os.environb.items() if wanted.is_in(value)]
    if not variables:
        raise Stopped(f"not in {len(os.environb)} variables")
    return f"in {variables[0].decode(errors='replace')}"


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _in_processes(wanted: Wanted) -> str:
    looked = 0
    for pid in _processes():
        for name in _PROC_FILES:
            try:
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    data = file.read(_CHUNK_BYTES)
            except OSError:
                continue
            looked += 1
            if wanted.is_in(data):
                return f"in /proc/{pid}/{name}"
    raise Stopped(f"not in {looked} files of {len(_processes())} processes")


def in_files(wanted: Wanted) -> str:
    """Look in every file that changed since the secret was made: an older one cannot hold it."""
    looked = 0
    for path in _young_files(wanted.born):
        try:
            with open(path, "rb") as file:
                looked += 1
                if wanted.is_in_any(iter(partial(file.read, _CHUNK_BYTES), b"")):
                    return f"in {path}"
        except OSError:
            continue
    raise Stopped(f"not in {looked} files that are young enough")


def _young_files(born: float) -> Iterator[str]:
    for top, directories, names in os.walk("/"):
        directories[:] = [name for name in directories if f"{top}{name}" not in ("/proc", "/sys", "/dev")]
        for name in names:
            path = os.path.join(top, name)
            try:
                facts = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(facts.st_mode) and facts.st_ctime >= born - 1 and facts.st_size <= _FILE_BYTES_MAX:
                yield path


def _in_memory(wanted: Wanted) -> str:
    """Read the memory of every process but this one, which holds what it looks for only if somebody gave it."""
    read_bytes, refused = 0, 0
    for pid in [pid for pid in _processes() if int(pid) != os.getpid()]:
        try:
            for chunk in _memory_of(pid):
                read_bytes += len(chunk)
                if wanted.is_in(chunk):
                    return f"in the memory of process {pid}"
                if read_bytes > _MEMORY_BYTES_MAX:
                    break
        except OSError:
            refused += 1
    raise Stopped(f"not in {read_bytes >> 20} MiB of memory; {refused} processes cannot be read")


def _memory_of(pid: str) -> Iterator[bytes]:
    with open(f"/proc/{pid}/maps") as maps:
        areas = [line.split()[:2] for line in maps]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for area, rights in areas:
            # What may be written: the secret is no part of a program's file.
            if not rights.startswith("rw"):
                continue
            start, end = (int(part, 16) for part in area.split("-"))
            for at in range(start, end, _CHUNK_BYTES):
                try:
                    memory.seek(max(start, at - _OVERLAP_BYTES))
                    yield memory.read(min(_CHUNK_BYTES + _OVERLAP_BYTES, end - at))
                except (OSError, ValueError):
                    break
