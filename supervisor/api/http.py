"""The supervisor's web server: `/metrics`, `/healthz` and `/runs/ID`, read-only, without anything secret.

It listens on loopback unless a person says otherwise.
"""

import contextlib
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST

CONNECTIONS_MAX: Final = 16
IDLE_S: Final = 5
HEAD_BYTES_MAX: Final = 8 << 10
_NO_SNIFF: Final = (b"x-content-type-options", b"nosniff")
_TEXT: Final = "text/plain; charset=utf-8"
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_PORT: Final = re.compile(rb":[0-9]{1,5}$")

_RUNS: Final = "/runs/"

Page = Callable[[], Awaitable[bytes]]
RunPage = Callable[[str], Awaitable[bytes | None]]
"""Takes a run's id; None: there is no such run."""


async def _no_run(_run_id: str) -> None:
    return None


async def serve(host: str, port: int, metrics: Page, run_page: RunPage = _no_run) -> None:
    """Serve until cancelled.

    Raises:
        OSError: The address cannot be listened on.
    """
    # Bound by us: the library would end the process where the address is taken.
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        config = uvicorn.Config(
            _app({"/metrics": (metrics, CONTENT_TYPE_LATEST), "/healthz": (_alive, _TEXT)}, run_page, _names_of(host)),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=IDLE_S,
            h11_max_incomplete_event_size=HEAD_BYTES_MAX,
        )
        server = _Server(config)
        try:
            await server.serve(sockets=[listener])
        finally:
            for each in server.servers:
                each.close()


class _Server(uvicorn.Server):
    """One that leaves signals to the process it is a part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _alive() -> bytes:
    return b"ok\n"


def _names_of(host: str) -> frozenset[bytes] | None:
    """Return the names a request may call this server by, None for any.

    Who listens on loopback is not to be read by a page of the web whose name was pointed at loopback (ABUSE A05); an address
    for others is called by names we cannot know.
    """
    if host not in _LOOPBACK:
        return None
    return frozenset(name.encode() for each in _LOOPBACK for name in (each, f"[{each}]"))


def _is_named(scope: Mapping[str, Any], names: frozenset[bytes]) -> bool:
    """Return whether a request's Host, its port aside, is one of `names`."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    return len(hosts) == 1 and _PORT.sub(b"", hosts[0].lower()) in names


def _app(pages: Mapping[str, tuple[Page, str]], run_page: RunPage, names: frozenset[bytes] | None) -> Any:
    async def found(path: str) -> tuple[bytes, str] | None:
        if path in pages:
            page, kind = pages[path]
            return await page(), kind
        body = await run_page(path.removeprefix(_RUNS)) if path.startswith(_RUNS) else None
        return None if body is None else (body, _TEXT)

    async def app(scope: Mapping[str, Any], _receive: Any, send: Callable[[Mapping[str, Any]], Awaitable[None]]) -> None:
        if names is not None and not _is_named(scope, names):
            status, kind, body = 421, _TEXT, b"not the name of this server\n"
        elif scope["method"] not in {"GET", "HEAD"}:
            status, kind, body = 405, _TEXT, b"only GET\n"
        elif (page := await found(scope["path"])) is None:
            status, kind, body = 404, _TEXT, b"no such page\n"
        else:
            status, (body, kind) = 200, page
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            _NO_SNIFF,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app
