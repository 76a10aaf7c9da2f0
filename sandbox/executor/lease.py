"""The lease of one attempt: renewed by confirmed acks, doubted after 48 s, claimed again when the broker is back (DECISIONS D2).

Clocks that stop with the machine would hide a suspend, so ages are measured on CLOCK_BOOTTIME.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from sandbox.contract.errors import BrokerError
from sandbox.contract.wire import HEARTBEAT_S, LEASE_DOUBT_S, ClaimReply, ClaimRequest
from sandbox.executor.beside import beside

RECLAIM_EVERY_S = 2.0


class Renewer(Protocol):
    """The two calls of `ExecutorLink` a lease makes."""

    async def in_progress(self, ack_subject: str) -> None:
        """Renew; returns only when confirmed."""
        ...

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Ask again for an attempt one has."""
        ...


def boot_time_s() -> float:
    """Return seconds since boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """Ownership of one attempt, as far as this executor knows."""

    def __init__(
        self,
        link: Renewer,
        request: ClaimRequest,
        *,
        pause: Callable[[], Awaitable[None]],
        resume: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = boot_time_s,
        every_s: float = HEARTBEAT_S,
        doubt_s: float = LEASE_DOUBT_S,
    ) -> None:
        """Keep `request` (with its token) alive; `pause` and `resume` stop and continue the container and its gateway."""
        self._link = link
        self._request = request
        self._pause = pause
        self._resume = resume
        self._clock = clock
        self._every_s = every_s
        self._doubt_s = doubt_s
        self._confirmed = clock()
        self.paused = False
        self._lost = asyncio.Event()

    @property
    def lost(self) -> asyncio.Event:
        """Set when the attempt is no longer ours."""
        return self._lost

    @asynccontextmanager
    async def held(self) -> AsyncIterator["Lease"]:
        """Renew in the background until the block ends."""
        async with beside(self._renew()):
            yield self

    async def _renew(self) -> None:
        while not self._lost.is_set():
            await asyncio.sleep(min(self._every_s, RECLAIM_EVERY_S) if self.paused else self._every_s)
            try:
                await (self._claim_again() if self.paused else self._link.in_progress(self._request.ack_subject))
            except BrokerError:
                if not self.paused and self._clock() - self._confirmed > self._doubt_s:
                    self.paused = True
                    await self._pause()
                continue
            self._confirmed = self._clock()

    async def _claim_again(self) -> None:
        reply = await self._link.claim(self._request)
        if reply.decision != "granted":
            self._lost.set()
            return
        await self._link.in_progress(self._request.ack_subject)
        self.paused = False
        await self._resume()
