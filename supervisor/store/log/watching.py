"""Following a run's events with no right but to read what is stored; not the supervisor's way (`jetstream`), which needs a consumer.

Whoever may make consumers may also have one deliver stored messages to any subject, so clients may not (docs/adr/0010).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from sandbox.bus import Connection, Interrupted, Subscription
from sandbox.contract import subjects
from sandbox.contract.errors import BrokerError
from supervisor.pipeline.events import AnyEvent
from supervisor.store.log.jetstream import JetStreamEventLog

LOOK_S: Final = 2.0
"""How often a watcher looks although nothing was said: what is said may be lost."""
AGAIN_S: Final = (0.0, 0.02, 0.05, 0.1, 0.25)
"""An event is said before it is on disk: when a watcher that was woken looks, and looks again."""
RETRY_S: Final = 0.5
HINTS_MAX: Final = 64


async def watch_events(connection: Connection, run_id: str, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
    """Yield a run's events above `after_seq`, then each new one; goes on by itself after a lost connection.

    What is said on the run's subject, which may never have been stored, only wakes the reader.

    Raises:
        BrokerError: The connection is gone for good.
    """
    log, seen = JetStreamEventLog(connection), after_seq
    while True:
        try:
            async with connection.subscription(subjects.events(run_id), capacity=HINTS_MAX) as hints:
                while True:
                    for event in await _next(log, run_id, seen):
                        seen = event.seq
                        yield event
                    await _hint(hints)
        except BrokerError:
            if connection.is_lost:
                raise
            await asyncio.sleep(RETRY_S)


async def _next(log: JetStreamEventLog, run_id: str, seen: int) -> list[AnyEvent]:
    for pause_s in AGAIN_S:
        await asyncio.sleep(pause_s)
        if events := await log.read(run_id, seen):
            return events
    return []


async def _hint(hints: Subscription) -> None:
    with suppress(Interrupted):  # something may have been said meanwhile
        await hints.next(LOOK_S)
    hints.left()
