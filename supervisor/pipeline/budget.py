"""The ledger of one run: reservations and settlements folded to what may still be spent; pure. Not prices (`sandbox.contract.price`).

As long as every call settles for at most what it reserved, settled + held never passes the limit. A provider's figure above the
reservation is recorded as it is: the money is gone, and hiding it would let the next call spend it again.
"""

from typing import Literal

from sandbox.contract.model import Frozen
from supervisor.pipeline.events import BudgetReserved, BudgetSettled
from supervisor.pipeline.run import BudgetState


class Ruling(Frozen):
    """The answer to one request; `append` says whether an event has to be written first."""

    granted: bool
    append: bool = False
    reason: str = ""


def call_key(job_id: str, attempt: int, call_id: str) -> str:
    """Return the name of one model call in the ledger."""
    return f"{job_id}/{attempt}/{call_id}"


def rule(
    budget: BudgetState,
    key: str,
    op: Literal["reserve", "extend", "settle"],
    nano_usd: int,
    *,
    stage_left_nano_usd: int | None = None,
) -> Ruling:
    """Decide one request; the same request again is answered the same and appends nothing.

    Args:
        budget: The ledger now.
        key: `call_key` of the model call.
        op: `reserve` and `extend` name the whole reservation, `settle` what the call cost.
        nano_usd: Not negative.
        stage_left_nano_usd: What the stage's own budget leaves for new reservations; None: it has none.
    """
    if key in budget.settled_calls:
        return Ruling(granted=op == "settle", reason="" if op == "settle" else "this call is settled already")
    held = budget.held.get(key)
    if op == "settle":
        if held is None:
            return Ruling(granted=False, reason="nothing is reserved for this call")
        return Ruling(granted=True, append=True)
    if op == "extend" and held is None:
        return Ruling(granted=False, reason="nothing is reserved for this call")
    more = nano_usd - (held or 0)
    if held is not None and more <= 0:
        return Ruling(granted=True)
    if more > budget.remaining_nano_usd:
        return Ruling(granted=False, reason="the run's budget is exhausted")
    if stage_left_nano_usd is not None and more > stage_left_nano_usd:
        return Ruling(granted=False, reason="the stage's budget is exhausted")
    return Ruling(granted=True, append=True)


def reserved(budget: BudgetState, event: BudgetReserved) -> BudgetState:
    """Return the ledger after a reservation; of one settled already it takes nothing, of one held it keeps the larger."""
    key = call_key(event.job_id, event.attempt, event.call_id)
    if key in budget.settled_calls or event.nano_usd <= budget.held.get(key, -1):
        return budget
    return budget.model_copy(update={"held": {**budget.held, key: event.nano_usd}})


def settled(budget: BudgetState, event: BudgetSettled) -> BudgetState:
    """Return the ledger after a settlement; the first one of a call counts."""
    key = call_key(event.job_id, event.attempt, event.call_id)
    if key in budget.settled_calls:
        return budget
    return budget.model_copy(
        update={
            "held": {other: amount for other, amount in budget.held.items() if other != key},
            "settled_calls": {**budget.settled_calls, key: event.nano_usd},
            "settled_nano_usd": budget.settled_nano_usd + event.nano_usd,
            "usage": budget.usage + event.usage,
            "unsettled_calls": budget.unsettled_calls + event.unsettled,
        }
    )


def is_over_warning(budget: BudgetState, warn_nano_usd: int) -> bool:
    """Return whether spending has reached the warning threshold and nobody was told yet."""
    return not budget.warned and budget.settled_nano_usd >= warn_nano_usd


def held_by(budget: BudgetState, job_id: str, attempt: int) -> dict[str, int]:
    """Return what one attempt still holds, by call id."""
    prefix = call_key(job_id, attempt, "")
    return {key.removeprefix(prefix): amount for key, amount in budget.held.items() if key.startswith(prefix)}
