"""A run's budget in memory, as the gateway sees it; the real one is the fold of a run's events (`supervisor/pipeline/budget`)."""

from dataclasses import dataclass, field

from sandbox.contract.result import Usage
from sandbox.contract.wire import BudgetReply


@dataclass
class MemoryLedger:
    """`wire.Ledger` with one budget; reservations are atomic, because nothing here waits."""

    budget_nano_usd: int = 50_000_000_000
    spent_nano_usd: int = 0
    held: dict[str, int] = field(default_factory=dict)
    settled: list[tuple[str, int, Usage, bool]] = field(default_factory=list)
    """(call id, nano-USD, usage, unsettled)."""
    most_nano_usd: int = 0
    """The most that was ever spent and held together."""
    extended: int = 0
    limits: list[float] = field(default_factory=list)
    """The pauses a provider asked for."""
    waits_s: list[float] = field(default_factory=list)
    """What the next reservations are told to wait, one after the other."""

    @property
    def left_nano_usd(self) -> int:
        """What no call has spent or holds."""
        return self.budget_nano_usd - self.spent_nano_usd - sum(self.held.values())

    async def reserve(self, call_id: str, nano_usd: int, model: str) -> BudgetReply:
        """Hold money if it is there."""
        assert call_id not in self.held
        if self.waits_s:
            return BudgetReply(granted=False, remaining_nano_usd=self.left_nano_usd, wait_s=self.waits_s.pop(0))
        return self._hold(call_id, nano_usd, nano_usd)

    async def extend(self, call_id: str, nano_usd: int) -> BudgetReply:
        """Hold more for a call."""
        self.extended += 1
        return self._hold(call_id, nano_usd, nano_usd - self.held[call_id])

    async def settle(self, call_id: str, nano_usd: int, usage: Usage, *, unsettled: bool, limited_s: float | None = None) -> BudgetReply:
        """Replace what is held by what was spent."""
        if limited_s is not None:
            self.limits.append(limited_s)
        del self.held[call_id]
        self.spent_nano_usd += nano_usd
        self.settled.append((call_id, nano_usd, usage, unsettled))
        self._note()
        return BudgetReply(granted=True, remaining_nano_usd=self.left_nano_usd)

    def _hold(self, call_id: str, nano_usd: int, more: int) -> BudgetReply:
        if more > self.left_nano_usd:
            return BudgetReply(granted=False, remaining_nano_usd=self.left_nano_usd, reason="the run's budget is exhausted")
        self.held[call_id] = nano_usd
        self._note()
        return BudgetReply(granted=True, remaining_nano_usd=self.left_nano_usd)

    def _note(self) -> None:
        self.most_nano_usd = max(self.most_nano_usd, self.spent_nano_usd + sum(self.held.values()))
