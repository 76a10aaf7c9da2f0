"""One GET to a package index or to where its files are: address judged and pinned, redirects judged again, size and time bounded.

Credentials go to the very origin the host's configuration has them for, and to no other. Not: what may be asked for
(`proxy`), what the answer means (`pip`, `npm`).
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

import httpx2

from sandbox.gateway.registries.address import AddressRefused, Network, checked_host, literal_address, permitted_address
from sandbox.gateway.registries.config import Index, origin_of

REDIRECTS_MAX = 3
FETCH_S = 240.0
"""For one whole reply."""
CLIENTS_MAX = 32
"""Hosts whose connections are kept."""
URL_CHARS_MAX = 4_096
_TIMEOUT = httpx2.Timeout(connect=10.0, read=30.0, write=10.0, pool=10.0)
_CHUNK_BYTES = 1 << 20


class NotThere(Exception):
    """The index does not have it."""


class Unavailable(Exception):
    """The index could not be asked, or its answer is none; the message is safe to show and names no credential."""


class Reply:
    """A reply of status 200 that has begun."""

    def __init__(self, response: httpx2.Response, url: str) -> None:
        self.url = url
        """Where it came from in the end; relative addresses in it are relative to this."""
        self.content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._response = response

    async def chunks(self, bytes_max: int) -> AsyncIterator[bytes]:
        """Yield the body in pieces of about a MiB.

        Raises:
            Unavailable: It is larger than `bytes_max`, or broke off.
        """
        size = 0
        try:
            async for chunk in self._response.aiter_bytes(_CHUNK_BYTES):
                size += len(chunk)
                if size > bytes_max:
                    raise Unavailable(f"larger than {bytes_max} bytes")
                yield chunk
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise Unavailable("its answer broke off") from error

    async def read(self, bytes_max: int) -> bytes:
        """Return the whole body."""
        return b"".join([chunk async for chunk in self.chunks(bytes_max)])


class Fetcher:
    """Asks indexes; an async context manager that closes its connections."""

    def __init__(self, permitted: Sequence[Network] = ()) -> None:
        """Permit, besides global addresses, those in `permitted`."""
        self._permitted = tuple(permitted)
        self._clients: dict[tuple[object, ...], httpx2.AsyncClient] = {}

    async def __aenter__(self) -> Self:
        for library in ("httpcore2", "httpx2"):
            logging.getLogger(library).setLevel(logging.WARNING)  # their debug lines hold headers
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for client in self._clients.values():
            await client.aclose()

    @asynccontextmanager
    async def get(self, index: Index, url: str, accept: str) -> AsyncIterator[Reply]:
        """Open the reply to a GET.

        Args:
            index: In whose name it is asked for.
            url: Below the index, or what the index itself gave as the place of a file.
            accept: Media types.

        Raises:
            NotThere: The answer is 404 or 410.
            AddressRefused: The address, or one it redirects to, may not be connected to.
            Unavailable: Anything else that is not status 200.
        """
        try:
            async with asyncio.timeout(FETCH_S):
                response, url = await self._opened(index, url, accept)
                try:
                    yield Reply(response, url)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise Unavailable(f"no whole answer in {FETCH_S:.0f} s") from error

    async def _opened(self, index: Index, url: str, accept: str) -> tuple[httpx2.Response, str]:
        for _ in range(REDIRECTS_MAX + 1):
            response = await self._send(index, url, accept)
            if response.status_code == 200:
                return response, url
            location = response.headers.get("location", "")
            await response.aclose()
            if response.status_code in {404, 410}:
                raise NotThere
            if response.status_code not in {301, 302, 303, 307, 308} or not location:
                raise Unavailable(f"it answers with status {response.status_code}")
            try:
                url = urljoin(url, location)
            except ValueError:
                raise Unavailable("it leads to what is no address") from None
        raise Unavailable(f"more than {REDIRECTS_MAX} redirects")

    async def _send(self, index: Index, url: str, accept: str) -> httpx2.Response:
        parts = _judged(index, url)
        host = parts.hostname or ""
        headers = headers_for(index, parts, accept)
        client, target = await self._way(index, parts, host)
        try:
            request = httpx2.Request("GET", target, headers=headers, extensions={"sni_hostname": host, "timeout": _TIMEOUT.as_dict()})
            return await client.send(request, stream=True)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise Unavailable(f"{host} cannot be reached: {type(error).__name__}") from error

    async def _way(self, index: Index, parts: SplitResult, host: str) -> tuple[httpx2.AsyncClient, str]:
        """Return who asks, and the address to ask: that of the host itself, unless a proxy has to look it up."""
        scheme, _, port = origin_of(parts)
        if index.proxy:
            # Of a name only the proxy knows the address; an address itself is judged here too.
            if literal_address(host) is not None:
                await permitted_address(host, port, self._permitted)
            return await self._client((index.proxy, id(index.trust)), index.proxy, index.trust), urlunsplit(parts)
        try:
            address = await permitted_address(host, port, self._permitted)
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"{host} cannot be resolved") from error
        netloc = (f"[{address}]" if ":" in address else address) + f":{port}"
        # One client for each host: two hosts at one address must not share a connection that was verified for one of them.
        return await self._client((scheme, host, port, id(index.trust)), None, index.trust), urlunsplit((scheme, netloc, *parts[2:]))

    async def _client(self, key: tuple[object, ...], proxy: str | None, trust: ssl.SSLContext | None) -> httpx2.AsyncClient:
        if key in self._clients:
            return self._clients[key]
        while len(self._clients) >= CLIENTS_MAX:
            await self._clients.pop(next(iter(self._clients))).aclose()
        self._clients[key] = httpx2.AsyncClient(
            verify=trust or True,
            proxy=httpx2.Proxy(proxy, ssl_context=trust) if proxy else None,
            timeout=_TIMEOUT,
            limits=httpx2.Limits(max_connections=16, max_keepalive_connections=4, keepalive_expiry=15.0),
            follow_redirects=False,
            trust_env=False,
        )
        return self._clients[key]


def headers_for(index: Index, parts: SplitResult, accept: str) -> list[tuple[str, str]]:
    """Return the headers of a request; the credential is for the index's own scheme, host and port alone."""
    headers = [("host", parts.netloc), ("accept", accept), ("accept-encoding", "identity"), ("user-agent", "andon-gateway")]
    if index.authorization and origin_of(parts) == index.origin:
        headers.append(("authorization", index.authorization))
    return headers


def _judged(index: Index, url: str) -> SplitResult:
    """Return the parts of an address that may be asked: TLS, or the index itself where the operator chose it without."""
    if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable():
        raise AddressRefused("an address that is too long, or not printable ASCII")
    try:
        parts = urlsplit(url)
        host = checked_host(parts.hostname or "")
        origin = origin_of(parts)
    except ValueError as error:
        raise AddressRefused("an address whose host or port makes no sense") from error
    if parts.username is not None or parts.password is not None:
        raise AddressRefused(f"an address on {host} with a user in it")
    if parts.scheme != "https" and origin != index.origin:
        raise AddressRefused(f"an address on {host} without TLS")
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=(f"[{host}]" if ":" in host else host) + port, path=parts.path or "/", fragment="")
