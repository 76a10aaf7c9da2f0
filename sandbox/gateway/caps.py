"""How many requests each route takes in a minute, so that a program gone wild does not keep the host busy; not bytes, money or who may ask.

A bucket holds a burst and fills again at the route's rate. The model routes have a second cap, `Policy.calls_max`, over the whole attempt.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from sandbox.gateway.refusal import Refusal


class Cap(NamedTuple):
    """What one route takes."""

    burst: int
    """At once, after a pause; also the size of the bucket."""
    per_minute: int


TRACES = "/v1/traces"
OF_TOOLS = "/v1/traces of tools"
"""Of tools and checks, so that they cannot use up what the program itself needs."""
CAPS = {
    "/v1/messages": Cap(burst=120, per_minute=120),
    "/v1/messages/count_tokens": Cap(burst=120, per_minute=120),
    TRACES: Cap(burst=600, per_minute=600),
    OF_TOOLS: Cap(burst=6_000, per_minute=6_000),  # an SDK may send each span by itself: more than are taken, so that none waits
    "/andon/assignment": Cap(burst=30, per_minute=60),
    "/andon/submit": Cap(burst=10, per_minute=30),
    "/healthz": Cap(burst=60, per_minute=600),
}
"""An agent makes a call in seconds; a replay makes sixty in one, which the burst allows."""


class Bucket:
    """The cap of one route of one attempt."""

    def __init__(self, cap: Cap, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with a full bucket; `clock` gives seconds and never goes back."""
        self._cap = cap
        self._clock = clock
        self._left = float(cap.burst)
        self._at = clock()
        self.refused = 0

    def take(self) -> None:
        """Count one request.

        Raises:
            Refusal: 429, to be retried when there is room again.
        """
        now, rate = self._clock(), self._cap.per_minute / 60
        self._left = min(self._cap.burst, self._left + (now - self._at) * rate)
        self._at = now
        if self._left < 1:
            self.refused += 1
            message = f"more than {self._cap.per_minute} requests a minute on this route"
            raise Refusal(429, "rate_limit_error", message, retry=True, come_again_s=math.ceil((1 - self._left) / rate))
        self._left -= 1
