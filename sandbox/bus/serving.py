"""Asking and answering over NATS: one request, one model back, or the reason why not; not what is asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from sandbox.bus.connection import CALL_S, Connection
from sandbox.bus.lifetimes import Tasks
from sandbox.bus.messages import Interrupted, Message, Subscription
from sandbox.contract.errors import AndonError, BrokerError
from sandbox.log import Log

logger = Log(__name__)

Reply = TypeVar("Reply", bound=BaseModel)
Answer = Callable[[Message], Awaitable[bytes]]

ERROR_HEADER: Final = "Andon-Error"
AT_ONCE_MAX: Final = 64
"""Requests of one subject that are being answered; more wait, and beyond 4096 are dropped: their callers ask again."""
ERROR_CHARS_MAX: Final = 500


async def ask(connection: Connection, subject: str, request: BaseModel, reply: type[Reply], *, timeout_s: float = CALL_S) -> Reply:
    """Send a request and return its answer.

    Raises:
        BrokerError: Nobody answers, not in time, or the other side could not handle it (the message says why).
    """
    data = await ask_bytes(connection, subject, request.model_dump_json().encode(), timeout_s=timeout_s)
    try:
        return reply.model_validate_json(data)
    except ValidationError as error:
        raise BrokerError(f"the answer on {subject} cannot be read: {error.error_count()} errors") from error


async def ask_bytes(connection: Connection, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
    """Like `ask`, without a model."""
    answer = await connection.request(subject, payload, timeout_s=timeout_s)
    if (problem := answer.headers.get(ERROR_HEADER)) is not None:
        raise BrokerError(f"the supervisor could not answer on {subject}: {problem}")
    return answer.data


@asynccontextmanager
async def serving(connection: Connection, subject: str, answer: Answer) -> AsyncIterator[None]:
    """Answer the requests of a subject for as long as the context lasts."""
    async with connection.subscription(subject) as requests, Tasks.open() as tasks:
        free = asyncio.Semaphore(AT_ONCE_MAX)

        async def reply_to(request: Message) -> None:
            try:
                await _reply(connection, request, answer)
            finally:
                free.release()

        async def take() -> None:
            while True:
                await free.acquire()
                tasks.start(reply_to(await _next(requests)))

        tasks.start(take())
        yield


async def _next(requests: Subscription) -> Message:
    while True:
        try:
            message = await requests.next(60.0)
        except Interrupted:  # subscribed again by itself; what was asked meanwhile is asked again
            continue
        if message is not None and message.reply:
            return message


async def _reply(connection: Connection, request: Message, answer: Answer) -> None:
    headers: dict[str, str] = {}
    try:
        payload = await answer(request)
    except ValidationError as error:
        payload, headers = b"", {ERROR_HEADER: f"malformed request: {error.error_count()} errors"}
    except AndonError as error:
        payload, headers = b"", {ERROR_HEADER: _one_line(f"{error}")}
    except Exception:  # protects the other callers: one request that trips over our bug must not end the service
        logger.exception("request.broke", "a request could not be answered", subject=request.subject)
        payload, headers = b"", {ERROR_HEADER: "internal error; the supervisor's log has the trace"}
    await connection.publish(request.reply, payload, headers=headers)


def _one_line(text: str) -> str:
    return " ".join(text.encode("ascii", "replace").decode().split())[:ERROR_CHARS_MAX] or "error"
