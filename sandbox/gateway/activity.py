"""How long nothing has happened at one gateway: the clock of the no-progress deadline; not what happens when it runs out (`executor`)."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK_EVERY_S = 1.0
"""How often a clock that stands still is looked at again."""


class Activity:
    """Restarts with every sign of work, and stands still while the attempt waits for somebody else."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin now; `clock` gives seconds and never goes back."""
        self._clock = clock
        self._since = clock()
        self._excuses = 0
        self._limits = 0
        self._limited_since = 0.0
        self._limited_s = 0.0

    @property
    def idle_s(self) -> float:
        """Return for how many seconds nothing has happened; 0 while the attempt is excused."""
        return 0.0 if self._excuses else self._clock() - self._since

    def note(self) -> None:
        """Note a sign of work."""
        self._since = self._clock()

    def excuse(self) -> None:
        """Charge no time until the matching `resume`: the provider is busy, the lease is in doubt, the ledger is silent."""
        self._excuses += 1

    def resume(self) -> None:
        """End one excuse; the time begins anew."""
        self._excuses -= 1
        self.note()

    @contextmanager
    def excused(self) -> Iterator[None]:
        """Charge no time inside the block."""
        self.excuse()
        try:
            yield
        finally:
            self.resume()

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Charge no time inside the block, not even to the stage's wall clock: the provider's rate limit is waited for."""
        self._limited_s, self._limited_since = self.limited_s, self._clock()
        self._limits += 1
        try:
            with self.excused():
                yield
        finally:
            self._limited_s, self._limited_since = self.limited_s, self._clock()
            self._limits -= 1

    @property
    def is_limited(self) -> bool:
        """Return whether the provider's rate limit is waited for now."""
        return self._limits > 0

    @property
    def limited_s(self) -> float:
        """Return for how long it was waited for in all; calls that wait side by side are counted once."""
        return self._limited_s + (self._clock() - self._limited_since if self._limits else 0.0)

    async def wait_idle(self, limit_s: float) -> None:
        """Wait until nothing has happened for `limit_s` seconds."""
        while (left_s := limit_s - self.idle_s) > 0:  # noqa: ASYNC110 - a deadline that moves; nothing happens at its end
            await asyncio.sleep(min(left_s, _LOOK_EVERY_S) if self._excuses else left_s)
