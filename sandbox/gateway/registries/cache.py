"""Files of packages on the executor's disk, by their digest: bounded, the one not used for longest goes first; not how they got here.

Every method blocks and is called in a thread. Only whole files whose digest was checked are ever kept.
"""

import os
import re
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

_KEY = re.compile(r"[a-z0-9]{1,16}-[a-f0-9]{32,128}", re.ASCII)
_UNFINISHED = "unfinished-"


class DiskCache:
    """A directory of files named by their digests; one process uses it."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        """Use `directory`, made when needed; hold at most `bytes_max` bytes, 0 keeps nothing."""
        self._directory = directory
        self._bytes_max = bytes_max
        self._sizes: dict[str, int] | None = None
        """In the order of their use; None: not looked at yet."""
        self._lock = threading.Lock()

    def unfinished(self) -> BinaryIO:
        """Return a new file to be filled; `keep` or `discard` ends it."""
        with self._lock:
            self._known()  # makes the directory, and removes what a crash left
        return cast(BinaryIO, tempfile.NamedTemporaryFile(dir=self._directory, prefix=_UNFINISHED, delete=False))

    def open(self, key: str) -> BinaryIO | None:
        """Return a file for reading, None if it is not here; it stays readable when it is evicted meanwhile."""
        with self._lock:
            sizes = self._known()
            if key not in sizes:
                return None
            try:
                file = self._path(key).open("rb")
            except OSError:
                del sizes[key]
                return None
            sizes[key] = sizes.pop(key)
            with suppress(OSError):
                os.utime(file.fileno())
            return file

    def keep(self, key: str, file: BinaryIO) -> None:
        """Keep a file from `unfinished` under its digest, and evict what is too much; one that is too large alone is not kept.

        The file stays open and readable, kept or not.

        Raises:
            OSError: The disk refuses it.
        """
        size = file.seek(0, os.SEEK_END)
        with self._lock:
            sizes = self._known()
            if size > self._bytes_max or key in sizes:
                self.discard(file)
                return
            Path(file.name).rename(self._path(key))
            sizes[key] = size
            self._evict(sizes)

    def discard(self, file: BinaryIO) -> None:
        """Take the name from a file from `unfinished`, if it still has it; it stays open."""
        Path(file.name).unlink(missing_ok=True)

    @property
    def size_bytes(self) -> int:
        """Return how much is held."""
        with self._lock:
            return sum(self._known().values())

    def _evict(self, sizes: dict[str, int]) -> None:
        total = sum(sizes.values())
        while total > self._bytes_max:
            oldest = next(iter(sizes))
            total -= sizes.pop(oldest)
            self._path(oldest).unlink(missing_ok=True)

    def _known(self) -> dict[str, int]:
        if self._sizes is None:
            found = []
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for entry in os.scandir(self._directory):
                if entry.name.startswith(_UNFINISHED):
                    Path(entry.path).unlink(missing_ok=True)
                elif _KEY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    about = entry.stat(follow_symlinks=False)
                    found.append((about.st_mtime, entry.name, about.st_size))
            self._sizes = {name: size for _, name, size in sorted(found)}
            self._evict(self._sizes)
        return self._sizes

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError("a key is an algorithm and a digest")
        return self._directory / key
