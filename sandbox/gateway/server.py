"""The listener of one attempt: a unix socket, literal routes, a cap on connections; not what a route does (`session`)."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox.gateway.connection import BodyAllowance, Connection, Exchange, Timeouts
from sandbox.gateway.peer import Peer, peer_of
from sandbox.gateway.refusal import ClientGone, Refusal
from sandbox.log import Log

log = Log(__name__)

CONNECTIONS_MAX = 32
OPEN_MAX = 4 * CONNECTIONS_MAX
"""With those that are being turned away or closed; beyond it a connection is dropped without a word."""
BODIES_BYTES_MAX = 64 << 20
"""Request bodies held at once, over all connections of one attempt."""
DRAIN_TIMEOUT_S = 60.0
"""How long calls that are on their way may go on after the attempt's end (DECISIONS D7)."""

Route = Callable[[Exchange], Awaitable[None]]


class Server:
    """Listens as long as its context is open; leaving it drops every client and waits for the calls on their way."""

    def __init__(
        self,
        path: Path,
        routes: Mapping[tuple[str, str], Route],
        *,
        below: Mapping[str, Route] | None = None,
        peer_uid: int | None,
        timeouts: Timeouts | None = None,
        on_bytes: Callable[[], None] = lambda: None,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        gzip_targets: Collection[str] = (),
    ) -> None:
        """Prepare a listener.

        Args:
            path: The socket; at most about 100 bytes, in a directory only we may write.
            routes: Handler by (method, raw target). The target is compared as it came: nothing is decoded or joined.
            below: Handler of everything that begins with a prefix, whatever the method; it judges the rest of the target itself.
            peer_uid: The only uid that may talk to us; None: any.
            timeouts: How long a client may take.
            on_bytes: Called whenever bytes arrive.
            drain_timeout_s: How long leaving may wait for calls on their way before it cancels them.
            gzip_targets: Targets whose routes unpack gzip themselves.
        """
        self._path = path
        self._routes = routes
        self._targets = {target for _, target in routes}
        self._below = dict(below or {})
        self._peer_uid = peer_uid
        self._timeouts = timeouts or Timeouts()
        self._on_bytes = on_bytes
        self._drain_timeout_s = drain_timeout_s
        self._gzip_targets = gzip_targets
        self._bodies = BodyAllowance(BODIES_BYTES_MAX)
        self._connections: dict[Connection, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_unix_server(self._accept, sock=self._bind())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._listener:
            self._listener.close()
        self._path.unlink(missing_ok=True)
        for connection in list(self._connections):
            connection.close()
        await self._finish_tasks()

    def _bind(self) -> socket.socket:
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._path))
            # Nobody can connect before listen(), so the modes are in place in time.
            self._path.chmod(0o600)
            if self._peer_uid is not None and self._peer_uid != os.geteuid():
                os.chown(self._path, self._peer_uid, -1)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener

    async def _finish_tasks(self) -> None:
        try:
            await _wait(self._tasks, self._drain_timeout_s)
        finally:  # also when leaving is cancelled: a cancelled call still settles what it reserved
            for task in self._tasks:
                task.cancel()
            await _wait(self._tasks, self._drain_timeout_s)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a TaskGroup: a fault in one connection must not end its siblings. `_finish_tasks` is where these tasks end.
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.exception("gateway.connection_broke", "a connection broke", error=error)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) > OPEN_MAX:
            writer.transport.abort()
            return
        try:
            peer = peer_of(writer.get_extra_info("socket"))
        except OSError:  # gone before we looked
            writer.transport.abort()
            return
        connection = Connection(
            reader,
            writer,
            peer,
            timeouts=self._timeouts,
            bodies=self._bodies,
            on_bytes=self._on_bytes,
            gzip_targets=self._gzip_targets,
        )
        try:
            if refusal := self._admission(peer):
                await connection.turn_away(refusal)
            else:
                self._connections[connection] = None
                await connection.serve(self._answer)
        finally:
            self._connections.pop(connection, None)
            await connection.wait_closed()

    def _admission(self, peer: Peer) -> Refusal | None:
        if self._peer_uid is not None and peer.uid != self._peer_uid:
            log.warning("gateway.peer_refused", "another user came to the socket", uid=peer.uid)
            return Refusal(403, "permission_error", "this socket belongs to another user", retry=False)
        if len(self._connections) >= CONNECTIONS_MAX:
            oldest_idle = next((connection for connection in self._connections if connection.is_idle), None)
            if oldest_idle is None:
                return Refusal(503, "overloaded_error", f"more than {CONNECTIONS_MAX} requests at once", retry=True)
            del self._connections[oldest_idle]
            oldest_idle.close()
        return None

    async def _answer(self, exchange: Exchange) -> None:
        route = self._routes.get((exchange.method, exchange.target)) or self._route_below(exchange.target)
        if route is None:
            if exchange.target in self._targets or exchange.method == "CONNECT":
                raise Refusal(405, "invalid_request_error", "this route does not take that method", retry=False)
            raise Refusal(404, "not_found_error", "no such route", retry=False)
        try:
            await route(exchange)
        except (Refusal, ClientGone):
            raise
        except Exception as error:  # our bug, in one request: the attempt's other requests and its clean-up go on
            log.exception("gateway.broke", "a request broke")
            raise Refusal(500, "api_error", "the gateway failed", retry=False) from error

    def _route_below(self, target: str) -> Route | None:
        return next((route for prefix, route in self._below.items() if target.startswith(prefix)), None)


async def _wait(tasks: set[asyncio.Task[None]], timeout_s: float) -> None:
    if tasks:
        await asyncio.wait(set(tasks), timeout=timeout_s)
