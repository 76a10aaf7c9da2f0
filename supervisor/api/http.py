"""The supervisor's web server: `/metrics` and `/healthz`, read-only, without anything secret; loopback unless a person says otherwise."""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST

CONNECTIONS_MAX: Final = 16
IDLE_S: Final = 5
HEAD_BYTES_MAX: Final = 8 << 10
_TEXT: Final = "text/plain; charset=utf-8"

Page = Callable[[], Awaitable[bytes]]


async def serve(host: str, port: int, metrics: Page) -> None:
    """Serve until cancelled.

    Raises:
        OSError: The address cannot be listened on.
    """
    # Bound by us: the library would end the process where the address is taken.
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        config = uvicorn.Config(
            _app({"/metrics": (metrics, CONTENT_TYPE_LATEST), "/healthz": (_alive, _TEXT)}),
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


def _app(pages: Mapping[str, tuple[Page, str]]) -> Any:
    async def app(scope: Mapping[str, Any], _receive: Any, send: Callable[[Mapping[str, Any]], Awaitable[None]]) -> None:
        page = pages.get(scope["path"])
        if scope["method"] not in {"GET", "HEAD"}:
            status, kind, body = 405, _TEXT, b"only GET\n"
        elif page is None:
            status, kind, body = 404, _TEXT, b"no such page\n"
        else:
            status, kind, body = 200, page[1], await page[0]()
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app
