"""Projects and files of this host's package indexes, fetched once for all attempts: kept in memory and on disk, within bounds.

Not: which of them an attempt may have (`proxy`).
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from types import TracebackType
from typing import BinaryIO, Self

from sandbox.gateway.registries import npm, pip
from sandbox.gateway.registries.address import Network
from sandbox.gateway.registries.cache import DiskCache
from sandbox.gateway.registries.config import Index, Indexes, Places, read_indexes
from sandbox.gateway.registries.fetch import Fetcher, Unavailable
from sandbox.gateway.registries.project import BadDocument, Project, ProjectFile

DOCUMENT_BYTES_MAX = 32 << 20
"""What an index says of one project."""
FILE_BYTES_MAX = 64 << 20
"""One file; a sandbox cannot write a larger one either (`runtime/hardening.FILE_BYTES_MAX`)."""
DOCUMENTS_BYTES_MAX = 128 << 20
"""All projects in memory."""
DOCUMENT_AGE_S = 300.0
"""How long what an index said is believed."""
FETCHES_MAX = 8
"""At once, over all attempts."""
CACHE_MIB = 1024
_DEFAULT_S = 20.0
_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class SourceSettings:
    """What the operator may set; the defaults need nothing."""

    directory: Path
    """Where files are kept."""
    cache_mib: int = CACHE_MIB
    permitted: tuple[Network, ...] = ()
    """Networks an index may be in although they are not global."""


class PackageSource:
    """An async context manager: inside it, indexes can be asked."""

    def __init__(
        self,
        settings: SourceSettings,
        environment: Mapping[str, str],
        *,
        places: Places | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the host's configuration when it is needed for the first time.

        Args:
            settings: Where files are kept, and what is permitted.
            environment: Of the executor.
            places: Where the configuration is; None: where pip and npm look.
            now: Seconds.
        """
        self._environment = dict(environment)
        self._places = places or Places.of(environment)
        self._cache = DiskCache(settings.directory, settings.cache_mib << 20)
        self._fetcher = Fetcher(settings.permitted)
        self._now = now
        self._indexes: Indexes | None = None
        self._projects: OrderedDict[tuple[str, str, str], tuple[float, int, Project]] = OrderedDict()
        self._at_once = asyncio.Semaphore(FETCHES_MAX)
        self._turns: dict[object, asyncio.Lock] = {}

    async def __aenter__(self) -> Self:
        await self._fetcher.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._fetcher.__aexit__(kind, error, trace)

    async def indexes(self) -> Indexes:
        """Return the host's indexes.

        Raises:
            ConfigError: Its configuration makes no sense.
        """
        async with self._turn("indexes"):
            if self._indexes is None:
                self._indexes = await asyncio.to_thread(indexes_of_host, self._environment, self._places)
            return self._indexes

    async def project(self, index: Index, name: str, base: str) -> Project:
        """Return what an index says of a project, at most `DOCUMENT_AGE_S` old.

        Args:
            index: The index.
            name: In normal form.
            base: Our own address of the registry, for npm.

        Raises:
            NotThere, AddressRefused, Unavailable: As with `Fetcher.get`.
        """
        key = (index.url, name, base)
        async with self._turn(key):
            known = self._projects.get(key)
            if known is not None and self._now() - known[0] < DOCUMENT_AGE_S:
                self._projects.move_to_end(key)
                return known[2]
            size, project = await self._asked(index, name, base)
            self._projects[key] = (self._now(), size, project)
            self._projects.move_to_end(key)
            while sum(each[1] for each in self._projects.values()) > DOCUMENTS_BYTES_MAX and len(self._projects) > 1:
                self._projects.popitem(last=False)
            return project

    async def opened(self, index: Index, file: ProjectFile) -> tuple[BinaryIO, bool]:
        """Return a file open for reading, its digest checked, and whether it was here already; the caller closes it.

        Raises:
            NotThere, AddressRefused, Unavailable: As with `Fetcher.get`; also if its digest is another one.
        """
        async with self._turn(file.digest.key if file.digest else file.url):
            kept = await asyncio.to_thread(self._cache.open, file.digest.key) if file.digest else None
            return (kept, True) if kept is not None else (await self._downloaded(index, file), False)

    async def _asked(self, index: Index, name: str, base: str) -> tuple[int, Project]:
        is_pip = index.ecosystem == "pip"
        url = f"{index.url}/{name}/" if is_pip else f"{index.url}/{name.replace('/', '%2f')}"
        async with self._at_once, self._fetcher.get(index, url, pip.ACCEPT if is_pip else npm.ACCEPT) as reply:
            data = await reply.read(DOCUMENT_BYTES_MAX)
        try:
            if is_pip:
                return len(data), await asyncio.to_thread(pip.read_page, data, reply.content_type, reply.url, name)
            return len(data), await asyncio.to_thread(npm.read_packument, data, name, base)
        except BadDocument as error:
            raise Unavailable(f"its answer is {error}") from error

    async def _downloaded(self, index: Index, file: ProjectFile) -> BinaryIO:
        into = await asyncio.to_thread(self._cache.unfinished)
        try:
            await self._fill(into, index, file)
            if file.digest:
                await asyncio.to_thread(self._cache.keep, file.digest.key, into)
        except BaseException:
            into.close()
            raise
        finally:
            self._cache.discard(into)
        return into

    async def _fill(self, into: BinaryIO, index: Index, file: ProjectFile) -> None:
        digest = file.digest.new() if file.digest else None

        def take(chunk: bytes) -> None:
            into.write(chunk)
            if digest:
                digest.update(chunk)

        async with self._at_once, self._fetcher.get(index, file.url, "*/*") as reply:
            async for chunk in reply.chunks(FILE_BYTES_MAX):
                await asyncio.to_thread(take, chunk)
        if file.digest and digest and digest.hexdigest() != file.digest.hexadecimal:
            raise Unavailable("the file is not the one the index names: its digest is another one")

    @asynccontextmanager
    async def _turn(self, key: object) -> AsyncIterator[None]:
        """Let one at a time ask for the same thing: the others find it there."""
        lock = self._turns.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._turns.get(key) is lock:
                del self._turns[key]


def indexes_of_host(environment: Mapping[str, str], places: Places) -> Indexes:
    """Return the indexes pip and npm would use on this host; blocks.

    Raises:
        ConfigError: Their configuration makes no sense.
    """
    found = read_indexes(environment, places)
    pip_default = npm_default = ""
    if not found.pip:
        pip_default = _said([sys.executable, "-I", "-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"])
    if found.npm is None and (npm := which("npm", path=environment.get("PATH", ""))):
        npm_default = _said([npm, "config", "get", "registry"])
    return read_indexes(environment, places, pip_default=pip_default, npm_default=npm_default) if pip_default or npm_default else found


def _said(command: Sequence[str]) -> str:
    """Return the one line a tool of this host says of its own default, empty if it says none."""
    try:
        with tempfile.TemporaryDirectory(prefix="andon-tool-") as home:  # npm writes a log below it even for this
            alone = {"PATH": _PATH, "HOME": home}
            done = subprocess.run(command, capture_output=True, timeout=_DEFAULT_S, check=False, cwd="/", env=alone)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""
