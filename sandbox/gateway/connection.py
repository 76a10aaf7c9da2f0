"""One HTTP/1.1 connection over a unix socket: framing by h11, every size and wait bounded; no routes, no policy."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

import h11

from sandbox.gateway.peer import Peer
from sandbox.gateway.refusal import ClientGone, Refusal

HEADER_BYTES_MAX = 16 * 1024
HEADER_TIMEOUT_S = 2.0
IDLE_TIMEOUT_S = 60.0
"""Between two requests on one connection; an idle connection gives way when there are too many."""
BODY_TIMEOUT_S = 30.0
WRITE_TIMEOUT_S = 60.0
WRITE_BUFFER_BYTES = 4 << 20
"""A client that reads slowly, or is frozen, does not stall the provider's stream below this."""
CLOSE_TIMEOUT_S = 2.0
_CHUNK_BYTES = 64 * 1024
JSON_TYPE = "application/json"


@dataclass(frozen=True)
class Timeouts:
    """How long a client may take, in seconds."""

    header_s: float = HEADER_TIMEOUT_S
    idle_s: float = IDLE_TIMEOUT_S
    body_s: float = BODY_TIMEOUT_S
    write_s: float = WRITE_TIMEOUT_S


class BodyAllowance:
    """How many body bytes may be held in memory at once, over all connections."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max

    def take(self, count: int) -> None:
        """Count bytes that arrived.

        Raises:
            Refusal: 503, to be retried: too many are held already.
        """
        if count > self._left:
            raise Refusal(503, "api_error", "too many request bytes at once", retry=True)
        self._left -= count

    def give_back(self, count: int) -> None:
        """Count bytes that are no longer held."""
        self._left += count


class Connection:
    """One accepted connection, from its first byte to its end."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: Peer,
        *,
        timeouts: Timeouts,
        bodies: BodyAllowance,
        on_bytes: Callable[[], None],
        gzip_targets: Collection[str] = (),
    ) -> None:
        self.peer = peer
        self.gzip_targets = gzip_targets
        """Targets whose bodies may come as gzip; the route unpacks them, bounded."""
        self.is_idle = True
        """No request is being read or answered: it may be closed to make room."""
        self._reader = reader
        self._writer = writer
        self._timeouts = timeouts
        self._bodies = bodies
        self._on_bytes = on_bytes
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES_MAX)
        writer.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    async def serve(self, answer: Callable[["Exchange"], Awaitable[None]]) -> None:
        """Answer requests until the client leaves, breaks the protocol, or is too slow."""
        wait_s = self._timeouts.header_s
        with suppress(ClientGone):
            while exchange := await self._next_exchange(wait_s):
                try:
                    await exchange.run(answer)
                finally:
                    exchange.release()
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    return
                self._http.start_next_cycle()
                self.is_idle = True
                wait_s = self._timeouts.idle_s

    async def turn_away(self, refusal: Refusal) -> None:
        """Refuse the whole connection before anything is read from it."""
        with suppress(ClientGone):
            await Exchange(self, None).refuse(refusal)

    def close(self) -> None:
        """Drop the connection now; what is being answered goes on without its client."""
        with suppress(AttributeError):  # what asyncio says of a transport that has sent its last bytes and is gone (CPython 3.11)
            self._writer.transport.abort()

    async def wait_closed(self) -> None:
        """Close the connection, flushing what was written, for at most two seconds."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._linger()
                self._writer.close()
                await self._writer.wait_closed()
        self.close()

    async def _linger(self) -> None:
        """After a reply to a request that was not read, swallow what still comes: a reset would take the reply with it."""
        if self.is_request_read or self._http.our_state is not h11.MUST_CLOSE or self._writer.is_closing():
            return
        self._writer.write_eof()
        while await self._reader.read(_CHUNK_BYTES):
            pass

    @property
    def is_gone(self) -> bool:
        """Whether the client has closed its end."""
        return self._reader.at_eof() or self._writer.is_closing()

    @property
    def is_request_read(self) -> bool:
        """Whether the whole request was read, so that nothing of it is left on the connection."""
        return self._http.their_state in {h11.DONE, h11.MUST_CLOSE, h11.CLOSED}

    async def _next_exchange(self, wait_s: float) -> "Exchange | None":
        try:
            request = await self._next_request(wait_s)
        except TimeoutError:
            return None
        except Refusal as refusal:
            await Exchange(self, None).refuse(refusal)
            return None
        if request is None:
            return None
        self.is_idle = False
        exchange = Exchange(self, request)
        if not exchange.has_body:
            self._event()  # the end of the message, which h11 holds ready
        return exchange

    async def _next_request(self, wait_s: float) -> h11.Request | None:
        has_begun = False
        async with asyncio.timeout(wait_s) as limit:
            while True:
                event = self._event()
                if isinstance(event, h11.Request):
                    return _of_bounded_size(event)
                if event is not h11.NEED_DATA:
                    return None
                await self._receive()
                if not has_begun:
                    has_begun = True
                    limit.reschedule(asyncio.get_running_loop().time() + self._timeouts.header_s)

    async def receive_data(self) -> bytes | None:
        """Return the next piece of the request's body, None at its end."""
        while True:
            event = self._event()
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if event is not h11.NEED_DATA:
                return None
            await self._receive()

    def hold(self, count: int) -> None:
        """Count body bytes against the allowance of all connections."""
        self._bodies.take(count)

    def release(self, count: int) -> None:
        """Give held body bytes back."""
        self._bodies.give_back(count)

    @property
    def body_timeout_s(self) -> float:
        """How long a whole body may take."""
        return self._timeouts.body_s

    async def send(self, *events: h11.Event) -> None:
        """Write events to the client.

        Raises:
            ClientGone: The client closed its end, or did not read for too long.
        """
        data = b"".join(self._http.send(event) or b"" for event in events)
        if self._writer.is_closing():
            raise ClientGone
        self._writer.write(data)
        try:
            async with asyncio.timeout(self._timeouts.write_s):
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            self.close()
            raise ClientGone from error

    def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            raise Refusal(error.error_status_hint, "invalid_request_error", "the request is not well-formed HTTP/1.1") from error

    async def _receive(self) -> None:
        try:
            data = await self._reader.read(_CHUNK_BYTES)
        except OSError as error:
            raise ClientGone from error
        if data:
            self._on_bytes()
        self._http.receive_data(data)


class Exchange:
    """One request and its reply."""

    def __init__(self, connection: Connection, request: h11.Request | None) -> None:
        """Take `request`; None stands for one that could not be read and can only be refused."""
        self.method = request.method.decode("ascii") if request else ""
        self.target = request.target.decode("latin-1") if request else ""
        self.peer = connection.peer
        self.has_started = False
        """The reply's head was sent."""
        self._headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers] if request else []
        self._connection = connection
        self._held_bytes = 0

    async def run(self, answer: Callable[["Exchange"], Awaitable[None]]) -> None:
        """Answer this request, with the refusal if one is raised.

        Raises:
            ClientGone: The client left, or the reply broke off after it had begun.
        """
        try:
            self._check_framing()
            await answer(self)
        except Refusal as refusal:
            if self.has_started:
                raise ClientGone from refusal
            await self.refuse(refusal)

    async def refuse(self, refusal: Refusal) -> None:
        """Send a refusal as the whole reply."""
        await self.reply(refusal.status, refusal.body(), headers=refusal.headers())

    @property
    def has_body(self) -> bool:
        """Whether the request announces a body, empty or not."""
        return bool(self.values("content-length") or self.values("transfer-encoding"))

    def values(self, name: str) -> list[str]:
        """Return a header's values in the order they came; `name` in lower case."""
        return [value for header, value in self._headers if header == name]

    @property
    def is_gone(self) -> bool:
        """Whether the client has closed its end."""
        return self._connection.is_gone

    async def read_body(self, bytes_max: int) -> bytes:
        """Return the request's body.

        Raises:
            Refusal: 413 if it is larger than `bytes_max`, 408 if it takes too long, 503 if too much is held already.
        """
        declared = self.values("content-length")
        if declared and int(declared[0]) > bytes_max:
            raise Refusal(413, "request_too_large", f"a body of {declared[0]} bytes; at most {bytes_max}", retry=False)
        body = bytearray()
        try:
            async with asyncio.timeout(self._connection.body_timeout_s):
                while (piece := await self._connection.receive_data()) is not None:
                    if len(body) + len(piece) > bytes_max:
                        raise Refusal(413, "request_too_large", f"a body of more than {bytes_max} bytes", retry=False)
                    self._connection.hold(len(piece))
                    self._held_bytes += len(piece)
                    body += piece
        except TimeoutError as error:
            raise Refusal(408, "invalid_request_error", "the body took too long") from error
        return bytes(body)

    def release(self) -> None:
        """Give the body's bytes back to the allowance; the exchange is over."""
        self._connection.release(self._held_bytes)
        self._held_bytes = 0

    async def reply(self, status: int, body: bytes, kind: str = JSON_TYPE, *, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send a whole reply of a media type."""
        await self.start(status, [("content-type", kind), ("content-length", str(len(body))), *headers])
        await self.write(body)
        await self.end()

    async def start(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Send the reply's head; without a content length the body is chunked."""
        self.has_started = True
        # A body that was not read would be taken for the next request.
        closing = [] if self._connection.is_request_read else [("connection", "close")]
        await self._connection.send(h11.Response(status_code=status, headers=[*headers, *closing]))

    async def write(self, data: bytes) -> None:
        """Send a piece of the reply's body."""
        if data:
            await self._connection.send(h11.Data(data=data))

    async def end(self) -> None:
        """Finish the reply."""
        await self._connection.send(h11.EndOfMessage())

    def _check_framing(self) -> None:
        # h11 takes a request with both and ignores the length; another parser may not (ABUSE W12).
        if self.values("transfer-encoding") and self.values("content-length"):
            raise Refusal(400, "invalid_request_error", "both transfer-encoding and content-length", retry=False)
        codings = self.values("content-encoding")
        may_be_gzip = self.target in self._connection.gzip_targets
        if any(value.strip().lower() != "identity" for value in codings) and not (may_be_gzip and codings == ["gzip"]):
            raise Refusal(400, "invalid_request_error", f"content-encoding: only identity{' or gzip' * may_be_gzip}", retry=False)


def _of_bounded_size(request: h11.Request) -> h11.Request:
    """Return `request`; h11 bounds only a header that came in pieces."""
    if sum(len(name) + len(value) for name, value in request.headers) + len(request.target) > HEADER_BYTES_MAX:
        raise Refusal(431, "invalid_request_error", f"a header of more than {HEADER_BYTES_MAX} bytes", retry=False)
    return request
