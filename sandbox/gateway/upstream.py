"""The model's provider over HTTP, as the operator chose it; the only place that holds the key. Not: which requests go there (`policy`).

Any address, proxy and CA of the operator's are honoured, redirects are never followed (DECISIONS D10). What the
provider says when it refuses stays here: replies are made anew from the status and the error's code.
"""

import asyncio
import json
import logging
import math
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol, Self
from urllib.parse import urlsplit

import httpx2

from sandbox.contract.errors import ConfigError
from sandbox.contract.result import Usage
from sandbox.contract.wire import RATE_PAUSE_MAX_S
from sandbox.gateway.operator_network import proxy_for, trust_of
from sandbox.gateway.policy import Judged
from sandbox.gateway.refusal import Refusal
from sandbox.gateway.reservation import Hold
from sandbox.gateway.sse import Event, EventSplitter
from sandbox.gateway.tally import Failure
from sandbox.gateway.whole_reply import REPLY_BYTES_MAX, events_of

DEFAULT_BASE_URL = "https://api.anthropic.com"
ERROR_BYTES_MAX = 64 * 1024
TIMEOUT = httpx2.Timeout(connect=10.0, read=300.0, write=60.0, pool=10.0)
WHOLE_TIMEOUT = httpx2.Timeout(connect=10.0, read=900.0, write=60.0, pool=10.0)
"""Of a reply that is not streamed: nothing of it comes before all of it."""
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_LIMITS = {429, 529}
_SPEND_CAPS = {"enforced_spend_limit_reached", "contract_spend_limit_reached", "billing_error"}
_KINDS = {400: "invalid_request_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error"}


@dataclass(frozen=True)
class Call:
    """One request that was judged and may go out, if the money is there."""

    number: int
    """Counts the attempt's requests to the model routes."""
    judged: Judged
    body: bytes
    """The very bytes that were judged."""
    headers: tuple[tuple[str, str], ...]
    """The API's version; nothing else of the client's."""


class Fault(Refusal):
    """The provider did not serve a call, before a byte of it reached the client."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        is_retryable: bool = False,
        is_free: bool = True,
        is_limit: bool = False,
        retry_after_s: float | None = None,
        failure: Failure | None = None,
    ) -> None:
        super().__init__(status, kind, message, retry=False)
        self.is_retryable = is_retryable
        """Worth another try, before the client hears of it."""
        self.is_free = is_free
        """The provider did not work for it; otherwise it is charged in full."""
        self.is_limit = is_limit
        """The provider limits its rate, or says that it is overloaded: everybody who calls this model has to slow down."""
        self.retry_after_s = retry_after_s
        self.failure = failure


class StreamBroken(Exception):
    """The provider's stream ended in the middle, or made no sense."""


class Reply(Protocol):
    """A reply that has begun."""

    @property
    def priced(self) -> tuple[Usage, int] | None:
        """Usage and cost in nano-USD if they are known without metering: a recorded call."""
        ...

    def batches(self) -> AsyncGenerator[list[Event], None]:
        """Yield the events as they come, those of one read together, never none.

        Raises:
            StreamBroken: It ended in the middle.
        """
        ...


class Source(Protocol):
    """Where replies come from: a provider, or a cassette."""

    is_replay: bool

    def open(self, call: Call, held: Hold) -> AbstractAsyncContextManager[Reply]:
        """Send a call on its reservation.

        Raises:
            Fault: It was not served.
        """
        ...

    async def count_tokens(self, call: Call) -> int:
        """Return the provider's count of a prompt.

        Raises:
            Refusal: It was not counted.
        """
        ...

    def leaks(self, data: bytes, /) -> bool:
        """Return whether `data`, which came from there, holds the key."""
        ...


@dataclass(frozen=True)
class Upstream:
    """How to reach the provider; the credential is not in its `repr`."""

    base_url: str
    credential: str = field(repr=False)
    proxy: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    """None: the address is plain http."""

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Self | None:
        """Return the upstream an operator's environment describes, None without a key (DECISIONS D14).

        Reads ANTHROPIC_API_KEY, else ANTHROPIC_AUTH_TOKEN; ANTHROPIC_BASE_URL; HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY
        in either case; SSL_CERT_FILE, SSL_CERT_DIR. An empty value is as good as none.

        Raises:
            ConfigError: A value makes no sense; the key itself is never quoted.
        """
        credential = (env.get("ANTHROPIC_API_KEY") or env.get("ANTHROPIC_AUTH_TOKEN") or "").strip()
        if not credential:
            return None
        if not re.fullmatch(r"[!-~]{1,4096}", credential):
            raise ConfigError("ANTHROPIC_API_KEY (or ANTHROPIC_AUTH_TOKEN) holds characters that no key has: blanks, or not ASCII")
        base_url = (env.get("ANTHROPIC_BASE_URL") or DEFAULT_BASE_URL).rstrip("/")
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ConfigError("ANTHROPIC_BASE_URL must be http(s)://host[:port][/path], without user, query or fragment")
        proxy = proxy_for(parts, env)
        needs_tls = parts.scheme == "https" or (proxy or "").startswith("https:")
        return cls(base_url, credential, proxy, trust_of(env) if needs_tls else None)

    def client(self) -> httpx2.AsyncClient:
        """Return a client of its own for one attempt; it reads nothing from the environment."""
        for library in ("httpcore2", "httpx2"):
            logging.getLogger(library).setLevel(logging.WARNING)  # their debug lines hold headers
        return httpx2.AsyncClient(
            verify=self.tls or self.base_url.startswith("https:"),
            proxy=httpx2.Proxy(self.proxy, ssl_context=self.tls) if self.proxy else None,
            timeout=TIMEOUT,
            limits=httpx2.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=30.0),
            follow_redirects=False,
            trust_env=False,
        )


class Provider:
    """A `Source` that asks the provider."""

    is_replay = False

    def __init__(self, upstream: Upstream, client: httpx2.AsyncClient, labels: Mapping[str, str]) -> None:
        """Ask `upstream` through `client`; `labels` are the x-andon-* headers a company proxy attributes spend by."""
        self._upstream = upstream
        self._client = client
        self._secret = upstream.credential.encode()
        self._labels = [(name, value) for name, value in labels.items() if name.startswith("x-andon-") and value.isprintable()]

    @asynccontextmanager
    async def open(self, call: Call, held: Hold) -> AsyncIterator[Reply]:
        """Send a call; the reply begins with status 200 and an event stream, or is one message if the client asked for that."""
        held.send()
        is_streamed = call.judged.is_streamed
        wanted = "text/event-stream" if is_streamed else "application/json"
        response = await self._send(call, "/v1/messages", wanted, TIMEOUT if is_streamed else WHOLE_TIMEOUT)
        try:
            kind = response.headers.get("content-type", "")
            if not kind.lower().startswith(wanted):
                raise _down(502, "api_error", f"the provider answered with something that is no {wanted}", is_free=False)
            yield _LiveReply(response) if is_streamed else _WholeReply(response)
        finally:
            await response.aclose()

    async def count_tokens(self, call: Call) -> int:
        """Return the provider's count; it costs nothing."""
        response = await self._send(call, "/v1/messages/count_tokens", "application/json")
        try:
            document = json.loads(await _read(response))
            tokens = document["input_tokens"]
        except (ValueError, KeyError, TypeError, RecursionError, httpx2.HTTPError) as error:
            raise Refusal(502, "api_error", "the provider's count makes no sense", retry=True) from error
        finally:
            await response.aclose()
        if type(tokens) is not int:
            raise Refusal(502, "api_error", "the provider's count makes no sense", retry=True)
        return tokens

    def leaks(self, data: bytes, /) -> bool:
        """Return whether the provider sends our own key back."""
        return self._secret in data

    async def _send(self, call: Call, path: str, accept: str, timeout: httpx2.Timeout = TIMEOUT) -> httpx2.Response:
        headers = [
            ("authorization", f"Bearer {self._upstream.credential}"),
            ("content-type", "application/json"),
            ("accept", accept),
            ("accept-encoding", "identity"),
            ("user-agent", "andon-gateway"),
            *call.headers,
            *self._labels,
        ]
        request = httpx2.Request("POST", f"{self._upstream.base_url}{path}", headers=headers, content=call.body)
        request.extensions["timeout"] = timeout.as_dict()
        try:
            response = await self._client.send(request, stream=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError, httpx2.UnsupportedProtocol) as error:
            raise _down(529, "overloaded_error", "the provider cannot be reached", is_retryable=True) from error
        except httpx2.TransportError as error:
            # The request may have reached it: nobody can tell whether it is billed.
            raise _down(529, "overloaded_error", "the provider broke off", is_retryable=True, is_free=False) from error
        if response.status_code != 200:
            try:
                body = await _read(response)
                raise fault_of(response.status_code, response.headers, b"" if self.leaks(body) else body)
            finally:
                await response.aclose()
        return response


class _LiveReply:
    """A provider's event stream."""

    priced = None

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    async def batches(self) -> AsyncGenerator[list[Event], None]:
        """Yield events as they arrive."""
        splitter = EventSplitter()
        try:
            async for chunk in self._response.aiter_bytes():
                if events := splitter.feed(chunk):
                    yield events
        except (httpx2.TransportError, httpx2.DecodingError, ValueError) as error:
            raise StreamBroken from error


class _WholeReply:
    """A provider's message that was not streamed."""

    priced = None

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    async def batches(self) -> AsyncGenerator[list[Event], None]:
        """Yield the events a stream would have had, all at once."""
        body = bytearray()
        try:
            async for chunk in self._response.aiter_bytes():
                body += chunk
                if len(body) > REPLY_BYTES_MAX:
                    raise StreamBroken
            events = await asyncio.to_thread(events_of, bytes(body))
        except (httpx2.TransportError, httpx2.DecodingError, ValueError) as error:
            raise StreamBroken from error
        yield events


def fault_of(status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    """Return what a refusal of the provider's means; of its text only a well-formed error code is taken over."""
    code = _error_code(body)
    named = f" ({code})" if code else ""
    if status in {401, 403}:
        message = f"the provider refuses our key: status {status}{named}"
        return Fault(status, "authentication_error", message, failure=Failure(kind="auth", message=message))
    if status == 402 or code in _SPEND_CAPS:
        return _down(429, "billing_error", f"the provider's spend cap is reached{named}")
    if 300 <= status < 400:
        return _down(502, "api_error", f"the provider answers with a redirect ({status}), which is never followed")
    if status == 404:
        return _down(404, "not_found_error", f"the provider does not know this model or route: status 404{named}")
    if status == 429 or status >= 500:
        is_final = headers.get("x-should-retry", "").lower() == "false"
        what = "limits our rate" if status == 429 else "is down"
        kind = _KINDS.get(status, "api_error")
        return _down(
            status,
            kind,
            f"the provider {what}: status {status}{named}",
            is_retryable=not is_final,
            is_limit=status in _LIMITS,
            retry_after_s=_retry_after_s(headers),
        )
    return Fault(
        status if status in _KINDS else 400,
        _KINDS.get(status, "invalid_request_error"),
        f"the provider refuses the request: status {status}{named}",
    )


def fault_of_event(event: Event) -> Fault:
    """Return what an `error` event means that came instead of a reply."""
    code = _error_code(event.data)
    status = {"overloaded_error": 529, "rate_limit_error": 429, "api_error": 500, "timeout_error": 504}.get(code, 400)
    return fault_of(status, {}, event.data)


def _down(
    status: int,
    kind: str,
    message: str,
    *,
    is_retryable: bool = False,
    is_free: bool = True,
    is_limit: bool = False,
    retry_after_s: float | None = None,
) -> Fault:
    return Fault(
        status,
        kind,
        message,
        is_retryable=is_retryable,
        is_free=is_free,
        is_limit=is_limit,
        retry_after_s=retry_after_s,
        failure=Failure(kind="provider", message=message),
    )


def _error_code(body: bytes) -> str:
    """Return `error.details.error_code`, else `error.type`, if it looks like a code and not like text."""
    try:
        error = json.loads(body)["error"]
        details = error.get("details")
        code = (details.get("error_code") if isinstance(details, dict) else None) or error.get("type")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return code if isinstance(code, str) and _CODE.fullmatch(code) else ""


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None  # a date, or nothing: our own pauses do
    return min(max(seconds, 0.0), RATE_PAUSE_MAX_S) if math.isfinite(seconds) else None


async def _read(response: httpx2.Response) -> bytes:
    """Return the first 64 KiB of a small reply, empty if it does not come within 10 s."""
    body = bytearray()
    try:
        async with asyncio.timeout(10.0):
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > ERROR_BYTES_MAX:
                    break
    except (httpx2.TransportError, httpx2.DecodingError, TimeoutError):
        return b""
    return bytes(body[:ERROR_BYTES_MAX])
