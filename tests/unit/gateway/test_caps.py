"""Requests in a minute, on a clock that is the test's."""

import pytest

from sandbox.gateway.caps import CAPS, Bucket, Cap
from sandbox.gateway.refusal import Refusal


def test_a_burst_and_then_the_rate():
    """Three at once, the fourth comes a second later or is refused, with the second named."""
    now = 0.0
    bucket = Bucket(Cap(burst=3, per_minute=60), lambda: now)
    for _ in range(3):
        bucket.take()
    with pytest.raises(Refusal) as caught:
        bucket.take()
    now += 1.0
    bucket.take()

    assert caught.value.status == 429
    assert caught.value.headers() == [("x-should-retry", "true"), ("retry-after", "1")]
    assert bucket.refused == 1


def test_a_long_pause_fills_no_more_than_a_burst():
    """Who slept for an hour may not storm for a minute."""
    now = 0.0
    bucket = Bucket(Cap(burst=2, per_minute=60), lambda: now)
    now += 3600
    bucket.take()
    bucket.take()

    with pytest.raises(Refusal):
        bucket.take()


def test_every_cap_leaves_room_for_work():
    """A replay makes an agent's sixty calls in a moment; every route has some rate."""
    assert CAPS["/v1/messages"].burst >= 60
    assert all(cap.burst >= 10 and cap.per_minute >= 30 for cap in CAPS.values())
