"""How fast all attempts together may call a model: for each family one cool-down, one number of calls at once, one fair queue.

A provider limits an organisation, not a host, so this is kept where every call of every host asks first: beside the ledger. It is
memory only: a supervisor that takes over learns the limit from the provider's next refusal. Nobody is held here: a caller is told
after how long to ask again, and one that stays away loses its turn. Not money (`pipeline/budget`), not tries (`gateway/patience`).
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from sandbox.contract.wire import RATE_PAUSE_MAX_S, RATE_WAIT_MAX_S

FAMILIES_MAX = 64
WAITING_MAX = 4096
"""Callers of one family that are remembered in their order; more wait without a turn until there is room."""
AT_ONCE_MAX = 256.0
"""A limit that has grown back to this is no limit any more."""
FIRST_PAUSE_S = 1.0
LOOK_AGAIN_S = 0.5
"""How soon a caller that waits for its turn asks again, when few wait."""
ASKS_PER_S = 40.0
"""How many callers may ask again in one second, all together."""
PATIENCE_S = 5.0
"""How much later than told a caller may ask without losing its turn."""
CALL_MAX_S = 1200.0
"""A call whose settlement was lost is held until its attempt ends; longer than this it does not keep others waiting."""
GRANT_S = 10.0
"""How long it may take from our word until the ledger holds the money of a call."""
JOBS_MAX = 4096

_WORD = re.compile(r"[a-z]+")


class Caller(NamedTuple):
    """One model call of one attempt."""

    run_id: str
    job_id: str
    attempt: int
    call_id: str


def family_of(model: str) -> str:
    """Return what shares a rate limit: a model's name without its versions, `claude-sonnet-5-5` and `claude-3-5-sonnet` alike."""
    return "-".join(sorted(_WORD.findall(model.lower())))[:80] or model[:80]


class Rates:
    """The rate limits of every model family, as far as the provider has shown them."""

    def __init__(
        self, monotonic: Callable[[], float], is_held: Callable[[Caller], bool], chance: Callable[[], float] = random.random
    ) -> None:
        """Know of no limit yet.

        Args:
            monotonic: Gives seconds that only grow.
            is_held: Whether the ledger still holds money for a call: one that ended with its executor does not run any more.
            chance: Gives a number from 0 to 1, which parts callers from each other.
        """
        self._monotonic = monotonic
        self._is_held = is_held
        self._chance = chance
        self._families: dict[str, _Family] = {}
        self._of: dict[Caller, str] = {}
        """The family of every caller that waits or runs."""
        self._waits: dict[str, dict[int, _Wait]] = {}

    def ask(self, caller: Caller, model: str) -> float:
        """Return 0 if the call may go out now, which then counts as running until it is settled; else the seconds to wait.

        The same caller may ask again and again; it keeps its place.
        """
        now = self._monotonic()
        family = self._family(family_of(model))
        family.forget(now, self._is_held)
        wait_s = family.ask(caller, now, self._chance())
        self._of[caller] = family.name
        self._forget_strangers()
        if wait_s > 0:
            self._wait(caller).goes_on(now, now + wait_s + PATIENCE_S)
        elif wait := self._waits.get(caller.job_id, {}).get(caller.attempt):
            wait.ends(now)
        return wait_s

    def drop(self, caller: Caller) -> None:
        """Forget a call that does not go out after all."""
        if family := self._families.get(self._of.pop(caller, "")):
            family.waiting.pop(caller, None)
            family.running.pop(caller, None)

    def settled(self, caller: Caller, *, is_served: bool, limited_s: float | None) -> None:
        """Take the end of a call: whether the provider worked for it, and if it limited its rate, for how long (0: it did not say)."""
        family = self._families.get(self._of.pop(caller, ""))
        if family is None or (since := family.running.pop(caller, None)) is None:
            return
        now = self._monotonic()
        if limited_s is not None:
            family.limited(since, limited_s, now, self._chance())
            self._wait(caller).goes_on(now, max(now, family.cool_until) + PATIENCE_S)
        elif is_served:
            family.served()

    def waited_s(self, job_id: str, attempt: int) -> float:
        """Return for how long an attempt has waited for a rate limit, up to now; at most what is not charged to its deadlines."""
        wait = self._waits.get(job_id, {}).get(attempt)
        return min(wait.total(self._monotonic()), RATE_WAIT_MAX_S) if wait else 0.0

    def _family(self, name: str) -> "_Family":
        if name not in self._families:
            while len(self._families) >= FAMILIES_MAX:
                del self._families[next(iter(self._families))]
            self._families[name] = _Family(name)
        return self._families[name]

    def _forget_strangers(self) -> None:
        """Keep no family of callers that their family has forgotten."""
        if len(self._of) > 2 * WAITING_MAX:
            known = {caller for family in self._families.values() for caller in (*family.waiting, *family.running)}
            self._of = {caller: name for caller, name in self._of.items() if caller in known}

    def _wait(self, caller: Caller) -> "_Wait":
        """Return the wait of an attempt; of a job's attempts only the last one's is kept."""
        if caller.attempt not in self._waits.get(caller.job_id, {}):
            while len(self._waits) >= JOBS_MAX:
                del self._waits[next(iter(self._waits))]
            self._waits[caller.job_id] = {caller.attempt: _Wait()}
        return self._waits[caller.job_id][caller.attempt]


@dataclass
class _Wait:
    """For how long the calls of one attempt have waited; calls that wait at the same time are counted once."""

    passed_s: float = 0.0
    since: float = float("-inf")
    until: float = float("-inf")
    """Later, a caller that does not ask again has given up."""

    def goes_on(self, now: float, until: float) -> None:
        self.passed_s, self.since, self.until = self.total(now), now, max(self.until, until)

    def ends(self, now: float) -> None:
        self.passed_s, self.since, self.until = self.total(now), now, now

    def total(self, now: float) -> float:
        return self.passed_s + max(0.0, min(now, self.until) - self.since)


@dataclass
class _Family:
    """One model family; times are of the monotonic clock."""

    name: str
    running: dict[Caller, float] = field(default_factory=dict)
    """Calls that went out, and when."""
    waiting: dict[Caller, float] = field(default_factory=dict)
    """Callers in the order they first asked, and until when each keeps its place."""
    limit: float | None = None
    """How many calls may run at once; None: nobody was ever refused."""
    cool_until: float = float("-inf")
    struck_at: float = float("-inf")
    strikes: int = 0
    """Refusals since the last call that was served, those of one burst counted once."""
    turns: dict[str, int] = field(default_factory=dict)
    """Which turn a run or a job had last."""
    turn: int = 0

    def forget(self, now: float, is_held: Callable[[Caller], bool]) -> None:
        """Forget callers that gave up, and calls whose executor is gone."""
        self.waiting = {caller: until for caller, until in self.waiting.items() if until >= now}
        self.running = {
            caller: since
            for caller, since in self.running.items()
            if now - since < GRANT_S or (now - since < CALL_MAX_S and is_held(caller))
        }

    def ask(self, caller: Caller, now: float, chance: float) -> float:
        if caller in self.running:  # its answer was lost
            return 0.0
        if now < self.cool_until:
            wait_s = self.cool_until - now
            return self._place(caller, now, wait_s + chance * min(2.0, wait_s / 4))
        if self.limit is None or self._has_turn(caller):
            self.waiting.pop(caller, None)
            self.running[caller] = now
            self._take_turn(caller)
            return 0.0
        return self._place(caller, now, max(LOOK_AGAIN_S, len(self.waiting) / ASKS_PER_S) * (0.75 + chance / 2))

    def served(self) -> None:
        """Let one more call run for each round of calls that were served."""
        self.strikes = 0
        if self.limit is not None:
            self.limit += 1 / self.limit
            if self.limit >= AT_ONCE_MAX:
                self.limit = None

    def limited(self, since: float, asked_s: float, now: float, chance: float) -> None:
        """Cool down, and halve how many calls run at once.

        Calls that were out already when the provider last refused say nothing new: a burst counts once.
        """
        if since <= self.struck_at:
            self.cool_until = max(self.cool_until, now + min(asked_s, RATE_PAUSE_MAX_S))
            return
        self.strikes += 1
        self.struck_at = now
        pause_s = asked_s or FIRST_PAUSE_S * 2 ** min(self.strikes - 1, 10) * (1 + chance / 4)
        self.cool_until = max(self.cool_until, now + min(pause_s, RATE_PAUSE_MAX_S))
        self.limit = max(1.0, (len(self.running) + 1) / 2)

    def _place(self, caller: Caller, now: float, wait_s: float) -> float:
        wait_s = min(wait_s, RATE_PAUSE_MAX_S)
        if caller in self.waiting or len(self.waiting) < WAITING_MAX:
            self.waiting[caller] = now + wait_s + PATIENCE_S
        return wait_s

    def _has_turn(self, caller: Caller) -> bool:
        free = int(self.limit or 0) - len(self.running)
        if free <= 0:
            return False
        return caller in self._order({*self.waiting, caller})[:free]

    def _order(self, callers: Iterable[Caller]) -> list[Caller]:
        """Return callers in the order they are due: every run has its share, in it every job, in that whoever asked first."""
        asked = {caller: number for number, caller in enumerate(self.waiting)}
        mine = sorted(callers, key=lambda caller: asked.get(caller, len(asked)))
        return self._fairly(self._fairly(mine, lambda caller: caller.job_id), lambda caller: caller.run_id)

    def _fairly(self, callers: list[Caller], party: Callable[[Caller], str]) -> list[Caller]:
        """Deal turns: a party's first caller counts as one more than it has running, its second as two more, and so on."""
        share: dict[str, int] = {}
        for caller in self.running:
            share[party(caller)] = share.get(party(caller), 0) + 1
        dealt: list[tuple[int, int, Caller]] = []
        for caller in callers:
            name = party(caller)
            share[name] = share.get(name, 0) + 1
            dealt.append((share[name], self.turns.get(name, 0), caller))
        return [caller for _, _, caller in sorted(dealt, key=lambda one: one[:2])]

    def _take_turn(self, caller: Caller) -> None:
        self.turn += 1
        for name in (caller.run_id, caller.job_id):
            self.turns.pop(name, None)
            self.turns[name] = self.turn
        while len(self.turns) > 2 * WAITING_MAX:
            del self.turns[next(iter(self.turns))]
