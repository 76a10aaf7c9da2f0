"""The lease of one attempt: renewed by confirmed acks, doubted after 48 s, claimed again when the broker is back (DECISIONS D2).

Clocks that stop with the machine would hide a suspend, so ages are measured on CLOCK_BOOTTIME.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from sandbox.contract.errors import BrokerError, EngineError
from sandbox.contract.wire import HEARTBEAT_S, LEASE_DOUBT_S, ClaimReply, ClaimRequest
from sandbox.executor.beside import beside
from sandbox.log import Log

log = Log(__name__)

RECLAIM_EVERY_S = 2.0
_LAST_CALL_S = 0.05


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

    @property
    def _age_s(self) -> float:
        return self._clock() - self._confirmed

    async def _renew(self) -> None:
        rest_s = self._every_s
        while not self._lost.is_set():
            await asyncio.sleep(rest_s)
            try:
                # Looked at first: a machine that slept may find a broker that answers, and another executor at work.
                await (self._claim_again() if await self._is_doubted() else self._confirm())
                rest_s = self._every_s
            except (BrokerError, EngineError, TimeoutError) as error:
                log.info("lease.unconfirmed", "the lease was not renewed", error=error, age_s=round(self._age_s, 1))
                rest_s = min(self._every_s, RECLAIM_EVERY_S)

    async def _is_doubted(self) -> bool:
        """Return whether the attempt has to be claimed again; from the moment it has, container and gateway stand still."""
        if not self.paused and self._age_s > self._doubt_s:
            await self._pause()
            self.paused = True
            log.warning("lease.doubted", "the lease is in doubt: the container stands still", age_s=round(self._age_s, 1))
        return self.paused

    async def _confirm(self) -> None:
        """Renew; an answer that would come after the doubt begins is not waited for."""
        began = self._clock()
        async with asyncio.timeout(max(_LAST_CALL_S, self._doubt_s - self._age_s)):
            await self._link.in_progress(self._request.ack_subject)
        self._confirmed = began

    async def _claim_again(self) -> None:
        began = self._clock()
        reply = await self._link.claim(self._request)
        if reply.decision != "granted":
            log.warning("lease.lost", decision=reply.decision, reason=reply.reason)
            self._lost.set()
            return
        await self._link.in_progress(self._request.ack_subject)
        await self._resume()
        self._confirmed = began
        self.paused = False
        log.info("lease.regained", "the lease is ours again: the container goes on")
