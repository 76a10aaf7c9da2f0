"""What a run's time went to: the critical path through its trace, as Jaeger draws it; the tree itself is made in `span_tree`."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from supervisor.api.traces.span_tree import Node

OVERLAP_S: Final = 0.005
"""Two parts that follow each other may overlap by this much: they were timed by two processes."""


@dataclass(frozen=True)
class Share:
    """What one kind of work took of the time in one part of a run."""

    seconds: float
    what: str
    """The span's title; with `itself` for the time in which nothing below it was under way."""
    part: str
    """The part of the run it was in, such as a stage; empty: none."""
    times: int
    """How many spans of that title."""


def own_seconds(root: Node, now: float) -> Mapping[int, float]:
    """Return for how long each span alone kept the run from its end, by `id(node)`; all together are the root's duration.

    Walked from the end: what ended last held up the rest, before it what ended last before it began, and so on.

    Args:
        root: Of the tree.
        now: Unix seconds, the end of what still goes on.
    """
    own: dict[int, float] = defaultdict(float)
    left = [(root, root.start, _end(root, now))]
    while left:
        node, begin, cursor = left.pop()
        latest = cursor + OVERLAP_S if cursor < _end(node, now) else float("inf")
        for child in sorted(node.children, key=lambda each: _end(each, now), reverse=True):
            start, end = max(child.start, begin), min(_end(child, now), cursor)
            if _end(child, now) > latest or start >= cursor or end < start:
                continue
            own[id(node)] += cursor - end
            left.append((child, start, end))
            cursor, latest = start, start + OVERLAP_S
        own[id(node)] += max(0.0, cursor - begin)
    return own


def shares(root: Node, now: float) -> list[Share]:
    """Return what the time of a run went to, the longest first; spans of one title in one part of the run are added up."""
    own = own_seconds(root, now)
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    times: dict[tuple[str, str], int] = defaultdict(int)
    for node, part in _with_parts(root):
        key = (f"{node.title} itself" if node.children else node.title, part)
        seconds[key] += own.get(id(node), 0.0)
        times[key] += id(node) in own
    found = [Share(each, *key, times[key]) for key, each in seconds.items() if each > 0]
    return sorted(found, key=lambda share: share.seconds, reverse=True)


def _with_parts(root: Node) -> Iterator[tuple[Node, str]]:
    """Yield every span with the title of the root's child it is in."""
    yield root, ""
    left = [(child, child.title) for child in root.children]
    while left:
        node, part = left.pop()
        yield node, part
        left += [(child, part) for child in node.children]


def _end(node: Node, now: float) -> float:
    return max(node.start, now if node.end is None else node.end)
