"""The clock of the no-progress deadline: what restarts it, and what is not charged."""

import asyncio

from sandbox.gateway.activity import Activity


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_silence_is_counted_from_the_last_sign_of_work():
    """A sign begins it anew."""
    clock = Clock()
    activity = Activity(clock)

    clock.now += 10
    assert activity.idle_s == 10
    activity.note()
    clock.now += 3

    assert activity.idle_s == 3


def test_waiting_for_others_is_not_charged():
    """While it lasts nothing counts, nested or not, and afterwards the time begins anew."""
    clock = Clock()
    activity = Activity(clock)
    clock.now += 10

    with activity.excused():
        clock.now += 1_000
        with activity.excused():
            clock.now += 1_000
        assert activity.idle_s == 0
    clock.now += 2

    assert activity.idle_s == 2


def test_waits_for_the_rate_limit_are_added_up_and_charged_to_nobody():
    """Side by side they count once; the silence begins anew after them."""
    now = 0.0
    activity = Activity(lambda: now)
    with activity.limited():
        now += 5
        with activity.limited():
            now += 2
            assert (activity.is_limited, activity.limited_s, activity.idle_s) == (True, 7, 0)
        now += 3
    now += 4

    assert (activity.is_limited, activity.limited_s, activity.idle_s) == (False, 10, 4)


async def test_the_wait_ends_when_nothing_happened_for_so_long_and_not_before():
    """A sign in the meantime puts it off."""
    activity = Activity()
    waiting = asyncio.create_task(activity.wait_idle(0.3))

    for _ in range(5):
        activity.note()
        await asyncio.wait({waiting}, timeout=0.1)
        assert not waiting.done()

    await asyncio.wait_for(waiting, 5)
    assert activity.idle_s >= 0.3
