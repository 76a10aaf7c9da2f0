"""Which fault comes next, and the count of those that came; seeded, so that a seed gives the same faults again. Not how they are made."""

import random
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Victim = Literal["cli", "stack", "supervisor", "executor", "container", "broker"]
Kind = Literal["kill -9", "stop"]
VICTIMS: tuple[Victim, ...] = ("cli", "stack", "supervisor", "executor", "container", "broker")
KINDS: tuple[Kind, ...] = ("kill -9", "stop")
SEED_VARIABLE = "ANDON_CHAOS_SEED"

STOP_S_MIN, STOP_S_MAX = 0.3, 8.0
"""How long a stopped process stands: across the lease of a supervisor (6 s), well below the lease of an attempt (60 s)."""


@dataclass(frozen=True)
class Fault:
    """One thing that is done to one process."""

    victim: Victim
    kind: Kind
    pause_s: float
    """Between the fault before it and this one."""
    stop_s: float = 0.0
    """How long the victim stands still; 0 for a kill."""
    pick: float = 0.0
    """Which of several victims of that kind, as a share of their number in [0, 1)."""

    @property
    def signal(self) -> signal.Signals:
        """Return what is sent."""
        return signal.SIGKILL if self.kind == "kill -9" else signal.SIGSTOP

    def line(self) -> str:
        """Return the fault for a person."""
        return f"{self.kind} {self.victim}" + (f" for {self.stop_s:.1f} s" if self.stop_s else "")


class Plan:
    """Draws faults until every victim has had its share."""

    def __init__(self, seed: int, shares: Mapping[Victim, int], *, pause_s_mean: float = 1.5, stop_s_max: float = STOP_S_MAX) -> None:
        """Draw `shares[victim]` faults for each victim, in an order and at moments that `seed` decides."""
        self._random = random.Random(seed)
        self._pause_s_mean = pause_s_mean
        self._stop_s_max = stop_s_max
        self._left: list[Victim] = [victim for victim, share in shares.items() for _ in range(share)]
        self._random.shuffle(self._left)

    @property
    def is_done(self) -> bool:
        """Return whether every fault was drawn."""
        return not self._left

    def next(self) -> Fault:
        """Draw one."""
        kind: Kind = "kill -9" if self._random.random() < 0.65 else "stop"
        return Fault(
            victim=self._left.pop(),
            kind=kind,
            pause_s=min(self._random.expovariate(1 / self._pause_s_mean), 4 * self._pause_s_mean),
            stop_s=self._random.uniform(STOP_S_MIN, self._stop_s_max) if kind == "stop" else 0.0,
            pick=self._random.random(),
        )

    def put_back(self, fault: Fault) -> None:
        """Keep a fault's victim for later: there is none of its kind now."""
        self._left.insert(self._random.randrange(len(self._left) + 1), fault.victim)


@dataclass
class Tally:
    """What was done and how it ended."""

    faults: Counter[tuple[str, Victim, Kind]] = field(default_factory=Counter)
    """By level, victim and kind."""
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By level: `landed`, or the reason a run gave."""
    incidents: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By level: how commands ended that were not the last of their run, and what was done then."""
    seconds: dict[str, float] = field(default_factory=dict)

    def count(self, level: str, fault: Fault) -> None:
        """Note one fault that was made."""
        self.faults[level, fault.victim, fault.kind] += 1

    @property
    def total(self) -> int:
        """Return all faults."""
        return sum(self.faults.values())

    def of(self, victim: Victim, levels: Iterable[str]) -> int:
        """Return the faults of one victim on these levels."""
        return sum(self.faults[level, victim, kind] for level in levels for kind in KINDS)

    @property
    def levels(self) -> list[str]:
        """Return the levels that were run, sorted."""
        return sorted({level for level, *_ in self.faults} | {level for level, _ in self.ends})

    def table(self) -> str:
        """Return everything as lines for a person."""
        lines = [f"{'level':<8}" + "".join(f"{victim:>12}" for victim in VICTIMS) + f"{'all':>8}   (kill -9 + stop)"]
        for level in self.levels:
            cells = [f"{self.faults[level, victim, 'kill -9']} + {self.faults[level, victim, 'stop']}" for victim in VICTIMS]
            every = sum(count for (one, *_), count in self.faults.items() if one == level)
            lines.append(f"{level:<8}" + "".join(f"{cell:>12}" for cell in cells) + f"{every:>8}")
        for level in self.levels:
            ends = ", ".join(f"{count} {end}" for (one, end), count in sorted(self.ends.items()) if one == level)
            lines.append(f"{level:<8}runs: {ends or 'none'}; {self.seconds.get(level, 0):.0f} s")
            lines += [f"{'':<8}  {count} × {what}" for (one, what), count in sorted(self.incidents.items()) if one == level]
        return "\n".join(lines)
