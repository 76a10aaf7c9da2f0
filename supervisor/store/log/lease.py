"""Which supervisor is the active one: a lease in the broker, renewed by compare-and-swap (NATS.md §6); not what it does then.

The library's key-value store is not used: its `put` and `update` drop the time to live, which would make a lease immortal.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from sandbox.bus import Connection, Superseded
from sandbox.bus.lifetimes import completed
from sandbox.contract import subjects
from sandbox.contract.errors import BrokerError
from sandbox.log import Log

logger = Log(__name__)

TTL_S: Final = 6
RENEW_S: Final = 2.0
MARGIN_S: Final = 1.0
"""Our own end of the lease comes this much before the broker's, so that two never hold it by their own account."""
RETRY_S: Final = 0.5
_STREAM: Final = f"KV_{subjects.KV_LEASES}"
_SUBJECT: Final = subjects.lease(subjects.LEASE_SUPERVISOR)


class Leadership:
    """The lease of one supervisor; everything it writes is fenced by the log's own compare-and-swap besides."""

    def __init__(self, connection: Connection, owner: str, ttl_s: int) -> None:
        self._connection = connection
        self._owner = owner
        self._ttl_s = ttl_s
        self._revision = 0
        self._until = 0.0
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.epoch = 0
        """Number of the write that took the lease: grows from leader to leader."""

    @classmethod
    @asynccontextmanager
    async def hold(
        cls, connection: Connection, owner: str, *, wait_s: float | None = None, ttl_s: int = TTL_S
    ) -> AsyncIterator["Leadership"]:
        """Wait for the lease, hold it for as long as the context lasts, give it back at its end.

        Watch `wait_lost` inside: from then on nothing may be decided.

        Args:
            connection: Of the FLEET account.
            owner: Who holds it, for people.
            wait_s: How long to stand by; None: as long as it takes.
            ttl_s: How long the lease outlives its last renewal, whole seconds, at least 3.

        Raises:
            BrokerError: Not ours after `wait_s`, or the connection is gone for good.
        """
        leadership = cls(connection, owner, ttl_s)
        await leadership._take(wait_s)
        renewing = asyncio.create_task(leadership._renew())
        try:
            yield leadership
        finally:
            renewing.cancel()
            await completed(leadership._give_back(), RENEW_S)

    @property
    def is_held(self) -> bool:
        """Return whether the lease is still ours, by a clock that runs on while the machine sleeps."""
        return not self._lost.done() and _now() < self._until

    async def wait_lost(self) -> str:
        """Wait until the lease is no longer ours and return why."""
        return await asyncio.shield(self._lost)

    async def _take(self, wait_s: float | None) -> None:
        until = _now() + wait_s if wait_s is not None else float("inf")
        while True:
            try:
                await self._write(expected=0, timeout_s=self._ttl_s - MARGIN_S)
            except BrokerError as error:
                if self._connection.is_lost or _now() > until:
                    raise BrokerError(f"the supervisor's lease is not ours after {wait_s} s: {error}") from error
                await asyncio.sleep(RETRY_S)
            else:
                self.epoch = self._revision
                return

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(max(0, min(RENEW_S, self._ttl_s / 3, self._until - _now())))
            left = self._until - _now()
            if left <= 0:
                self._lost.set_result("it could not be renewed in time")
                return
            try:
                await self._write(expected=self._revision, timeout_s=left)
            except Superseded as error:
                self._lost.set_result(f"another supervisor took it: {error}")
                return
            except BrokerError as error:
                logger.warning("leadership.unrenewed", "the supervisor's lease was not renewed", error=error, left_s=round(left, 1))

    async def _write(self, expected: int, timeout_s: float) -> None:
        """Write the lease if the broker's last write of it is `expected`; its end counts from before the write."""
        now = _now()
        self._revision = await self._connection.swap(
            _STREAM,
            _SUBJECT,
            json.dumps({"owner": self._owner}).encode(),
            expected=expected,
            headers={"Nats-TTL": f"{self._ttl_s}s"},
            timeout_s=timeout_s,
        )
        self._until = now + self._ttl_s - MARGIN_S

    async def _give_back(self) -> None:
        if self._lost.done():
            return
        self._lost.set_result("it was given back")
        query = {"filter": _SUBJECT, "seq": self._revision + 1}  # never a later holder's
        with suppress(BrokerError):  # then it ends by itself
            await self._connection.api(f"STREAM.PURGE.{_STREAM}", query)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
