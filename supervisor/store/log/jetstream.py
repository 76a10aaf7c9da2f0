"""The event log on JetStream: appended by compare-and-swap, read and followed without a gap; not who may write (`lease.py`)."""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from sandbox.bus import Connection, Message, Superseded
from sandbox.contract import subjects
from sandbox.contract.errors import BrokerError
from supervisor.pipeline.events import AnyEvent, decode, encode
from supervisor.store.log.event_log import Head, StaleWriter

BATCH: Final = 1000
BATCH_BYTES_MAX: Final = 16 << 20
FOLLOW_S: Final = 10.0
"""How long one pull of a follower waits; the broker says every `FOLLOW_BEAT_S` that it is still there."""
FOLLOW_BEAT_S: Final = 2.0
FOLLOW_BATCH: Final = 256
FORGET_S: Final = 30.0
"""The broker drops a follower's consumer that nobody pulled from for this long."""
RETRY_S: Final = 0.5
SECOND: Final = 1_000_000_000


class JetStreamEventLog:
    """Implements `store.event_log.EventLog` over a connection of the FLEET account."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def append(self, event: AnyEvent, expected_seq: int) -> int:
        """Append if the run's last event is number `expected_seq`; stored on disk when it returns."""
        subject = subjects.events(event.run_id)
        try:
            return await self._connection.swap(subjects.STREAM_EVENTS, subject, encode(event), expected=expected_seq)
        except Superseded as error:
            raise StaleWriter(f"run {event.run_id} has events after {expected_seq}, the last one this writer knows") from error

    async def read(self, run_id: str, after_seq: int = 0) -> list[AnyEvent]:
        """Return a run's events above `after_seq` in order; empty for an unknown run."""
        events: list[AnyEvent] = []
        query = {"next_by_subj": subjects.events(run_id), "batch": BATCH, "max_bytes": BATCH_BYTES_MAX}
        after = after_seq
        while True:
            batch = await self._connection.direct(subjects.STREAM_EVENTS, {**query, "seq": after + 1})
            events += (decode(message.data, int(message.headers["Nats-Sequence"])) for message in batch)
            if not batch or int(batch[-1].headers["Nats-Num-Pending"]) == 0:
                return events
            after = events[-1].seq

    async def runs(self) -> list[str]:
        """Return the ids of all runs, oldest first."""
        runs: list[str] = []
        while True:
            query = {"subjects_filter": subjects.events("*"), "offset": len(runs)}
            info = await self._connection.api(f"STREAM.INFO.{subjects.STREAM_EVENTS}", query)
            page = list(info["state"].get("subjects") or {})
            runs += (subject.rsplit(".", 1)[1] for subject in page)
            if not page or len(runs) >= int(info.get("total", 0)):
                return sorted(runs)

    async def head(self) -> Head:
        """Return the stream's birth, which a stream made anew does not share, and its last number."""
        info = await self._connection.api(f"STREAM.INFO.{subjects.STREAM_EVENTS}")
        return Head(origin=str(info["created"]), last_seq=int(info["state"]["last_seq"]))

    def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield a run's events above `after_seq`, then each new one; goes on by itself after a lost connection.

        Raises:
            BrokerError: The connection is gone for good.
        """
        return self._follow(subjects.events(run_id), after_seq)

    def follow_all(self, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield every run's events above `after_seq` in the order of the stream, then each new one; as `follow`."""
        return self._follow(subjects.events("*"), after_seq)

    async def _follow(self, subject: str, after_seq: int) -> AsyncIterator[AnyEvent]:
        seen = after_seq
        while True:
            try:
                async with aclosing(self._consume(subject, seen)) as messages:
                    async for message in messages:
                        event = decode(message.data, int(message.reply.split(".")[5]))
                        seen = event.seq
                        yield event
            except BrokerError:
                if self._connection.is_lost:
                    raise
                await asyncio.sleep(RETRY_S)

    async def _consume(self, subject: str, after_seq: int) -> AsyncGenerator[Message, None]:
        """Read from a consumer of our own until it or the connection fails (`BrokerError`): in order, nothing acknowledged."""
        name = await self._consumer(subject, after_seq)
        pull = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.STREAM_EVENTS}.{name}"
        query = json.dumps({"batch": FOLLOW_BATCH, "expires": int(FOLLOW_S * SECOND), "idle_heartbeat": int(FOLLOW_BEAT_S * SECOND)})
        inbox = self._connection.new_inbox()
        expected, left = 1, 0
        async with self._connection.subscription(inbox) as arrivals:
            while True:
                if left == 0:
                    await self._connection.publish(pull, query.encode(), reply=inbox)
                    left = FOLLOW_BATCH
                message = await arrivals.next(2.5 * FOLLOW_BEAT_S)
                if message is None:
                    raise BrokerError(f"consumer {name} fell silent")
                if message.status == 100:  # the broker is there, there is just nothing new
                    continue
                if message.status in {404, 408}:  # this pull is over
                    left = 0
                    continue
                if message.status is not None:
                    raise BrokerError(f"consumer {name} ended: {message.status}")
                if int(message.reply.split(".")[6]) != expected:
                    raise BrokerError(f"consumer {name} skipped a message")
                expected, left = expected + 1, left - 1
                yield message

    async def _consumer(self, subject: str, after_seq: int) -> str:
        name = f"follow-{secrets.token_hex(8)}"
        config = {
            "name": name,
            "filter_subject": subject,
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after_seq + 1,
            "inactive_threshold": int(FORGET_S * SECOND),
            "mem_storage": True,
            "num_replicas": 1,
            "replay_policy": "instant",
        }
        query = {"stream_name": subjects.STREAM_EVENTS, "config": config, "action": "create"}
        await self._connection.api(f"CONSUMER.CREATE.{subjects.STREAM_EVENTS}.{name}.{subject}", query)
        return name
