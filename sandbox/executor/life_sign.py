"""Says again and again that this executor lives, with what, and why it takes no job; notices when the fleet may have forgotten it."""

import asyncio
import socket
import time
from collections.abc import Callable

from sandbox.contract.errors import BrokerError
from sandbox.contract.wire import Heartbeat
from sandbox.executor.config import Host
from sandbox.executor.lease import boot_time_s
from sandbox.executor.membership import Membership
from sandbox.executor.readiness import Readiness
from sandbox.log import Log

log = Log(__name__)

FORGOTTEN_S = 9.0
"""A gap between two life signs after which the supervisor may have given us up: its grace is 10 s (NATS.md §5)."""


class LifeSign:
    """The life sign of one executor."""

    def __init__(self, host: Host, ready: Readiness, membership: Membership, busy: Callable[[], int]) -> None:
        """Prepare; `busy` counts running attempts."""
        self._host = host
        self._ready = ready
        self._membership = membership
        self._busy = busy
        self._sent_at = boot_time_s()
        self._is_away = False

    async def beat(self) -> None:
        """Say it until cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self._host.link.heartbeat(self._now())
                self._note_sent()
            except BrokerError as error:
                if not self._is_away and self._membership.has_joined:
                    log.warning("broker.away", "the broker does not answer; trying on", error=error)
                self._is_away = self._membership.has_joined
            await asyncio.sleep(max(0.0, self._host.config.pace.beat_s - (time.monotonic() - began)))

    def _note_sent(self) -> None:
        """After a cut, or a machine that slept, introduce this executor again."""
        now = boot_time_s()
        if self._membership.has_joined and (self._is_away or now - self._sent_at > FORGOTTEN_S):
            log.info("broker.back", "the broker answers again", away_s=round(now - self._sent_at, 1))
            self._membership.renew()
        self._is_away, self._sent_at = False, now

    def _now(self) -> Heartbeat:
        config = self._host.config
        return Heartbeat(
            executor=config.name,
            release=config.release,
            pools=config.pools,
            labels=config.labels,
            slots=config.slots,
            busy=self._busy(),
            held=self._ready.held,
            model="live" if self._host.upstream else "none",
            host=socket.gethostname(),
            missing=self._host.missing_by_default or self._host.missing,
        )
