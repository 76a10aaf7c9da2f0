"""What model calls cost, summed as a person asks: each figure is the sum of the gateway's own records, to the nano-dollar; pure.

A record is a call's settlement in a run's event log, its first one: a repetition changes nothing, in the ledger as here. Not what
is held at this moment for calls that are still on their way (`pipeline/budget`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final, Literal, get_args

from sandbox.contract.model import Frozen
from sandbox.contract.result import Usage
from supervisor.pipeline.budget import call_key
from supervisor.pipeline.events import AnyEvent, BudgetReserved, BudgetSettled, RunAccepted

By = Literal["stage", "model", "feature", "day"]
BY: Final = get_args(By)
UNKNOWN_MODEL: Final = "unknown"


class Call(Frozen):
    """One settled model call."""

    run_id: str
    feature: str
    stage: str
    model: str
    at: float
    """When it was settled, Unix seconds."""
    nano_usd: int
    usage: Usage
    unsettled: bool
    """Its usage was lost, so that it was charged in full."""


class CostRow(Frozen):
    """All calls of one stage, model, feature or day; of everything, in the last row."""

    name: str
    calls: int
    unsettled: int
    """Among them, calls whose usage was lost."""
    usage: Usage
    nano_usd: int


def calls_of(events: Iterable[AnyEvent]) -> Iterator[Call]:
    """Yield the settled calls of one run's log, in order."""
    feature, models, seen = "", {}, set()
    for event in events:
        if isinstance(event, RunAccepted):
            feature = event.intent.feature
        elif isinstance(event, BudgetReserved):
            models[call_key(event.job_id, event.attempt, event.call_id)] = event.model
        elif isinstance(event, BudgetSettled):
            key = call_key(event.job_id, event.attempt, event.call_id)
            if key in seen:
                continue
            seen.add(key)
            yield Call(
                run_id=event.run_id,
                feature=feature,
                stage=event.job_id.removeprefix(f"{event.run_id}-").rsplit("-", 1)[0],
                model=models.get(key, "") or UNKNOWN_MODEL,
                at=event.at,
                nano_usd=event.nano_usd,
                usage=event.usage,
                unsettled=event.unsettled,
            )


def costs_by(calls: Sequence[Call], by: By) -> list[CostRow]:
    """Return one row for each stage, model, feature or local day, and the sum of all as the last; days in order, the rest dearest first."""
    name: dict[By, Callable[[Call], str]] = {
        "stage": lambda call: call.stage,
        "model": lambda call: call.model,
        "feature": lambda call: call.feature,
        "day": lambda call: datetime.fromtimestamp(call.at).astimezone().date().isoformat(),
    }
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(name[by](call), []).append(call)
    rows = [_row(each, group) for each, group in groups.items()]
    rows.sort(key=lambda row: (row.name,) if by == "day" else (-row.nano_usd, row.name))
    return [*rows, _row("total", calls)]


def _row(name: str, calls: Sequence[Call]) -> CostRow:
    usage = sum((call.usage for call in calls), Usage())
    return CostRow(
        name=name,
        calls=len(calls),
        unsettled=sum(call.unsettled for call in calls),
        usage=usage,
        nano_usd=sum(call.nano_usd for call in calls),
    )
