"""The package routes of one attempt: plain reverse proxies of the host's indexes, GET and HEAD, names bounded, everything counted.

    /registry/pip/<number>/simple/<project>/            /registry/npm/<package>
    /registry/pip/<number>/files/<project>/<file>       /registry/npm/<package>/-/<file>

A sandbox names a project, and a file the index itself lists for it: never a host, a path or a query of its own. Every
refusal is a 403 that names its rule (`Rule`). There is no CONNECT and no certificate of ours (ABUSE W13, W16).
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NamedTuple
from urllib.parse import unquote

from sandbox.contract.errors import ConfigError
from sandbox.contract.packages import Ecosystem, Fetched, Network, Packages, npm_name, pip_name
from sandbox.gateway.connection import Exchange
from sandbox.gateway.refusal import Refusal
from sandbox.gateway.registries.address import AddressRefused
from sandbox.gateway.registries.config import Index
from sandbox.gateway.registries.environment import tool_environment
from sandbox.gateway.registries.fetch import NotThere, Unavailable
from sandbox.gateway.registries.project import Project, ProjectFile
from sandbox.gateway.registries.source import PackageSource
from sandbox.log import Log

log = Log(__name__)

PREFIX = "/registry/"
REQUESTS_MAX = 5_000
"""In one attempt."""
BYTES_MAX = 2 << 30
"""Of replies, in one attempt."""
UNKNOWN_MAX = 50
"""Names and files no index has, in one attempt: guesses, or a message in the shape of a name (ABUSE W16)."""
_CHUNK_BYTES = 1 << 20

Rule = Literal["network", "methods", "routes", "names", "packages", "indexes", "configuration", "addresses", "bounds"]
"""What a refusal names. network: the stage has none. methods: GET and HEAD only. routes: another path. names: no name in normal
form. packages: not on the stage's list. indexes: the host's pip or npm names no such index. configuration: the host's pip or npm
configuration makes no sense. addresses: the place is not global. bounds: too much in one attempt."""

_PIP = re.compile(r"/registry/pip/(?P<number>[0-9])/(?:simple/(?P<page>[^/?#]+)/|files/(?P<name>[^/?#]+)/(?P<file>[^/?#]+))", re.ASCII)
_NPM = re.compile(r"/registry/npm/(?P<name>(?:@[^/?#@%]+(?:/|%2[fF]))?[^/?#@%]+)(?:/-/(?P<file>[^/?#]+))?", re.ASCII)


class RegistryRefusal(Refusal):
    """A refusal in the shape pip, uv and npm show: the message is the value of `error`."""

    def __init__(self, rule: Rule, message: str) -> None:
        super().__init__(403, "permission_error", f"rule {rule}: {message}", retry=False)
        self.rule = rule

    def body(self) -> bytes:
        """Return the reply's JSON."""
        return json.dumps({"error": self.message, "rule": self.rule}).encode()


class Wanted(NamedTuple):
    """What a target asks for."""

    ecosystem: Ecosystem
    number: int
    """Of the index, of pip's."""
    name: str
    """In normal form."""
    file: str | None
    """None: what the index says of the project."""


@dataclass(frozen=True)
class FetchReport:
    """One request that was answered, or refused, for the trace."""

    method: str
    what: str
    """`pip six`, `npm left-pad-1.3.0.tgz`; what could not be read is not repeated."""
    server: str
    """Host of the index; empty where none was asked."""
    status: int
    rule: str
    size_bytes: int
    is_cached: bool
    started_at: float
    ended_at: float


class RegistryRoutes:
    """Answers one attempt's requests below `/registry/`."""

    def __init__(
        self,
        source: PackageSource | None,
        network: Network,
        packages: Packages,
        *,
        base: str,
        on_fetch: Callable[[FetchReport], None] = lambda _: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Allow what a stage's `network` and `packages` say.

        Args:
            source: The host's indexes; None: there are none.
            network: The stage's.
            packages: Its list, which holds for `allowlist`.
            base: How a program in the sandbox reaches these routes, e.g. `http://127.0.0.1:8486`.
            on_fetch: Told of every request. It must not block.
            now: Unix seconds.
        """
        self._source = source
        self._network = network
        self._packages = packages
        self._base = base
        self._on_fetch = on_fetch
        self._now = now
        self._requests = 0
        self._bytes = 0
        self._unknown: set[tuple[str, str | None]] = set()
        self._files: dict[str, None] = {}
        self._refused: dict[str, None] = {}
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def fetched(self) -> Fetched:
        """What this attempt fetched and was refused."""
        return Fetched(
            requests=self._requests,
            bytes=self._bytes,
            files=tuple(self._files)[:200],
            files_dropped=max(0, len(self._files) - 200),
            refused=tuple(self._refused)[:20],
            refused_dropped=max(0, len(self._refused) - 20),
        )

    async def environment(self) -> dict[str, str]:
        """Return what tools and checks have to be told; nothing if the stage may install nothing."""
        if self._network == "none" or self._source is None:
            return {}
        try:
            indexes = len((await self._source.indexes()).pip)
        except ConfigError:  # said to whoever asks for a package
            indexes = 1
        return tool_environment(self._base, self._network, indexes)

    def end(self) -> None:
        """Drop what is being fetched: unlike a model call it owes nobody anything, and the attempt is over."""
        for task in self._running:
            task.cancel()

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request whose target begins with `PREFIX`."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("requests are answered in tasks")
        self._running.add(task)
        try:
            await self._answer_and_tell(exchange)
        finally:
            self._running.discard(task)

    async def _answer_and_tell(self, exchange: Exchange) -> None:
        started_at = self._now()
        served = _Served()
        try:
            await self._answer(exchange, served)
        except Refusal as refusal:
            served.status = refusal.status
            if isinstance(refusal, RegistryRefusal):
                served.rule = refusal.rule
                self._note(self._refused, f"{served.what or 'a request'}: {refusal.message}"[:400])
            raise
        finally:
            report = FetchReport(
                exchange.method if exchange.method.isalpha() else "?",
                served.what,
                served.server,
                served.status,
                served.rule,
                served.size_bytes,
                served.is_cached,
                started_at,
                self._now(),
            )
            log.info("package.fetched", what=report.what, status=report.status, rule=report.rule, size_bytes=report.size_bytes)
            self._on_fetch(report)

    async def _answer(self, exchange: Exchange, served: "_Served") -> None:
        source = self._admitted(exchange)
        wanted = wanted_of(exchange.target)
        served.what = f"{wanted.ecosystem} {wanted.file or wanted.name}"[:300]
        if self._network == "allowlist" and not self._packages.holds(wanted.ecosystem, wanted.name):
            raise RegistryRefusal("packages", f"{wanted.ecosystem} package {wanted.name} is not on the stage's list: add it to `packages`")
        index = await _index(source, wanted)
        served.server = index.origin[1]
        try:
            project = await source.project(index, wanted.name, f"{self._base}{PREFIX}npm/")
            if wanted.file is None:
                await self._send(exchange, served, project.document, project.content_type)
                return
            file = _listed(project, wanted.file)
            served.what = f"{wanted.ecosystem} {file.name}"
            opened, served.is_cached = await source.opened(index, file)
            with opened:
                await self._send_file(exchange, served, opened)
            self._note(self._files, served.what)
        except NotThere as error:
            self._count_unknown(wanted)
            raise Refusal(404, "not_found_error", f"the index has no {served.what}", retry=False) from error
        except AddressRefused as error:
            raise RegistryRefusal("addresses", str(error)) from error
        except Unavailable as error:
            raise Refusal(502, "api_error", f"the index {served.server} did not give {served.what}: {error}", retry=False) from error

    def _admitted(self, exchange: Exchange) -> PackageSource:
        if self._network == "none" or self._source is None:
            raise RegistryRefusal(
                "network", "this stage has `network: none`; packages need `network: registries` or `allowlist` in the pipeline"
            )
        if exchange.method not in {"GET", "HEAD"}:
            raise RegistryRefusal("methods", "only GET and HEAD")
        if self._requests >= REQUESTS_MAX:
            raise RegistryRefusal("bounds", f"more than {REQUESTS_MAX} requests in one attempt")
        if self._bytes >= BYTES_MAX:
            raise RegistryRefusal("bounds", f"more than {BYTES_MAX >> 20} MiB in one attempt")
        self._requests += 1
        return self._source

    def _count_unknown(self, wanted: Wanted) -> None:
        self._unknown.add((f"{wanted.ecosystem} {wanted.name}", wanted.file))
        if len(self._unknown) > UNKNOWN_MAX:
            self._requests = REQUESTS_MAX
            raise RegistryRefusal("bounds", f"more than {UNKNOWN_MAX} names that no index has: no further request is answered")

    def _note(self, into: dict[str, None], line: str) -> None:
        if len(into) < REQUESTS_MAX:
            into.setdefault(line)

    async def _send(self, exchange: Exchange, served: "_Served", body: bytes, content_type: str) -> None:
        await _begin(exchange, len(body), content_type)
        if exchange.method == "GET":
            await exchange.write(body)
            self._count(served, len(body))
        await exchange.end()

    async def _send_file(self, exchange: Exchange, served: "_Served", file: BinaryIO) -> None:
        size = await asyncio.to_thread(file.seek, 0, 2)
        await asyncio.to_thread(file.seek, 0)
        await _begin(exchange, size, "application/octet-stream")
        while exchange.method == "GET" and (chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES)):
            await exchange.write(chunk)
            self._count(served, len(chunk))
        await exchange.end()

    def _count(self, served: "_Served", size_bytes: int) -> None:
        served.size_bytes += size_bytes
        self._bytes += size_bytes


@dataclass
class _Served:
    """What became of one request."""

    what: str = ""
    server: str = ""
    status: int = 200
    rule: str = ""
    size_bytes: int = 0
    is_cached: bool = False


def wanted_of(target: str) -> Wanted:
    """Return what a raw target asks for.

    Raises:
        RegistryRefusal: It is none of our routes, or names nothing in normal form.
    """
    if match := _PIP.fullmatch(target):
        name = match["page"] or match["name"]
        ecosystem: Ecosystem = "pip"
        check = pip_name
    elif match := _NPM.fullmatch(target):
        name = re.sub("%2f", "/", match["name"], flags=re.IGNORECASE)
        ecosystem, check = "npm", npm_name
    else:
        raise RegistryRefusal("routes", "only the page of a project and the files it lists")
    try:
        normal = check(name)
    except ValueError as error:
        raise RegistryRefusal("names", str(error)) from error
    if normal != name:
        raise RegistryRefusal("names", f"the normal form of this name is {normal}")
    number = int(match["number"]) if ecosystem == "pip" else 0
    return Wanted(ecosystem, number, name, unquote(match["file"]) if match["file"] else None)


async def _index(source: PackageSource, wanted: Wanted) -> Index:
    try:
        indexes = await source.indexes()
    except ConfigError as error:
        raise RegistryRefusal("configuration", f"on the executor's host: {error}") from error
    index = indexes.npm_of(wanted.name) if wanted.ecosystem == "npm" else next(iter(indexes.pip[wanted.number :]), None)
    if index is None:
        raise RegistryRefusal("indexes", f"the configuration of {wanted.ecosystem} on the executor's host names no such index")
    return index


def _listed(project: Project, name: str) -> ProjectFile:
    if name not in project.files:
        raise NotThere
    return project.files[name]


async def _begin(exchange: Exchange, size_bytes: int, content_type: str) -> None:
    await exchange.start(200, [("content-type", content_type), ("content-length", str(size_bytes)), ("cache-control", "no-store")])
