"""Which waiting job goes next: rank, then fairness between features, then first come; pure. Not where it goes (`placement`).

A job's rank is its priority plus one for each whole minute it has waited. So a job that is put `(10 - p) + 1` minutes after one of
priority p never goes before it, whatever its own priority: what waits behind newer jobs waits a bounded time.
"""

import heapq
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

STEP_S = 60.0
"""Each whole step of waiting counts as one step of priority."""

Answer = Literal["taken", "dropped", "stuck"]
"""taken: it goes, its feature has one more job out. dropped: nobody wants it any more. stuck: its whole line stays for now."""

Key = tuple[int, int, float, int]


@dataclass(frozen=True, slots=True)
class Waiting:
    """One copy of a job that waits."""

    name: str
    """Of the copy, unique."""
    feature: str
    """Among which jobs the fairness is: a run, because a run is the one traversal of one feature."""
    priority: int
    since_s: float
    """When it was put, by a monotonic clock."""
    number: int
    """Grows with each job that is put."""


def rank(waiting: Waiting, now_s: float) -> int:
    """Return how urgent a job is now; it grows by one a minute."""
    return waiting.priority + int(max(0.0, now_s - waiting.since_s) // STEP_S)


def key_of(waiting: Waiting, now_s: float, out: Mapping[str, int]) -> Key:
    """Return what jobs are sorted by, smallest first; `out` says how many jobs of a feature executors have already."""
    return (-rank(waiting, now_s), out.get(waiting.feature, 0), waiting.since_s, waiting.number)


def in_turn(lines: Sequence[Sequence[Waiting]], now_s: float, out: Mapping[str, int]) -> Generator[Waiting, Answer, None]:
    """Yield the jobs in their turn; after each, send what became of it, which moves the turns of those after it.

    Args:
        lines: Each one's jobs have the same feature, priority and placement, and stand as they came: only its first can be next.
        now_s: The clock of `Waiting.since_s`.
        out: Jobs out by feature, before the first is taken.
    """
    counts = Counter(out)
    heap = [(key_of(line[0], now_s, counts), index, 0) for index, line in enumerate(lines) if line]
    heapq.heapify(heap)
    while heap:
        key, index, at = heapq.heappop(heap)
        waiting = lines[index][at]
        now = key_of(waiting, now_s, counts)
        if now != key:  # a job of its feature was taken since: counts only grow, so the old key was too early, never too late
            heapq.heappush(heap, (now, index, at))
            continue
        answer = yield waiting
        if answer == "taken":
            counts[waiting.feature] += 1
        if answer != "stuck" and at + 1 < len(lines[index]):
            heapq.heappush(heap, (key_of(lines[index][at + 1], now_s, counts), index, at + 1))
