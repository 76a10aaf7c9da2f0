"""How often a call the provider did not serve is made again, and after which pauses; not how fast all calls go together (the ledger)."""

import random
from collections.abc import Callable, Iterator

from sandbox.contract.wire import RATE_PAUSE_MAX_S
from sandbox.gateway.upstream import Fault

LIMITED_TRIES_MAX = 8
"""Tries of one call that the provider may refuse for its rate or its load; the pauses double, so the last ones are a minute apart."""
JITTER = 0.25
"""The part of a pause that is added by chance, so that callers which were refused together do not come back together."""
JITTER_MAX_S = 2.0


class Patience:
    """The pauses of one call."""

    def __init__(self, pauses_s: tuple[float, ...], chance: Callable[[], float] = random.random) -> None:
        """Begin a call; `pauses_s` are those after an outage, the first one is also where the pauses of a refused rate begin."""
        self._outages: Iterator[float] = iter(pauses_s)
        self._first_s = pauses_s[0] if pauses_s else 1.0
        self._limited = 0
        self._chance = chance

    def pause_s(self, fault: Fault) -> float | None:
        """Return how long to wait before the next try, None if there is none."""
        if not fault.is_retryable:
            return None
        if not fault.is_limit:
            pause_s = next(self._outages, None)
            return None if pause_s is None else self._spread(pause_s if fault.retry_after_s is None else fault.retry_after_s)
        self._limited += 1
        if self._limited >= LIMITED_TRIES_MAX:
            return None
        asked_s = fault.retry_after_s if fault.retry_after_s is not None else self._first_s * 2 ** (self._limited - 1)
        return min(self._spread(asked_s), RATE_PAUSE_MAX_S)

    def _spread(self, seconds: float) -> float:
        return seconds + min(self._chance() * seconds * JITTER, JITTER_MAX_S)
