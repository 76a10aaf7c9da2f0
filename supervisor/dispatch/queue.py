"""Jobs that wait for a free slot, and their release to the bus as executors have room; in memory: the log rebuilds it.

A job is published when a pull waits for one on its lane, so what is on the bus is about to be taken, and a job of a run that was
stopped meanwhile is never published at all. The lookahead, what a more urgent job can no longer overtake, is therefore what was
published and not yet claimed: at most one job for each idle slot. A slot that pulls for several pools counts in each of them.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sandbox.contract.errors import BrokerError, InfrastructureError
from sandbox.contract.job import JobSpec
from sandbox.contract.wire import Heartbeat, SupervisorLink
from sandbox.log import Log
from supervisor.dispatch.order import Answer, Waiting, in_turn, key_of
from supervisor.dispatch.placement import Lane, Room, candidates

log = Log(__name__)

QUEUE_MAX = 10_000
POLL_S_MIN = 0.005
POLL_S_MAX = 0.2
"""Between two looks at the credit while jobs wait: twice as long after each look that released nothing (NATS.md §3)."""
AWAY_S = 1.0
EXECUTORS_S = 1.0
"""How old the list of executors may be by which labels are matched."""
AT_ONCE_MAX = 32
"""Calls to the broker at the same time."""
OUT_MAX_S = 600.0
"""A job that nobody claimed for so long counts for its feature's fairness no longer."""

_Place = tuple[str, tuple[tuple[str, str], ...]]
_LineKey = tuple[_Place, str, int]


@dataclass(frozen=True, slots=True)
class Ticket:
    """A job in the queue, or on its way to an executor."""

    waiting: Waiting
    job: JobSpec
    wanted: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Sent:
    """A job that was published and is not claimed yet."""

    ticket: Ticket
    executor: str
    """Whose lane it is on; empty: the pool's."""
    since_s: float


class JobQueue:
    """Lines of waiting jobs, one for each place, feature and priority; see `order` for who goes first."""

    def __init__(self, link: SupervisorLink, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Make a queue that publishes on `link`; ages rest on `monotonic` seconds."""
        self._link = link
        self._held: Callable[[str], int] = lambda _feature: 0
        self._monotonic = monotonic
        self._lines: dict[_LineKey, dict[str, Ticket]] = {}
        self._where: dict[str, _LineKey] = {}
        self._sent: dict[str, Sent] = {}
        self._beats: tuple[float, list[Heartbeat]] = (float("-inf"), [])
        self._pruned_s = float("-inf")
        self._count = 0
        self._kicked = asyncio.Event()

    def __len__(self) -> int:
        """Return how many jobs wait."""
        return len(self._where)

    def put(self, job: JobSpec, dedupe: str, wanted: Callable[[], bool]) -> None:
        """Publish `job` as soon as an executor has room for it, if `wanted()` still holds then; the same `dedupe` is put once.

        Raises:
            InfrastructureError: 10,000 jobs wait already.
        """
        if dedupe in self._where:
            return
        if len(self._where) >= QUEUE_MAX:
            self._sweep()
        if len(self._where) >= QUEUE_MAX:
            raise InfrastructureError(f"{QUEUE_MAX} jobs wait for an executor; start more with `andon executor`")
        self._count += 1
        waiting = Waiting(dedupe, job.run_id, job.priority, self._monotonic(), self._count)
        key = ((job.pool, tuple(sorted(job.labels.items()))), job.run_id, job.priority)
        self._lines.setdefault(key, {})[dedupe] = Ticket(waiting, job, wanted)
        self._where[dedupe] = key
        self._kicked.set()

    def count_held(self, held: Callable[[str], int]) -> None:
        """Take who knows how many jobs of a feature (by its run's id) executors have claimed; without, only those on their way count."""
        self._held = held

    def taken(self, dedupe: str) -> None:
        """Note that an executor has claimed the job, so that neither this copy waits nor counts as on its way."""
        self._sent.pop(dedupe, None)
        self._drop(dedupe)

    def is_waiting(self, dedupe: str) -> bool:
        """Return whether this copy is still to be published."""
        return dedupe in self._where

    def directed_to(self, dedupe: str) -> str:
        """Return the executor on whose lane a published copy lies, empty if it is on its pool's or claimed."""
        sent = self._sent.get(dedupe)
        return sent.executor if sent is not None else ""

    def ahead_of(self, dedupe: str) -> int:
        """Return how many jobs of the same pool go before this one as things are."""
        key = self._where.get(dedupe)
        if key is None:
            return 0
        now, out = self._monotonic(), self._out()
        own = key_of(self._lines[key][dedupe].waiting, now, out)
        peers = (line for other, line in self._lines.items() if other[0][0] == key[0][0])
        return sum(key_of(ticket.waiting, now, out) < own for line in peers for ticket in line.values())

    def kick(self) -> None:
        """Look at the credit now."""
        self._kicked.set()

    async def run(self) -> None:
        """Publish as room comes, until cancelled; a broker that is away is waited for."""
        pause_s = POLL_S_MIN
        while True:
            await self._kicked.wait()
            self._kicked.clear()
            try:
                released = await self._look()
            except BrokerError as error:
                log.warning("queue.stuck", "no job can be published now", error=error, waiting=len(self))
                await asyncio.sleep(AWAY_S)
                self._kicked.set()
                continue
            if self._where:
                kicked = await self._pause(pause_s)
                pause_s = POLL_S_MIN if released or kicked else min(2 * pause_s, POLL_S_MAX)

    async def _pause(self, seconds: float) -> bool:
        """Wait for a kick, at most `seconds`; return whether it came."""
        try:
            async with asyncio.timeout(seconds):
                await self._kicked.wait()
        except TimeoutError:
            self._kicked.set()
            return False
        return True

    async def _look(self) -> int:
        """Publish what there is room for, and return how many jobs that were."""
        self._forget_unwanted()
        if not self._lines:
            return 0
        executors = await self._executors() if any(place[1] for place, _, _ in self._lines) else []
        credits = await self._credits(executors)
        if not any(credits.values()):
            return 0
        room = Room(credits)
        chosen = self._choose(room, executors)
        free = asyncio.Semaphore(AT_ONCE_MAX)

        async def publish(ticket: Ticket, lane: Lane) -> None:
            async with free:
                await self._link.publish_job(ticket.job, ticket.waiting.name, lane[1])
            name = ticket.waiting.name
            if self._drop(name):
                self._sent[name] = Sent(ticket, lane[1], self._monotonic())

        done = await asyncio.gather(*(publish(ticket, lane) for ticket, lane in chosen), return_exceptions=True)
        for failure in (each for each in done if isinstance(each, BaseException)):
            raise failure
        return len(chosen)

    def _choose(self, room: Room, executors: Sequence[Heartbeat]) -> list[tuple[Ticket, Lane]]:
        """Return who goes where now, in turn, after dropping those nobody wants any more."""
        chosen: list[tuple[Ticket, Lane]] = []
        lines = [[ticket.waiting for ticket in line.values()] for line in self._lines.values()]
        turn = in_turn(lines, self._monotonic(), self._out())
        answer: Answer | None = None
        while True:
            try:
                waiting = turn.send(answer) if answer is not None else next(turn)
            except StopIteration:
                return chosen
            ticket = self._lines[self._where[waiting.name]][waiting.name]
            if not ticket.wanted():
                self._drop(waiting.name)
                answer = "dropped"
                continue
            lane = room.take(ticket.job.pool, ticket.job.labels, executors)
            answer = "taken" if lane is not None else "stuck"
            if lane is not None:
                chosen.append((ticket, lane))

    async def _credits(self, executors: Sequence[Heartbeat]) -> dict[Lane, int]:
        """Return the room of every lane a waiting job could go to: one call for each, however many jobs wait."""
        lanes: set[Lane] = set()
        for pool, labels in {key[0] for key in self._lines}:
            lanes |= {(pool, beat.executor) for beat in candidates(pool, dict(labels), executors)} if labels else {(pool, "")}
        free = asyncio.Semaphore(AT_ONCE_MAX)

        async def ask(lane: Lane) -> tuple[Lane, int]:
            async with free:
                return lane, await self._link.credit(*lane)

        return dict(await asyncio.gather(*(ask(lane) for lane in sorted(lanes))))

    async def _executors(self) -> list[Heartbeat]:
        now = self._monotonic()
        if now - self._beats[0] >= EXECUTORS_S:
            self._beats = (now, await self._link.executors())
        return self._beats[1]

    def _out(self) -> Counter[str]:
        """Return how many jobs each waiting feature has out: on their way, or in the hands of executors."""
        out = Counter(sent.ticket.waiting.feature for sent in self._sent.values())
        for feature in {key[1] for key in self._lines}:
            out[feature] += self._held(feature)
        return out

    def _forget_unwanted(self) -> None:
        """Drop what was claimed or is not wanted any more from what is on its way; seldom, because asking costs."""
        now = self._monotonic()
        if now - self._pruned_s < POLL_S_MAX:
            return
        self._pruned_s = now
        for name, sent in list(self._sent.items()):
            if now - sent.since_s > OUT_MAX_S or not sent.ticket.wanted():
                del self._sent[name]

    def _sweep(self) -> None:
        """Drop every job that waits although nobody wants it any more."""
        for name in [name for line in self._lines.values() for name, ticket in line.items() if not ticket.wanted()]:
            self._drop(name)

    def _drop(self, name: str) -> bool:
        """Take a copy out of its line; return whether it was there."""
        key = self._where.pop(name, None)
        if key is None:
            return False
        line = self._lines[key]
        del line[name]
        if not line:
            del self._lines[key]
        return True
