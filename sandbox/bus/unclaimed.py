"""Jobs that were handed out and that nobody claimed, handed out again long before their lease ends; not those of a dead attempt.

An executor may die between the delivery and its claim, and the broker may deliver to one that has just taken another job (a
subscription that ends while a message is on its way from one account to another is not noticed). Handing out once too often
is harmless: the claim decides who works.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

from sandbox.bus.connection import Connection
from sandbox.contract import subjects
from sandbox.contract.errors import BrokerError
from sandbox.log import Log

logger = Log(__name__)

UNCLAIMED_S: Final = 3.0
"""A claim follows a delivery in milliseconds; one that takes longer than this is asked for elsewhere as well."""
LOOK_S: Final = 0.5
TRIES_MAX: Final = 20
"""A minute: then its lease decides."""
JOBS_MAX: Final = 10_000
"""As many as the stream holds; more are not watched over, and wait for their lease."""
EARLY_MAX: Final = 1_000
"""Claims remembered that came before the broker confirmed to us that it has the job."""


@dataclass
class _Job:
    lane: str
    delivered_at: float | None = None
    """When it was first seen to be handed out, or was asked for again, by this process's monotonic clock."""
    tries: int = 0


class Unclaimed:
    """The jobs this supervisor published and has not heard of since, by their number in the stream."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._jobs: dict[int, _Job] = {}
        self._early: dict[int, None] = {}

    def __len__(self) -> int:
        """Return how many jobs are watched over."""
        return len(self._jobs)

    def published(self, seq: int, lane: str) -> None:
        """Watch over a job, unless its claim was faster than the broker's word that it is stored."""
        if seq in self._early:
            del self._early[seq]
        elif len(self._jobs) < JOBS_MAX:
            self._jobs.setdefault(seq, _Job(lane))

    def redelivered(self, ack_subject: str) -> None:
        """Watch over a job that is handed out again."""
        _, _, _, lane, _, seq, *_ = ack_subject.split(".")
        self._early.pop(int(seq), None)
        self.published(int(seq), lane)

    def settled(self, ack_subject: str) -> None:
        """Leave a job alone: somebody claimed it, or it was taken off."""
        seq = int(ack_subject.split(".")[5])
        if self._jobs.pop(seq, None) is None:
            self._early[seq] = None
            if len(self._early) > EARLY_MAX:
                del self._early[next(iter(self._early))]

    def forget(self, lane: str) -> None:
        """Leave a lane's jobs alone: it was emptied."""
        self._jobs = {seq: job for seq, job in self._jobs.items() if job.lane != lane}

    async def watch(self) -> None:
        """Look twice a second, for as long as anything is unclaimed, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for lane in sorted({job.lane for job in self._jobs.values()}):
                try:
                    await self._look(lane)
                except BrokerError as error:
                    logger.debug("lane.unseen", "a lane cannot be looked at", error=error, lane=lane)

    async def _look(self, lane: str) -> None:
        info = await self._connection.api(f"CONSUMER.INFO.{subjects.STREAM_JOBS}.{lane}")
        now, last = time.monotonic(), int(info["delivered"]["stream_seq"])
        for seq, job in list(self._jobs.items()):
            if job.lane != lane or seq > last:
                continue
            job.delivered_at = job.delivered_at or now
            if not info["num_ack_pending"] or job.tries >= TRIES_MAX:
                del self._jobs[seq]
                continue
            if now - job.delivered_at < UNCLAIMED_S:
                continue
            logger.warning("job.unclaimed", "a job was handed out and nobody claimed it; once more", lane=lane, stream_seq=seq)
            job.delivered_at, job.tries = now, job.tries + 1
            await self._connection.publish(_ack_subject(lane, seq, info), b"-NAK")


def _ack_subject(lane: str, seq: int, info: dict[str, Any]) -> str:
    """Return an ack subject of the job: the broker looks at its number, and that the delivery's is one of those open."""
    return f"$JS.ACK.{subjects.STREAM_JOBS}.{lane}.1.{seq}.{info['delivered']['consumer_seq']}.{time.time_ns()}.0"
