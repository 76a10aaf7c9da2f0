"""One model call: streams a reply through the SDK and retries what is worth it; not what the reply means (`loop`).

Ways a stream fails in SDK 2.x (AGENT.md §0.4): cut cleanly it is no error at all but a reply without stop reason; cut
raw or idle it raises the transport's own error, not the SDK's; an `error` event is an APIStatusError with status 200;
arguments that are no JSON are a ValueError.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import anthropic
import httpx2

from sandbox.contract.agent_spec import AgentSpec
from sandbox.inside.agent.transcript import Block, Message

TRIES_MAX = 4
READ_TIMEOUT_S = 600.0
BASE_URL = "http://gateway"


class Reply(NamedTuple):
    """What the model said."""

    content: list[Block]
    stop_reason: str
    category: str
    """Why it refused, when it did."""


class CallFailed(Exception):
    """No reply, and trying again would not help."""

    def __init__(self, status: Literal["budget", "error"], message: str) -> None:
        super().__init__(message)
        self.status = status


class _TryAgain(Exception):
    """The call failed in a way that another try may mend."""


def client_over_socket(gateway: Path, traceparent: str) -> anthropic.Anthropic:
    """Return the SDK's client over the gateway's socket. It holds no secret: the gateway adds the key."""
    transport = httpx2.HTTPTransport(uds=str(gateway), verify=False)  # a unix socket has no TLS: this saves its context, 18 ms
    timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=10.0)
    return anthropic.Anthropic(
        api_key="none",
        base_url=BASE_URL,
        http_client=httpx2.Client(transport=transport, timeout=timeout, trust_env=False),
        timeout=READ_TIMEOUT_S,
        max_retries=2,
        default_headers={"traceparent": traceparent} if traceparent else {},
        open_telemetry=False,
    )


class Model:
    """The model of one agent: same parameters on every call, which preserved thinking and caching both need."""

    def __init__(
        self,
        client: anthropic.Anthropic,
        spec: AgentSpec,
        tools: Sequence[Block],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._spec = spec
        self._tools = tools
        self._sleep = sleep

    def call(self, system: Sequence[Block], messages: Sequence[Message]) -> Reply:
        """Return one whole reply, after at most `TRIES_MAX` tries.

        Raises:
            CallFailed: The budget refused, the request was refused, or no try succeeded.
        """
        problem = ""
        for tried in range(TRIES_MAX):
            if tried:
                self._sleep(2.0 ** (tried - 1))
            try:
                return self._stream_once(system, messages)
            except _TryAgain as error:
                problem = str(error)
        raise CallFailed("error", f"the model gave no whole reply in {TRIES_MAX} tries: {problem}")

    def _stream_once(self, system: Sequence[Block], messages: Sequence[Message]) -> Reply:
        try:
            with self._client.messages.stream(
                model=self._spec.model,
                max_tokens=self._spec.output_tokens_max,
                system=cast(Any, system),
                tools=cast(Any, self._tools),
                messages=cast(Any, messages),
            ) as stream:
                message = stream.get_final_message()
        except anthropic.APIStatusError as error:
            raise _judged(error) from error
        except (anthropic.APIConnectionError, httpx2.TransportError, ValueError) as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from error
        if message.stop_reason is None:
            raise _TryAgain("the stream ended before the reply did")
        details = message.stop_details
        category = getattr(details, "category", None) or ""
        return Reply([_as_sent(block) for block in message.content], str(message.stop_reason), str(category))


def _as_sent(block: Any) -> Block:
    """Return a block as the provider sent it: only the fields it set, unchanged."""
    return cast(Block, block.to_dict(mode="json", use_api_names=True, exclude_unset=True))


def _judged(error: anthropic.APIStatusError) -> Exception:
    """Return what an error reply means. 429 with `billing_error` is the gateway's word for an exhausted budget."""
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    details = inner if isinstance(inner, dict) else {}
    kind, message = str(details.get("type", "")), str(details.get("message", error.message))[:1_000]
    if kind == "billing_error":
        return CallFailed("budget", message)
    if error.response.headers.get("x-should-retry") == "false":
        return CallFailed("error", f"{error.status_code} {kind}: {message}")
    if error.status_code in {200, 408, 409, 429} or error.status_code >= 500:
        return _TryAgain(f"{error.status_code} {kind}: {message}")
    return CallFailed("error", f"{error.status_code} {kind}: {message}")
