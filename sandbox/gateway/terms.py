"""What holds for every model call of one attempt, and how patient the gateway is; data, no behaviour."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sandbox.contract.price import PriceList, shipped_prices
from sandbox.gateway.caps import CAPS, Cap
from sandbox.gateway.connection import Timeouts
from sandbox.gateway.content import Capture
from sandbox.gateway.policy import Policy
from sandbox.gateway.tally import CallReport


@dataclass(frozen=True)
class Tuning:
    """Prices, clock and waits; the defaults are the ones to use outside of tests."""

    prices: PriceList = field(default_factory=shipped_prices)
    now: Callable[[], float] = time.time
    """Unix seconds."""
    client: Timeouts = field(default_factory=Timeouts)
    """How long a client may take."""
    caps: Mapping[str, Cap] = field(default_factory=lambda: CAPS)
    """Requests each route takes."""
    retry_pauses_s: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Before each further try of a call the provider did not serve."""
    drain_s: float = 60.0
    """How long a reply is read for its figures after its client left (DECISIONS D7)."""
    rate_wait_s: float = 540.0
    """How long one call may wait for the provider's rate limit; clients give a silent reply up after 600 s."""
    assignment_poll_s: float = 25.0
    """How long one poll for the assignment waits; then 204, and the program asks again."""


@dataclass(frozen=True)
class Terms:
    """The terms of one attempt."""

    policy: Policy
    stage: str
    round: int
    records: bool = False
    """Keep every call for a cassette."""
    on_call: Callable[[CallReport], None] | None = None
    """Told of every call after it was settled."""
    capture: Capture | None = None
    """Makes what is told of what was said; None: nothing is."""
    tuning: Tuning = field(default_factory=Tuning)
