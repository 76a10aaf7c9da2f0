"""Where a job may go: its pool's shared lane, or the lane of one executor whose labels match; pure. Not when (`order`).

A slot that waits pulls on the shared lane and on its own, so its one place is counted on both: whatever is placed on one executor's
lane is taken off the shared lane of each of its pools as well.
"""

from collections.abc import Iterable, Mapping, Sequence

from sandbox.contract.labels import RESERVED, unmatched
from sandbox.contract.wire import Heartbeat

Lane = tuple[str, str]
"""A pool, and the executor that has the lane for itself; empty: the pool's shared one."""


class Room:
    """How many more jobs each lane takes at this moment; taking a place leaves less."""

    def __init__(self, credits: Mapping[Lane, int]) -> None:
        """Make the room of one look; a lane that is not named has none."""
        self._left = dict(credits)

    def take(self, pool: str, labels: Mapping[str, str], executors: Sequence[Heartbeat]) -> Lane | None:
        """Take a place for a job and return its lane, None if there is none now."""
        if not labels:
            return self._taken((pool, ""), (pool,))
        matching = [beat for beat in candidates(pool, labels, executors) if self._left.get((pool, beat.executor), 0) > 0]
        if not matching:
            return None
        chosen = max(matching, key=lambda beat: (self._left[pool, beat.executor], beat.slots - beat.busy, beat.executor))
        return self._taken((pool, chosen.executor), chosen.pools)

    def _taken(self, lane: Lane, pools: Iterable[str]) -> Lane | None:
        if self._left.get(lane, 0) <= 0:
            return None
        pool, executor = lane
        shared = [(name, "") for name in pools]
        own = [(name, executor) for name in pools] if executor else []
        for each in {lane, *shared, *own}:
            self._left[each] = max(0, self._left.get(each, 0) - 1)
        return pool, executor


def candidates(pool: str, labels: Mapping[str, str], executors: Iterable[Heartbeat]) -> list[Heartbeat]:
    """Return the executors of a pool that announce matching labels and take jobs, whether or not a slot is free."""
    return [beat for beat in executors if pool in beat.pools and not beat.held and not unmatched(labels, beat.labels)]


def obstacle(pool: str, labels: Mapping[str, str], executors: Sequence[Heartbeat]) -> str:
    """Return in one line why no executor can take a job of `pool` with `labels` now."""
    members = [beat for beat in executors if pool in beat.pools]
    if not members:
        return f"no executor of pool {pool} is connected: start one with `andon executor`"
    matching = [beat for beat in members if not unmatched(labels, beat.labels)]
    if not matching:
        advice = "see docs/engines.md" if any(name.startswith(RESERVED) for name in labels) else "start one with `andon executor --label`"
        return f"no executor of pool {pool} matches the labels {_wanted(labels, members)}: {advice}"
    taking = [beat for beat in matching if not beat.held]
    if not taking:
        said = ", ".join(f"{beat.executor} ({beat.held})" for beat in matching[:5])
        return f"every executor of pool {pool} that could take it takes no jobs: {said}"
    slots = sum(beat.slots for beat in taking)
    which = f"of pool {pool}" if not labels else f"of pool {pool} with its labels"
    if sum(beat.busy for beat in taking) < slots:
        return f"a slot {which} is free, so it is about to be handed out"
    return f"all {slots} slots {which} are busy" if slots != 1 else f"the one slot {which} is busy"


def _wanted(labels: Mapping[str, str], members: Sequence[Heartbeat]) -> str:
    """Return the labels nobody has; if each is somebody's but all are nobody's, those the nearest executor lacks."""
    lacking = [unmatched(labels, beat.labels) for beat in members]
    nobodys = sorted(set.intersection(*map(set, lacking)))
    nearest, lacks = min(zip(members, lacking, strict=True), key=lambda pair: (len(pair[1]), pair[0].executor))
    return " ".join(nobodys) if nobodys else f"together ({nearest.executor} lacks {' '.join(lacks)})"
