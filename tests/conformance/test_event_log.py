"""What an event log promises (`store.event_log`), shown on the fake and over JetStream."""

import asyncio

import pytest

from supervisor.pipeline.events import AnyEvent
from supervisor.store.log.event_log import EventLog, StaleWriter
from tests.fakes.wire_data import RUN, an_event, number_of, opened, take
from tests.fakes.wires import Wire

OTHER_RUN = "0123456780"


async def test_events_are_read_in_the_order_they_were_appended(wire: Wire) -> None:
    """A run's events come back as they were, with growing numbers."""
    async with wire.log() as log:
        first = await log.append(an_event(1), 0)
        second = await log.append(an_event(2), first)

        events = await log.read(RUN)

    assert [event.seq for event in events] == [first, second]
    assert [number_of(event) for event in events] == [1, 2]
    assert 0 < first < second


async def test_an_unknown_run_has_no_events(wire: Wire) -> None:
    """Reading what was never written is empty, not an error."""
    async with wire.log() as log:
        assert await log.read(RUN) == []
        assert await log.runs() == []


async def test_runs_do_not_mix(wire: Wire) -> None:
    """Each run has its own order and its own compare-and-swap."""
    async with wire.log() as log:
        first = await log.append(an_event(1), 0)
        other = await log.append(an_event(2, OTHER_RUN), 0)
        await log.append(an_event(3), first)

        assert [number_of(event) for event in await log.read(RUN)] == [1, 3]
        assert [event.seq for event in await log.read(OTHER_RUN)] == [other]
        assert await log.runs() == [OTHER_RUN, RUN]


@pytest.mark.parametrize("expected", ["nothing", "an older event", "a newer event"])
async def test_a_stale_writer_writes_nothing(wire: Wire, expected: str) -> None:
    """Whoever does not know the last event is told so, and the log is unchanged."""
    async with wire.log() as log:
        first = await log.append(an_event(1), 0)
        second = await log.append(an_event(2), first)
        seq = {"nothing": 0, "an older event": first, "a newer event": second + 1}[expected]

        with pytest.raises(StaleWriter, match=RUN):
            await log.append(an_event(3), seq)

        assert [number_of(event) for event in await log.read(RUN)] == [1, 2]


async def test_equal_events_of_two_writers_are_not_one(wire: Wire) -> None:
    """A rival that appends the very same event at the same place is stale, not confirmed."""
    async with wire.log() as log, wire.log() as rival:
        await log.append(an_event(1), 0)

        with pytest.raises(StaleWriter):
            await rival.append(an_event(1), 0)


async def test_of_two_racing_writers_each_event_has_one_winner(wire: Wire) -> None:
    """Nothing is lost and nothing doubled when two supervisors believe they are the leader."""
    async with wire.log() as one, wire.log() as two:
        accepted = await asyncio.gather(_race(one, 100), _race(two, 200))

        stored = [number_of(event) for event in await one.read(RUN)]

    assert sorted(stored) == sorted(accepted[0] + accepted[1])
    assert len(stored) == 40


async def test_a_follower_sees_what_was_and_what_comes(wire: Wire) -> None:
    """Following begins with the past and goes on with the present, without a gap or a repetition."""
    async with wire.log() as log:
        last = await _append(log, 1, 2)
        async with opened(log.follow(RUN)) as events:
            past = await take(events, 2)
            coming = asyncio.create_task(take(events, 2))
            await _append(log, 3, 4, after=last)

            present = await coming

    assert [number_of(event) for event in past + present] == [1, 2, 3, 4]
    assert [event.seq for event in past + present] == sorted({event.seq for event in past + present})


async def test_a_follower_can_begin_in_the_middle(wire: Wire) -> None:
    """A reader that knows the run up to some event gets only what is above it."""
    async with wire.log() as log:
        first = await log.append(an_event(1), 0)
        await log.append(an_event(2), first)

        async with opened(log.follow(RUN, after_seq=first)) as events:
            [event] = await take(events, 1)

    assert number_of(event) == 2


async def test_a_follower_may_come_before_the_run(wire: Wire) -> None:
    """Following a run without events waits for its first one."""
    async with wire.log() as log, opened(log.follow(RUN)) as events:
        waiting = asyncio.create_task(take(events, 1))
        await log.append(an_event(9, OTHER_RUN), 0)
        await log.append(an_event(1), 0)

        [event] = await waiting

    assert number_of(event) == 1


async def test_two_followers_and_a_cli_see_the_same(wire: Wire) -> None:
    """Followers do not take events from each other."""
    async with wire.log() as log, wire.fleet() as cli, opened(log.follow(RUN)) as one, opened(cli.follow(RUN)) as two:
        await _append(log, 1, 2, 3)

        seen: list[list[AnyEvent]] = [await take(one, 3), await take(two, 3), await cli.read(RUN)]

    assert seen[0] == seen[1] == seen[2]


async def test_a_long_run_is_read_whole(wire: Wire) -> None:
    """More events than one read or one pull carries arrive completely."""
    async with wire.log() as log:
        await _append(log, *range(1100))

        assert [number_of(event) for event in await log.read(RUN)] == list(range(1100))
        async with opened(log.follow(RUN)) as events:
            assert [number_of(event) for event in await take(events, 1100, within_s=30)] == list(range(1100))


async def test_all_runs_are_followed_in_the_order_of_the_log(wire: Wire) -> None:
    """Whoever follows everything sees every run's events as they were appended, what was and what comes, without a gap."""
    async with wire.log() as log:
        first = await log.append(an_event(1), 0)
        await log.append(an_event(2, OTHER_RUN), 0)
        second = await log.append(an_event(3), first)
        async with opened(log.follow_all()) as events:
            past = await take(events, 3)
            coming = asyncio.create_task(take(events, 2))
            await log.append(an_event(4, "0123456782"), 0)
            await log.append(an_event(5), second)

            present = await coming

    assert [number_of(event) for event in past + present] == [1, 2, 3, 4, 5]
    assert [event.run_id for event in past] == [RUN, OTHER_RUN, RUN]
    assert [event.seq for event in past + present] == sorted({event.seq for event in past + present})


async def test_all_runs_can_be_followed_from_the_middle(wire: Wire) -> None:
    """A reader that knows the log up to some event gets what is above it, of every run, also one that begins only now."""
    async with wire.log() as log:
        first = await log.append(an_event(1), 0)
        known = await log.append(an_event(2, OTHER_RUN), 0)
        async with opened(log.follow_all(after_seq=known)) as events:
            waiting = asyncio.create_task(take(events, 2))
            await log.append(an_event(3, OTHER_RUN), known)
            await log.append(an_event(4), first)

            found = await waiting

    assert [number_of(event) for event in found] == [3, 4]


async def test_a_follower_of_all_may_be_far_ahead(wire: Wire) -> None:
    """Beginning after an event that is not there yet, e.g. with a copy of a log that was cut off, yields nothing below it."""
    async with wire.log() as log, opened(log.follow_all(after_seq=3)) as events:
        waiting = asyncio.create_task(take(events, 1))
        await _append(log, 1, 2, 3, 4)

        [event] = await waiting

    assert number_of(event) == 4


async def test_the_head_says_which_log_it_is_and_how_far(wire: Wire) -> None:
    """The name stays, over connections too; the number is the last event's, whatever its run."""
    async with wire.log() as log:
        empty = await log.head()
        await log.append(an_event(1), 0)
        last = await log.append(an_event(2, OTHER_RUN), 0)
    async with wire.log() as again:
        head = await again.head()

    assert empty.last_seq == 0
    assert head == (empty.origin, last)
    assert head.origin


async def _append(log: EventLog, *numbers: int, after: int = 0) -> int:
    for number in numbers:
        after = await log.append(an_event(number), after)
    return after


async def _race(log: EventLog, first: int) -> list[int]:
    """Append 20 events, reading again whenever the other was quicker; return the numbers that were accepted."""
    accepted: list[int] = []
    while len(accepted) < 20:
        events = await log.read(RUN)
        try:
            await log.append(an_event(first + len(accepted)), events[-1].seq if events else 0)
        except StaleWriter:
            await asyncio.sleep(0)
        else:
            accepted.append(first + len(accepted))
    return accepted
