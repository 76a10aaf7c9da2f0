"""The buffer between supervisors and a collector of traces: one bounded stream (`assets`), one consumer; not who puts or takes."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sandbox.bus.assets import SUPERVISOR, ensure_export
from sandbox.bus.connection import Connection
from sandbox.bus.messages import ApiError
from sandbox.contract import subjects
from sandbox.contract.errors import BrokerError

MORE_S: Final = 0.02
"""How long a batch waits for its next message."""
_FULL: Final = 10077


class BufferFull(BrokerError):
    """The buffer has no room; what was offered is not in it."""


@dataclass(frozen=True)
class Buffered:
    """One message of the buffer, which comes again after `EXPORT_TURN_S` unless it is done."""

    data: bytes
    _connection: Connection
    _ack_subject: str

    async def done(self) -> None:
        """Remove it."""
        await self._connection.publish(self._ack_subject, b"+ACK")

    async def later(self, seconds: float = 0.0) -> None:
        """Give it back; it comes again after `seconds`."""
        await self._connection.publish(self._ack_subject, b'-NAK {"delay": %d}' % int(seconds * 1e9))


async def give_back(taken: Iterable[Buffered], seconds: float = 0.0) -> None:
    """Give messages back; with the broker away they come again by themselves."""
    with suppress(BrokerError):
        for each in taken:
            await each.later(seconds)


class ExportBuffer:
    """What is to be exported, across supervisors; first in, first out."""

    def __init__(self, connection: Connection, more_s: float = MORE_S) -> None:
        """Reach it over a supervisor's connection; a batch waits `more_s` for its next message."""
        self._connection = connection
        self._more_s = more_s
        self._is_open = False

    async def put(self, payload: bytes, dedupe: str) -> None:
        """Store a payload durably; a second one with the same `dedupe` within an hour is ignored.

        Raises:
            BufferFull: There is no room now.
            BrokerError: It is not known to be stored.
            ValueError: It is larger than a message may be (1 MiB).
        """
        await self._open()
        try:
            await self._connection.store(subjects.EXPORT, payload, dedupe=dedupe)
        except ApiError as error:
            if error.code == _FULL:
                raise BufferFull(str(error)) from error
            raise

    async def take(self, messages_max: int, bytes_max: int, wait_s: float) -> list[Buffered]:
        """Return the next messages, waiting at most `wait_s` for the first; more only while they come and are below `bytes_max`.

        Raises:
            BrokerError: The broker is away.
        """
        await self._open()
        taken: list[Buffered] = []
        try:
            while len(taken) < messages_max and sum(len(each.data) for each in taken) < bytes_max:
                message = await self._connection.pull(subjects.STREAM_EXPORT, SUPERVISOR, wait_s=self._more_s if taken else wait_s)
                if message is None:
                    break
                taken.append(Buffered(message.data, self._connection, message.reply))
        except BaseException:
            await give_back(taken)
            raise
        return taken

    async def waiting(self) -> int:
        """Return how many messages there are, those included that were taken and are not done.

        Raises:
            BrokerError: The broker is away.
        """
        info = await self._connection.api(f"STREAM.INFO.{subjects.STREAM_EXPORT}")
        return int(info["state"]["messages"])

    async def _open(self) -> None:
        if not self._is_open:
            await ensure_export(self._connection)
            self._is_open = True
