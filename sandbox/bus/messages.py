"""What comes over a connection: messages, the subscriptions they queue in, and how a call fails; not the connection itself."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sandbox.contract.errors import BrokerError


class ApiError(BrokerError):
    """JetStream refused; `code` is its `err_code`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Superseded(ApiError):
    """A compare-and-swap failed: somebody else wrote after what the caller knew."""


class NoAnswer(BrokerError):
    """Nobody listens on the subject: no supervisor, no stream, no consumer."""


class Interrupted(BrokerError):
    """The connection broke under the call: whether the broker took it is not known."""


_SUBJECT = re.compile(r"[!-)+-\-/-=?-~]+(?:\.[!-)+-\-/-=?-~]+)*")
_API = re.compile(r"\$JS(?:\.[a-z]+)?\.API(?:\.[!-\-/-~]+)+")
"""Requests to JetStream may name a filter, a pattern, in their own subject."""
SUBJECT_CHARS_MAX = 1_024


def checked_subject(subject: str) -> str:
    """Return `subject` if a message may be sent to it: the library takes wildcards, blanks and line ends, and sends them (ABUSE N08).

    Raises:
        ValueError: It is none, or a pattern, or longer than 1,024 characters (5,000 end the connection).
    """
    if len(subject) > SUBJECT_CHARS_MAX or not (_SUBJECT.fullmatch(subject) or _API.fullmatch(subject)):
        raise ValueError(f"{subject[:80]!r} is no subject to send to")
    return subject


@dataclass(frozen=True, slots=True)
class Message:
    """What was received; `status` is the broker's own word (404, 408, …), None for a real message."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    reply: str

    @property
    def status(self) -> int | None:
        """Return the status of a message without content."""
        status = self.headers.get("Status")
        return int(status) if status is not None and status.isdigit() and not self.data else None


@dataclass(eq=False)
class Subscription:
    """Messages of a subject in order. Those beyond `capacity` are dropped and counted."""

    capacity: int
    dropped: int = 0
    is_over: bool = False
    """Set by whoever listens and knows that nothing more can come."""
    _queue: "asyncio.Queue[Message | BrokerError]" = field(default_factory=asyncio.Queue)
    _ended: BrokerError | None = None

    def take(self, message: Message) -> None:
        """Keep a message that arrived (called by the connection)."""
        if self._queue.qsize() >= self.capacity:
            self.dropped += 1
            return
        self._queue.put_nowait(message)

    def interrupt(self, error: BrokerError) -> None:
        """Make one `next` raise, after what arrived before (called by the connection)."""
        self._queue.put_nowait(error)

    def end(self, error: BrokerError) -> None:
        """Make every `next` raise from now on, after what arrived before (called by the connection)."""
        self._ended = error

    async def next(self, wait_s: float) -> Message | None:
        """Return the next message, None after `wait_s`.

        Raises:
            Interrupted: The connection was lost since the last call; the subject itself is subscribed again by itself.
            BrokerError: The connection is gone for good.
        """
        if self._ended is not None and self._queue.empty():
            raise self._ended
        try:
            async with asyncio.timeout(wait_s):
                item = await self._queue.get()
        except TimeoutError:
            return None
        if isinstance(item, BrokerError):
            raise item
        return item

    def left(self) -> list[Message]:
        """Return what arrived and was not taken."""
        items: list[Message | BrokerError] = []
        while not self._queue.empty():
            items.append(self._queue.get_nowait())
        return [item for item in items if isinstance(item, Message)]
