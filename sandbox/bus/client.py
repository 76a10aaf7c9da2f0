"""The client library with its traps handled (NATS.md §9); not JetStream (`connection`), nor what is said (the links).

The only importer of `nats`. Rules it keeps for everyone above:

- every call is bounded and fails with `BrokerError`; it waits for a lost connection within its own time
- a call or pull that a lost connection swallowed fails at once
- nothing larger than the broker takes is sent: one oversized message would close the connection for good
- the library never gives up reconnecting; what it cannot survive (a broken read loop, a refused key) ends `wait_lost`
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeVar

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.aio.transport import TcpTransport

from sandbox.bus.lifetimes import Tasks, completed
from sandbox.bus.messages import Interrupted, Message, NoAnswer, Subscription, checked_subject
from sandbox.bus.quiet import hush_ends_of_tls
from sandbox.contract.credentials import Credentials, inbox_prefix
from sandbox.contract.errors import BrokerError, BrokerRefused
from sandbox.log import Log

logger = Log(__name__)

T = TypeVar("T")

CALL_S = 5.0
"""How long one request may take."""
CONNECT_S = 10.0
SERVER_VERSION_MIN = (2, 12)
"""Message time-to-live and batched direct reads; Debian's 2.9 lacks both."""
HEADERS_BYTES_MAX = 4096
"""Room a payload leaves for its headers below the broker's max_payload."""
REFUSALS_MAX = 5
"""Refused reconnects in a row (a second or two) after which the key is taken as revoked."""
WATCH_S = 10.0
DRAIN_S = 1.0
"""How long a connection that is about to close may take to give back what was on the way."""
NEVER_S = 1 << 30
"""A PING is never given up: its late PONG would kill the library's reader."""

Late = Callable[[Message], Awaitable[None]]

_OPTIONS: dict[str, Any] = {
    "max_reconnect_attempts": -1,  # the default gives up after two minutes, for good
    "reconnect_time_wait": 0.25,
    "connect_timeout": 3,
    "ping_interval": 10,  # the default notices a dead peer after four minutes; ours within half the lease
    "max_outstanding_pings": 2,
    "flush_timeout": 5,
}


class NatsClient:
    """A connection that lives as long as its context; see the module for what it promises."""

    def __init__(self, client: Client, inbox: str, tasks: Tasks, probe: str) -> None:
        self._client = client
        self._inbox = inbox
        self._tasks = tasks
        self._probe = probe
        self._pongs: set[asyncio.Future[None]] = set()
        self._up = asyncio.Event()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._subscriptions: set[Subscription] = set()
        self._closing = False
        self._refusals = 0
        self._errors = 0
        self._last_error = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, credentials: Credentials, *, name: str, inbox: str, connect_s: float = CONNECT_S) -> AsyncIterator[Self]:
        """Connect, and disconnect at the end of the context.

        Args:
            credentials: Where to and as whom.
            name: What the broker shows as the connection's name.
            inbox: Prefix of the subjects replies come to; unlike the default one no other user may listen there.
            connect_s: How long the first connect may take.

        Raises:
            BrokerRefused: The broker knows no such key, or shows a certificate the credentials do not vouch for.
            BrokerError: Nobody is there, or the server is too old.
        """
        hush_ends_of_tls()
        async with Tasks.open() as tasks:
            connection = cls(Client(), inbox, tasks, credentials.probe)
            watch: asyncio.Task[None] | None = None
            try:
                await connection._connect(credentials, name, connect_s)
                watch = asyncio.create_task(connection._watch())
                yield connection
            finally:
                await completed(tasks.wait(DRAIN_S), 2 * DRAIN_S)
                connection._closing = True
                if watch is not None:
                    watch.cancel()
                await completed(connection._close(), CALL_S)

    @property
    def is_clustered(self) -> bool:
        """Return whether the server says that it is one of a cluster, where a stream's leader has to be elected now and then."""
        return bool(self._client._server_info.get("cluster"))

    @property
    def payload_bytes_max(self) -> int:
        """Return the largest payload that may be sent with headers."""
        return self._client.max_payload - HEADERS_BYTES_MAX

    async def wait_lost(self) -> str:
        """Wait until the connection is gone for good and return why; it never returns while reconnecting can help."""
        return await asyncio.shield(self._lost)

    @property
    def is_lost(self) -> bool:
        """Return whether the connection is gone for good."""
        return self._lost.done()

    async def publish(self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Send without an answer: it may be lost, and is dropped while there is no connection."""
        self._check_size(subject, payload, headers or {})
        if self._up.is_set() and not self._lost.done():
            with suppress(nats_errors.Error):  # one-way messages are droppable by contract
                await self._client.publish(subject, payload, reply=reply, headers=dict(headers) if headers else None)

    async def request(
        self, subject: str, payload: bytes = b"", *, timeout_s: float = CALL_S, headers: Mapping[str, str] | None = None
    ) -> Message:
        """Send and return the answer.

        Raises:
            NoAnswer: Nobody listens.
            Interrupted: The connection broke meanwhile.
            BrokerError: No answer within `timeout_s`, or the connection is gone for good.
            ValueError: The message is larger than the broker takes.
        """
        self._check_size(subject, payload, headers or {})
        errors = self._errors
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready()
                call = self._client.request(subject, payload, timeout=timeout_s, headers=dict(headers) if headers else None)
                answer = await self._unbroken(call)
        except nats_errors.NoRespondersError as error:
            raise NoAnswer(f"nobody answers on {subject}") from error
        except (TimeoutError, nats_errors.Error) as error:
            # A denied publish is not answered at all; the broker's complaint arrives beside it.
            why = f": {self._last_error}" if self._errors != errors else f" within {timeout_s:g} s"
            raise BrokerError(f"no answer on {subject}{why}") from error
        return _message(answer)

    @asynccontextmanager
    async def subscription(self, *subjects: str, capacity: int = 4096, late: Late | None = None) -> AsyncIterator[Subscription]:
        """Subscribe for as long as the context lasts, over reconnects; a subject we have no right to stays silent.

        Args:
            subjects: What to listen to.
            capacity: How many messages may wait to be taken.
            late: Is given every message that was not taken, those included that were on the way at the end of the context;
                by a task of the connection, so that leaving, or being cancelled, does not wait for the broker.
        """
        await self.wait_up(CALL_S)
        subscription = Subscription(capacity)

        async def take(message: Msg) -> None:
            subscription.take(_message(message))

        handles = [await self._client.subscribe(subject, cb=take) for subject in subjects]
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            if late is not None and not subscription.is_over:
                self._tasks.start(self._drain(handles, subscription, late))
            else:
                await _unsubscribe(handles)

    def new_inbox(self) -> str:
        """Return a subject of our own for one exchange."""
        return self._client.new_inbox()

    async def wait_up(self, wait_s: float) -> None:
        """Wait at most `wait_s` for a lost connection to come back.

        Raises:
            BrokerError: It did not.
        """
        try:
            async with asyncio.timeout(wait_s):
                await self._ready()
        except TimeoutError:
            raise BrokerError(f"no connection to the broker for {wait_s:g} s: {self._last_error}") from None

    async def _connect(self, credentials: Credentials, name: str, connect_s: float) -> None:
        key: dict[str, Any] = {"nkeys_seed_str": credentials.nkey_seed} if credentials.nkey_seed else {}
        if credentials.creds_file is not None:
            key = {"user_credentials": str(credentials.creds_file)}
        if credentials.ca is not None:
            key["tls"] = ssl.create_default_context(cadata=credentials.ca)
        connecting = asyncio.ensure_future(
            self._client.connect(
                credentials.url.split(","),
                name=name,
                inbox_prefix=inbox_prefix(self._inbox),
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnect,
                reconnected_cb=self._on_reconnect,
                closed_cb=self._on_closed,
                **key,
                **_OPTIONS,
            )
        )
        try:
            first: set[asyncio.Future[Any]] = {connecting, self._refused}
            await asyncio.wait(first, timeout=connect_s, return_when=asyncio.FIRST_COMPLETED)
            if self._refused.done():
                raise BrokerRefused(f"the broker at {credentials.url} {self._refused.result()}")
            if not connecting.done():
                raise BrokerError(f"no broker at {credentials.url}: {self._last_error or f'no answer within {connect_s:g} s'}")
            connecting.result()
        except (OSError, nats_errors.Error) as error:
            raise BrokerError(f"no broker at {credentials.url}: {error}") from error
        finally:
            connecting.cancel()
            await asyncio.wait({connecting})
        if self._is_in_clear_text:
            raise BrokerRefused(f"the broker at {credentials.url} speaks clear text; its credentials file says TLS")
        version = self._client.connected_server_version
        if (version.major, version.minor) < SERVER_VERSION_MIN:
            raise BrokerError(f"nats-server {version} at {credentials.url} is too old; 2.12 or later is needed")
        self._up.set()

    async def _drain(self, handles: list[NatsSubscription], subscription: Subscription, late: Late) -> None:
        """End the deliveries of a subscription, and hand over what the broker had sent before it knew."""
        broken = self._broken
        try:
            for handle in handles:
                # The library's `unsubscribe` would drop what is on the way, its `drain` give up a PING (NATS.md §9).
                await self._client._send_unsubscribe(handle._id)
            if self._closing or self._lost.done():
                return
            pong = asyncio.ensure_future(self._client.flush(NEVER_S))
            self._pongs.add(pong)
            pong.add_done_callback(self._pongs.discard)
            first: set[asyncio.Future[None]] = {pong, broken}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if pong.done():
                pong.exception()  # the connection is closed: nothing is on the way any more
            for _ in range(max(handle.pending_msgs for handle in handles) + 1):  # here, on their way through the library
                await asyncio.sleep(0)
        finally:
            await _unsubscribe(handles)
            for message in subscription.left():
                await late(message)

    async def _close(self) -> None:
        await self._client.close()
        self._drop_transport()
        for pong in self._pongs:  # of a connection that is gone: nothing can answer them any more
            pong.cancel()

    def _drop_transport(self) -> None:
        # The library forgets the socket of a connect that failed half way, or was cancelled; it has no public handle to it.
        transport: Any = self._client._transport
        if transport:
            transport.close()

    async def _ready(self) -> None:
        await self._up.wait()
        if self._lost.done():
            raise BrokerError(f"the connection to the broker is closed: {self._lost.result()}")

    async def _unbroken(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call of the library, but no longer than the connection lives."""
        task = asyncio.ensure_future(call)
        try:
            first: set[asyncio.Future[Any]] = {task, self._broken}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Interrupted("the connection to the broker broke under a call")
            return task.result()
        finally:
            task.cancel()

    def _check_size(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        head = len(checked_subject(subject)) + sum(len(key) + len(value) + 4 for key, value in headers.items())
        if head > HEADERS_BYTES_MAX - 64 or len(payload) > self.payload_bytes_max:
            raise ValueError(f"message of {len(payload)} bytes for {subject}; at most {self.payload_bytes_max}")

    def _interrupt(self, error: Interrupted) -> None:
        self._up.clear()
        self._broken.set_result(None)
        self._broken = asyncio.get_running_loop().create_future()
        for subscription in self._subscriptions:
            subscription.interrupt(error)

    def _lose(self, why: str) -> None:
        if not self._lost.done():
            self._lost.set_result(why)
            self._interrupt(Interrupted(f"the connection to the broker is closed: {why}"))
            for subscription in self._subscriptions:
                subscription.end(BrokerError(f"the connection to the broker is closed: {why}"))
            self._up.set()  # so that whoever waits for it looks, and fails

    async def _on_error(self, error: Exception) -> None:
        self._errors += 1
        self._last_error = str(error) or type(error).__name__
        if self._client.is_reconnecting or self._client.is_connecting:
            self._drop_transport()
        if self._closing or self._lost.done():
            return
        if isinstance(error, ssl.SSLCertVerificationError):
            self._refuse(
                f"shows a certificate its credentials file does not vouch for ({error.verify_message}); get a new credentials file"
            )
        if "authorization" in self._last_error.lower() or "authentication" in self._last_error.lower():
            self._refusals += 1
            # The words of this moment: the broker closes the socket beside its refusal, and that is an error of its own.
            self._refuse(f"refuses the key of {self._client.options.get('name')}: {self._last_error}")
            if self._refusals >= REFUSALS_MAX:
                self._lose(f"{REFUSALS_MAX} refusals in a row: {self._last_error}")
        logger.warning("broker.error", "the broker connection reported an error", detail=self._last_error)

    def _refuse(self, why: str) -> None:
        if not self._refused.done():
            self._refused.set_result(why)

    async def _on_disconnect(self) -> None:
        if not self._closing and not self._lost.done():
            self._interrupt(Interrupted("the connection to the broker was lost"))

    @property
    def _is_in_clear_text(self) -> bool:
        # The library goes on without TLS when a server, or somebody in between, says that it needs none.
        url, transport = self._client.connected_url, self._client._transport
        if url is None or url.scheme != "tls" or not isinstance(transport, TcpTransport) or transport._io_writer is None:
            return False
        return transport._io_writer.get_extra_info("ssl_object") is None

    async def _on_reconnect(self) -> None:
        self._refusals = 0
        if self._is_in_clear_text:
            self._lose("it speaks clear text now; its credentials file says TLS")
            return
        if not self._lost.done():
            self._up.set()

    async def _on_closed(self) -> None:
        self._lose("closed by us" if self._closing else str(self._client.last_error or self._last_error))

    async def _watch(self) -> None:
        """Reconnect when nothing is heard although the socket looks open: a late PONG can kill the library's reader.

        Once the connection is lost, close what is left of it.
        """
        silent = 0
        while True:
            received = self._client.stats["in_msgs"]
            await asyncio.wait({self._lost}, timeout=WATCH_S)
            if self._lost.done():  # nothing is asked of it any more: stop its reconnecting
                await completed(self._close(), CALL_S)
                return
            if not self._up.is_set() or self._client.stats["in_msgs"] != received or await self._is_answered():
                silent = 0
                continue
            silent += 1
            if silent >= 2:
                logger.warning("broker.silent", "the broker is silent; reconnecting")
                silent = 0
                await self._client.force_reconnect()

    async def _is_answered(self) -> bool:
        try:  # this user may ask it; there is no such message
            await self.request(self._probe, b'{"last_by_subj": "watch"}')
        except (NoAnswer, Interrupted):
            return True
        except BrokerError:
            return False
        return True


async def _unsubscribe(handles: list[NatsSubscription]) -> None:
    for handle in handles:
        with suppress(nats_errors.Error):  # closed meanwhile: nothing to unsubscribe from
            await handle.unsubscribe()


def _message(message: Msg) -> Message:
    return Message(message.subject, message.data, message.headers or {}, message.reply)
