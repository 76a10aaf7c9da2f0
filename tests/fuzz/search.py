"""The search for inputs that break a target: rounds of hypothesis, between which inputs that reached new lines join the seeds."""

import contextlib
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from tests.fuzz.mutations import mutated
from tests.fuzz.target import Hang, Target, TooSlow

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES_IN_ROUND = 100
SMALLER_TRIES_MAX = 400
SMALLER_S = 15.0
FRESH_MAX = 400
"""Inputs one search keeps beyond its seeds."""
_OURS = (f"{ROOT}/sandbox/", f"{ROOT}/supervisor/")

Line = tuple[CodeType, int]
Trace = Callable[[FrameType, str, Any], Any]


class _RoundIsOver(Exception):
    """Ends hypothesis's own loop."""


@dataclass
class Find:
    """An input that broke a target, made smaller, and how."""

    data: bytes
    error: BaseException


@dataclass
class Search:
    """What is known of one target; `number` makes its course the same again."""

    target: Target
    number: int
    lines: set[Line] = field(default_factory=set)
    """Lines of ours that were reached."""
    fresh: list[bytes] = field(default_factory=list)
    """Inputs that reached lines no earlier one had."""
    inputs: int = 0
    deadline: float = math.inf
    """`time.monotonic()` after which a round runs no further input."""
    before: Callable[[bytes], object] = lambda _: None
    """Told of each input before it runs: what is known of a process that dies of one."""

    def known(self) -> Find | None:
        """Run the seeds and the corpus; return the first that breaks the target."""
        for data in [*self.target.seeds(), *self.target.kept()]:
            if find := self._tried(data):
                return find
        return None

    def round(self, examples: int = EXAMPLES_IN_ROUND) -> Find | None:
        """Run some more inputs; return one that breaks the target, as small as it could be made, or None."""
        found: list[Find] = []
        seeds = [*self.target.seeds(), *self.target.kept(), *self.fresh]

        @seed(self.number + self.inputs)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            phases=(Phase.generate,),
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )
        @given(mutated(seeds, self.target.words))
        def explore(data: bytes) -> None:
            if not found and time.monotonic() < self.deadline and (find := self._tried(data)):
                found.append(find)
            if found or time.monotonic() >= self.deadline:
                raise _RoundIsOver

        with contextlib.suppress(_RoundIsOver):
            explore()
        return self._smaller(found[0]) if found else None

    def until(self, deadline: float) -> Find | None:
        """Run rounds until `time.monotonic()` is past `deadline`, or one finds."""
        self.deadline = deadline
        find = self.known()
        while find is None and time.monotonic() < deadline:
            find = self.round()
        return find

    def _tried(self, data: bytes) -> Find | None:
        self.inputs += 1
        self.before(data)
        reached: set[Line] = set()
        try:
            with _lines_of_ours(reached):
                self.target.run(data)
        except TooSlow:
            return self._slow(data)
        except (Exception, Hang) as error:
            return Find(data, error)
        if not reached <= self.lines:
            self.lines |= reached
            if len(self.fresh) < FRESH_MAX:
                self.fresh.append(data)
        return None

    def _slow(self, data: bytes) -> Find | None:
        """Judge a slow input again without the watching, which is most of its time."""
        try:
            self.target.run(data)
        except (Exception, Hang) as error:
            return Find(data, error)
        return None

    def _smaller(self, find: Find) -> Find:
        """Cut pieces out of an input for as long as it breaks the target in the same way."""
        chance, until = random.Random(self.number), time.monotonic() + SMALLER_S
        size = max(1, len(find.data) // 2)
        for _ in range(SMALLER_TRIES_MAX):
            if time.monotonic() > until or not find.data:
                break
            at = chance.randrange(len(find.data))
            other = self._tried(find.data[:at] + find.data[at + size :])
            if other is not None and type(other.error) is type(find.error):
                find = other
            size = max(1, min(size * 9 // 10, len(find.data)))
        return find


@contextlib.contextmanager
def _lines_of_ours(reached: set[Line]) -> Iterator[None]:
    """Collect the lines of our own code that run in this thread."""

    def line(frame: FrameType, event: str, _: Any) -> Trace:
        if event == "line":
            reached.add((frame.f_code, frame.f_lineno))
        return line

    def call(frame: FrameType, _event: str, _: Any) -> Trace | None:
        return line if frame.f_code.co_filename.startswith(_OURS) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)
