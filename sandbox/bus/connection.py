"""One connection to NATS with the client library's traps handled (NATS.md §9); not what is said over it (the links).

The only importer of `nats`. Rules it keeps for everyone above:

- every call is bounded and fails with `BrokerError`; it waits for a lost connection within its own time
- a call or pull that a lost connection swallowed fails at once
- nothing larger than the broker takes is sent: one oversized message would close the connection for good
- the library never gives up reconnecting; what it cannot survive (a broken read loop, a refused key) ends `wait_lost`
"""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from sandbox.bus.lifetimes import completed
from sandbox.bus.messages import ApiError, Interrupted, Message, NoAnswer, Subscription
from sandbox.contract.credentials import Credentials
from sandbox.contract.errors import BrokerError

logger = logging.getLogger(__name__)

T = TypeVar("T")

CALL_S = 5.0
"""How long one request may take."""
CONNECT_S = 10.0
SERVER_VERSION_MIN = (2, 12)
"""Message time-to-live and batched direct reads; Debian's 2.9 lacks both."""
HEADERS_BYTES_MAX = 4096
"""Room a payload leaves for its headers below the broker's max_payload."""
REFUSALS_MAX = 20
"""Refused reconnects in a row (5 s) after which the key is taken as revoked."""
WATCH_S = 10.0

_OPTIONS: dict[str, Any] = {
    "max_reconnect_attempts": -1,  # the default gives up after two minutes, for good
    "reconnect_time_wait": 0.25,
    "connect_timeout": 3,
    "ping_interval": 10,  # the default notices a dead peer after four minutes; ours within half the lease
    "max_outstanding_pings": 2,
    "flush_timeout": 5,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """Where JetStream put a message; `duplicate` means that it had it already, at this number."""

    seq: int
    duplicate: bool


class Connection:
    """A connection that lives as long as its context; see the module for what it promises."""

    def __init__(self, client: Client, inbox: str) -> None:
        self._client = client
        self._inbox = inbox
        self._up = asyncio.Event()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._subscriptions: set[Subscription] = set()
        self._closing = False
        self._refusals = 0
        self._last_error = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, credentials: Credentials, *, name: str, inbox: str, connect_s: float = CONNECT_S) -> AsyncIterator["Connection"]:
        """Connect, and disconnect at the end of the context.

        Args:
            credentials: Where to and as whom.
            name: What the broker shows as the connection's name.
            inbox: Prefix of the subjects replies come to; unlike the default one no other user may listen there.
            connect_s: How long the first connect may take.

        Raises:
            BrokerError: Nobody is there, the key is refused, or the server is too old.
        """
        connection = cls(Client(), inbox)
        watch: asyncio.Task[None] | None = None
        try:
            await connection._connect(credentials, name, connect_s)
            watch = asyncio.create_task(connection._watch())
            yield connection
        finally:
            connection._closing = True
            if watch is not None:
                watch.cancel()
            await completed(connection._client.close(), CALL_S)

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
        seen_error = self._last_error
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready()
                call = self._client.request(subject, payload, timeout=timeout_s, headers=dict(headers) if headers else None)
                answer = await self._unbroken(call)
        except nats_errors.NoRespondersError as error:
            raise NoAnswer(f"nobody answers on {subject}") from error
        except (TimeoutError, nats_errors.Error) as error:
            # A denied publish is not answered at all; the broker's complaint arrives beside it.
            why = f": {self._last_error}" if self._last_error != seen_error else f" within {timeout_s:g} s"
            raise BrokerError(f"no answer on {subject}{why}") from error
        return _message(answer)

    async def store(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        dedupe: str | None = None,
        timeout_s: float = 2 * CALL_S,
    ) -> Stored:
        """Publish into a stream and return where it is stored, once the broker has it on disk.

        With `dedupe` (a message id) it is sent again after a lost answer, until `timeout_s` is over: the broker keeps
        one copy within the stream's window.

        Raises:
            ApiError: The stream refused.
            BrokerError: No confirmation; without `dedupe` it may be stored nevertheless.
        """
        all_headers = dict(headers or {}) | ({"Nats-Msg-Id": dedupe} if dedupe else {})
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while True:
            try:
                answer = await self.request(subject, payload, timeout_s=min(CALL_S, until - loop.time()), headers=all_headers)
                break
            except BrokerError:
                if dedupe is None or self._lost.done() or until - loop.time() < 1:
                    raise
                await asyncio.sleep(0.1)  # a stream that is being opened answers nobody yet
        reply = _parsed(answer.data)
        return Stored(int(reply["seq"]), bool(reply.get("duplicate")))

    async def api(self, name: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call JetStream's API, e.g. `STREAM.INFO.JOBS`, and return its answer.

        Raises:
            ApiError: It refused.
        """
        answer = await self.request(f"$JS.API.{name}", json.dumps(query).encode() if query else b"")
        return _parsed(answer.data)

    @asynccontextmanager
    async def subscription(self, *subjects: str, capacity: int = 4096) -> AsyncIterator[Subscription]:
        """Subscribe for as long as the context lasts, over reconnects; a subject we have no right to stays silent."""
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
            for handle in handles:
                with suppress(nats_errors.Error):  # closed meanwhile: nothing to unsubscribe from
                    await handle.unsubscribe()

    def new_inbox(self) -> str:
        """Return a subject of our own for one exchange."""
        return self._client.new_inbox()

    async def direct(self, stream: str, query: Mapping[str, Any], *, idle_s: float = CALL_S) -> list[Message]:
        """Read stored messages without a consumer (ADR-31): one, or a batch if `query` says `batch` or `multi_last`.

        Raises:
            BrokerError: Refused, or nothing came for `idle_s`.
        """
        inbox = self.new_inbox()
        many = "batch" in query or "multi_last" in query
        messages: list[Message] = []
        async with self.subscription(inbox) as replies:
            await self.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(query).encode(), reply=inbox)
            while True:
                message = await replies.next(idle_s)
                if message is None:
                    raise BrokerError(f"stream {stream} stopped answering after {len(messages)} messages")
                match message.status:
                    case None:
                        messages.append(message)
                        if not many:
                            return messages
                    case 204 | 404:  # end of the batch; nothing found
                        return messages
                    case 503:
                        raise NoAnswer(f"there is no stream {stream}")
                    case status:
                        raise BrokerError(f"stream {stream} refused a read: {status} {message.headers.get('Description', '')}")

    async def pull(self, stream: str, consumer: str, *, wait_s: float) -> Message | None:
        """Pull one message, waiting at most `wait_s`; None if there was none, or the connection broke meanwhile.

        Cancelling it gives back what was already on the way.
        """
        query = json.dumps({"batch": 1, "expires": int(wait_s * 1e9)}).encode()
        inbox = self.new_inbox()
        async with self.subscription(inbox) as replies:
            try:
                await self.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", query, reply=inbox)
                message = await replies.next(wait_s + 1)  # the broker's own end of the wait comes first
            except Interrupted:
                return None
            finally:
                for late in replies.left():
                    if late.status is None:
                        await self.publish(late.reply, b"-NAK")
        if message is not None and message.status == 503:
            raise NoAnswer(f"stream {stream} has no consumer {consumer}")
        return message if message is not None and message.status is None else None

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
                credentials.url,
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
            if not connecting.done():
                raise BrokerError(f"no broker at {credentials.url}: {self._last_error or f'no answer within {connect_s:g} s'}")
            connecting.result()
        except (OSError, nats_errors.Error) as error:
            raise BrokerError(f"no broker at {credentials.url}: {error}") from error
        finally:
            connecting.cancel()
            await asyncio.wait({connecting})
        version = self._client.connected_server_version
        if (version.major, version.minor) < SERVER_VERSION_MIN:
            raise BrokerError(f"nats-server {version} at {credentials.url} is too old; 2.12 or later is needed")
        self._up.set()

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
        head = sum(len(key) + len(value) + 4 for key, value in headers.items())
        if head > HEADERS_BYTES_MAX - 64 or len(payload) > self.payload_bytes_max:
            raise ValueError(f"message of {len(payload)} bytes for {subject}; at most {self.payload_bytes_max}")

    def _interrupt(self, error: BrokerError) -> None:
        self._up.clear()
        self._broken.set_result(None)
        self._broken = asyncio.get_running_loop().create_future()
        for subscription in self._subscriptions:
            subscription.interrupt(error)

    def _lose(self, why: str) -> None:
        if not self._lost.done():
            self._lost.set_result(why)
            self._interrupt(BrokerError(f"the connection to the broker is closed: {why}"))
            self._up.set()  # so that whoever waits for it looks, and fails

    async def _on_error(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__
        if self._closing:
            return
        if "authorization" in self._last_error.lower() or "authentication" in self._last_error.lower():
            self._refusals += 1
            if not self._refused.done():
                self._refused.set_result(None)
            if self._refusals >= REFUSALS_MAX:
                self._lose(f"{REFUSALS_MAX} refusals in a row: {self._last_error}")
        logger.warning("the broker connection reported an error", extra={"error": self._last_error})

    async def _on_disconnect(self) -> None:
        if not self._closing and not self._lost.done():
            self._interrupt(Interrupted("the connection to the broker was lost"))

    async def _on_reconnect(self) -> None:
        self._refusals = 0
        if not self._lost.done():
            self._up.set()

    async def _on_closed(self) -> None:
        self._lose("closed by us" if self._closing else self._last_error or "the broker closed it")

    async def _watch(self) -> None:
        """Reconnect when nothing is heard although the socket looks open: a late PONG can kill the library's reader."""
        silent = 0
        while not self._lost.done():
            received = self._client.stats["in_msgs"]
            await asyncio.sleep(WATCH_S)
            if not self._up.is_set() or self._client.stats["in_msgs"] != received or await self._is_answered():
                silent = 0
                continue
            silent += 1
            if silent >= 2:
                logger.warning("the broker is silent; reconnecting")
                silent = 0
                await self._client.force_reconnect()

    async def _is_answered(self) -> bool:
        try:  # every account may ask this; an object of that name never exists
            await self.direct("OBJ_IN", {"last_by_subj": "$O.IN.M.watch"})
        except (NoAnswer, Interrupted):
            return True
        except BrokerError:
            return False
        return True


def inbox_prefix(name: str) -> str:
    """Return the prefix of a user's reply subjects; the account configuration grants it to that user only."""
    return f"_INBOX_{name}"


def _message(message: Msg) -> Message:
    return Message(message.subject, message.data, message.headers or {}, message.reply)


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(data)
    except ValueError as error:
        raise BrokerError("the broker's answer is not JSON") from error
    if "error" in reply:
        problem = reply["error"]
        raise ApiError(
            int(problem.get("err_code", 0)), f"the broker refused: {problem.get('description', '')} ({problem.get('err_code', 0)})"
        )
    return dict(reply)
