"""Delivers kept results to the broker and takes their jobs off the queue, in that order; not how results are kept (`outbox`)."""

import asyncio
import time
from dataclasses import dataclass

from sandbox.contract.errors import BrokerError
from sandbox.contract.result import AttemptResult
from sandbox.contract.wire import ExecutorLink
from sandbox.executor.config import Pace
from sandbox.executor.outbox import Outbox
from sandbox.log import Log, about, of_attempt

log = Log(__name__)


@dataclass(frozen=True)
class Letter:
    """A kept result, and the delivery of its job if we know it."""

    result: AttemptResult
    ack_subject: str = ""


class Post:
    """Delivers each result once; a broker that is away is waited for, because the file outlives us."""

    def __init__(self, link: ExecutorLink, outbox: Outbox, pace: Pace) -> None:
        """Deliver what `outbox` holds over `link`."""
        self._link = link
        self._outbox = outbox
        self._pace = pace
        self._waiting: asyncio.Queue[Letter] = asyncio.Queue()
        self._stops_at: float | None = None

    def stop_soon(self) -> None:
        """Give up what is not delivered within a few seconds; the next process finds it on disk."""
        self._stops_at = time.monotonic() + self._pace.stop_s

    def later(self, letter: Letter) -> None:
        """Deliver in the background."""
        self._waiting.put_nowait(letter)

    async def deliver_left(self) -> None:
        """Deliver what earlier processes kept."""
        for result in await self._outbox.left():
            await self.deliver(Letter(result))

    async def serve(self) -> None:
        """Deliver in the background until cancelled."""
        while True:
            letter = await self._waiting.get()
            try:
                await self.deliver(letter)
            finally:
                self._waiting.task_done()

    async def wait_empty(self) -> None:
        """Wait until nothing waits in the background."""
        await self._waiting.join()

    async def deliver(self, letter: Letter) -> None:
        """Publish until it is stored, unless we are told to stop, then take the job off its queue."""
        with about(**of_attempt(letter.result.job_id, letter.result.attempt)):
            await self._deliver(letter)

    async def _deliver(self, letter: Letter) -> None:
        while True:
            try:
                await self._outbox.send(self._link, letter.result)
                break
            except BrokerError as error:
                if self._stops_at is not None and time.monotonic() > self._stops_at:
                    log.warning("result.left_on_disk", "the result waits on disk for the next process", error=error)
                    return
                await asyncio.sleep(self._pace.post_s)
        log.info("result.delivered")
        # Ack after the result is stored: a crash in between costs a duplicate attempt, the other order costs the result.
        if letter.ack_subject:
            await self.acknowledge(letter.ack_subject)

    async def acknowledge(self, ack_subject: str) -> None:
        """Take a job off its queue."""
        try:
            await self._link.ack(ack_subject)
        except BrokerError:  # harmless: the job comes again and its claim says done
            log.info("job.unacknowledged", "the job was not taken off its queue; it comes again")
