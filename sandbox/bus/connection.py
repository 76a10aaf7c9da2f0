"""One connection to NATS and what we use of JetStream, by its own API (NATS.md §0.6); not what is said over it (the links)."""

import asyncio
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.bus.client import CALL_S, CONNECT_S, NatsClient
from sandbox.bus.messages import ApiError, Interrupted, Message, NoAnswer, Subscription, Superseded
from sandbox.contract.credentials import inbox_prefix
from sandbox.contract.errors import BrokerError

__all__ = ["CALL_S", "CONNECT_S", "ELECTION_S", "Connection", "Stored", "inbox_prefix"]

ELECTION_S = 30.0
"""How long a cluster may take to elect a stream's leader (4 to 9 s for each try) before a repeated call gives up."""

_WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
_LAST_SEQUENCE = re.compile(r"wrong last sequence: ([0-9]+)")
_NOT_NOW = frozenset({10008, 10009})
"""JetStream or its cluster has no leader at the moment."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where JetStream put a message; `duplicate` means that it had it already, at this number."""

    seq: int
    duplicate: bool


class Connection(NatsClient):
    """A connection that lives as long as its context (`Connection.open`); see `NatsClient` for what it promises."""

    async def store(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        dedupe: str | None = None,
        timeout_s: float | None = None,
    ) -> Stored:
        """Publish into a stream and return where it is stored, once the broker has it on disk.

        With `dedupe` (a message id) it is sent again after a lost answer, until `timeout_s` is over (None: 10 s, in a
        cluster 30 s): the broker keeps one copy within the stream's window.

        Raises:
            ApiError: The stream refused.
            BrokerError: No confirmation; without `dedupe` it may be stored nevertheless.
        """
        all_headers = dict(headers or {}) | ({"Nats-Msg-Id": dedupe} if dedupe else {})
        loop = asyncio.get_running_loop()
        until = loop.time() + (timeout_s or (ELECTION_S if self.is_clustered else 2 * CALL_S))
        while True:
            try:
                answer = await self.request(subject, payload, timeout_s=min(CALL_S, until - loop.time()), headers=all_headers)
                reply = _parsed(answer.data)
                return Stored(int(reply["seq"]), bool(reply.get("duplicate")))
            except BrokerError as error:
                is_final = isinstance(error, ApiError) and error.code not in _NOT_NOW
                if dedupe is None or self.is_lost or is_final or until - loop.time() < 1:
                    raise
                await asyncio.sleep(0.1)  # a stream that is being opened, or elects its leader, answers nobody yet

    async def swap(
        self,
        stream: str,
        subject: str,
        payload: bytes,
        *,
        expected: int,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Store a message if number `expected` is the subject's last one (0: it has none), and return its number.

        The broker looks at `expected` before it looks at message ids (measured, 2.15): a repetition after a lost answer
        meets our own first try. So what stands after `expected` is looked at before it is called another's.

        Raises:
            Superseded: The subject's last message is another one; nothing was written.
            BrokerError: No confirmation; it may be stored nevertheless.
        """
        dedupe = secrets.token_hex(16)
        condition = {"Nats-Expected-Last-Subject-Sequence": str(expected), "Nats-Expected-Stream": stream}
        try:
            all_headers = dict(headers or {}) | condition
            return (await self.store(subject, payload, headers=all_headers, dedupe=dedupe, timeout_s=timeout_s)).seq
        except ApiError as error:
            if error.code not in _WRONG_LAST_SEQUENCE:
                raise
            following = await self._after(stream, subject, expected, error)
            if following and following[0].headers.get("Nats-Msg-Id") == dedupe:
                return int(following[0].headers["Nats-Sequence"])
            raise Superseded(error.code, f"message {expected} is not the last one of {subject}") from error

    async def _after(self, stream: str, subject: str, expected: int, error: ApiError) -> list[Message]:
        """Return what stands after `expected`; a server that follows the leader may learn it a moment later."""
        last = _LAST_SEQUENCE.search(str(error))
        for pause_s in (0.0, 0.05, 0.2, 0.5):
            await asyncio.sleep(pause_s)
            following = await self.direct(stream, {"seq": expected + 1, "next_by_subj": subject})
            if following or last is None or int(last[1]) <= expected:
                return following
        return []

    async def api(self, name: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call JetStream's API, e.g. `STREAM.INFO.JOBS`, and return its answer.

        Raises:
            ApiError: It refused.
        """
        answer = await self.request(f"$JS.API.{name}", json.dumps(query).encode() if query else b"")
        return _parsed(answer.data)

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

    async def pull(self, stream: str, *consumers: str, wait_s: float) -> Message | None:
        """Pull one message from any of the consumers, waiting at most `wait_s`; None if there was none, or the connection broke.

        Cancelling it gives back what was already on the way, as does a message that another consumer sends besides.

        Raises:
            NoAnswer: None of the consumers exists.
        """

        async def give_back(message: Message) -> None:
            if message.status is None:
                await self.publish(message.reply, b"-NAK")

        query = json.dumps({"batch": 1, "expires": int(wait_s * 1e9)}).encode()
        inbox = self.new_inbox()
        async with self.subscription(inbox, late=give_back) as replies:
            try:
                for consumer in consumers:
                    await self.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", query, reply=inbox)
                message = await _first(replies, len(consumers), wait_s + 1)  # the broker's own end of the wait comes first
            except Interrupted:
                return None
        if message is not None and message.status == 503:
            raise NoAnswer(f"stream {stream} has no consumer {' or '.join(consumers)}")
        return message if message is not None and message.status is None else None


async def _first(replies: Subscription, consumers: int, wait_s: float) -> Message | None:
    """Return the first real message; when every consumer ended its pull without one, the last one's word."""
    until = asyncio.get_running_loop().time() + wait_s
    message: Message | None = None
    for left in reversed(range(consumers)):
        message = await replies.next(max(0.0, until - asyncio.get_running_loop().time()))
        if message is None or message.status is None:
            replies.is_over = message is not None and left == 0  # each consumer answers a pull for one message once
            break
    else:
        replies.is_over = True
    return message


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
