"""One event to the rows it changes; what `pipeline.fold` does to a state, done to tables. Not transactions (`projection.py`).

The rules of repetition are the fold's: the first settlement of a call counts, an end counts for the attempt that holds the job.
A property test compares the two over random histories. Text is made storable (no NUL, bounded) and amounts are clipped, so that
no event, whoever wrote it, can bring the history to a stop.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Delete, Insert, Table, Update, and_, bindparam, delete, insert, select, update

from sandbox.contract.result import Usage
from supervisor.pipeline import events as ev
from supervisor.store.history.tables import attempts, calls, findings, jobs, runs

TEXT_CHARS_MAX: Final = 4_000
AMOUNT_MAX: Final = 10**15
"""A million US dollars, or as many tokens: above it a single call's figure is clipped, and 9,000 of them still fit 64 bits."""


def record(connection: Connection, events: Sequence[ev.AnyEvent]) -> None:
    """Change the rows of events in order; an event of a run or job that is not known changes nothing."""
    for event in events:
        _record(connection, event)
    for run_id, last in {event.run_id: event for event in events}.items():
        _change(connection, runs, {"run_id": run_id}, last_at=last.at, last_seq=last.seq)


def _record(connection: Connection, event: ev.AnyEvent) -> None:
    match event:
        case ev.RunAccepted():
            _accepted(connection, event)
        case ev.JobDispatched():
            _dispatched(connection, event)
        case ev.JobRepublished():
            _on_job(connection, event.job_id, held_by=None)
        case ev.AttemptStarted():
            _started(connection, event)
        case ev.AttemptEnded():
            _ended(connection, event)
        case ev.JobJudged():
            _judged(connection, event)
        case ev.BudgetReserved():
            _reserved(connection, event)
        case ev.BudgetSettled():
            _settled(connection, event)
        case _:
            _run_level(connection, event)


def storable(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """Return text as every database takes it: no NUL, no half characters, bounded."""
    return text[:chars_max].replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _accepted(connection: Connection, event: ev.RunAccepted) -> None:
    intent = event.intent
    _replace(
        connection,
        runs,
        {"run_id": event.run_id},
        feature=intent.feature,
        request=storable(intent.request),
        repository=storable(intent.repository),
        base_name=storable(intent.base_name),
        base_commit=intent.base_commit,
        branch=storable(intent.branch),
        mode=intent.mode,
        trace_id=storable(event.trace_id),
        state="queued",
        delivered=False,
        accepted_at=event.at,
        last_at=event.at,
        budget_nano_usd=_clipped(intent.budget_nano_usd),
        last_seq=event.seq,
    )


def _dispatched(connection: Connection, event: ev.JobDispatched) -> None:
    _delete(connection, attempts, {"job_id": event.job_id})
    _delete(connection, findings, {"job_id": event.job_id})
    _replace(
        connection,
        jobs,
        {"job_id": event.job_id},
        run_id=event.run_id,
        stage=event.stage,
        role=storable(event.role),
        round=event.round,
        kind=event.kind,
        dispatched_at=event.at,
    )


def _started(connection: Connection, event: ev.AttemptStarted) -> None:
    if not _on_job(connection, event.job_id, held_by=event.attempt):
        return
    key = {"job_id": event.job_id, "attempt": event.attempt}
    _replace(connection, attempts, key, run_id=event.run_id, executor=storable(event.executor), started_at=event.at)
    _change(connection, runs, {"run_id": event.run_id, "state": "queued"}, state="running")


def _ended(connection: Connection, event: ev.AttemptEnded) -> None:
    if _change(connection, jobs, {"job_id": event.job_id, "held_by": event.attempt}, held_by=None):
        _change(
            connection,
            attempts,
            {"job_id": event.job_id, "attempt": event.attempt},
            ended_at=event.ended_at,
            outcome=event.outcome.value,
            reason=storable(event.reason),
            container_id=storable(event.container_id),
            salvage_ref=event.salvage_ref and storable(event.salvage_ref),
        )


def _judged(connection: Connection, event: ev.JobJudged) -> None:
    known = _on_job(
        connection,
        event.job_id,
        verdict=event.verdict,
        commit_id=event.commit,
        judged_at=event.at,
        tests_passed=event.tests.passed,
        tests_failed=event.tests.failed,
        tests_skipped=event.tests.skipped,
    )
    if not known:
        return
    _delete(connection, findings, {"job_id": event.job_id})
    for number, each in enumerate(event.findings, start=1):
        own = {"job_id": event.job_id, "number": number, "run_id": event.run_id, "path": each.path and storable(each.path)}
        _insert(connection, findings, own | {"check_name": storable(each.check), "message": storable(each.message)})
    if event.verdict == "hold":
        _on_run(connection, event, state="waiting", exit_code=3)


def _reserved(connection: Connection, event: ev.BudgetReserved) -> None:
    amount = _clipped(event.nano_usd)
    key = _call_key(event)
    found = connection.execute(_THE_CALL, key).one_or_none()
    if found is None:
        own = {"run_id": event.run_id, "model": storable(event.model), "reserved_nano_usd": amount, "unsettled": False}
        _insert(connection, calls, key | own)
    elif found.settled_at is None and amount > found.reserved_nano_usd:
        _change(connection, calls, key, reserved_nano_usd=amount)


def _settled(connection: Connection, event: ev.BudgetSettled) -> None:
    counters = dict(zip(_COUNTERS, _amounts(event.nano_usd, event.usage), strict=True))
    key = _call_key(event)
    found = connection.execute(_THE_CALL, key).one_or_none()
    own = {"settled_at": event.at, "unsettled": event.unsettled, **counters}
    if found is None:
        _insert(connection, calls, key | own | {"run_id": event.run_id, "model": "", "reserved_nano_usd": 0})
    elif found.settled_at is None:
        _change(connection, calls, key, **own)
    else:
        return
    more = {f"more_{name}": amount for name, amount in counters.items()}
    connection.execute(_COUNT_FOR_ATTEMPT, more | {"of_job": event.job_id, "of_attempt": event.attempt})
    connection.execute(_COUNT_FOR_RUN, more | {"of_run": event.run_id, "more_unsettled_calls": int(event.unsettled)})


def _run_level(connection: Connection, event: ev.AnyEvent) -> None:
    match event:
        case ev.RunLanded():
            change = {"landed_commit": event.commit, "branch": storable(event.branch), "ended_at": event.at}
            _on_run(connection, event, state="landed", exit_code=0, **change)
        case ev.RunDelivered():
            _on_run(connection, event, delivered=True, branch=storable(event.branch), exit_code=0, end_reason="")
        case ev.DeliveryFailed():
            _on_run(connection, event, exit_code=event.exit_code, end_reason=storable(event.reason))
        case ev.RunParked():
            _on_run(connection, event, state="parked", exit_code=event.exit_code, end_reason=storable(event.reason))
        case ev.RunResumed():
            _resumed(connection, event)
        case ev.RunFailed():
            end = {"end_stage": storable(event.stage), "end_check": storable(event.check), "end_reason": storable(event.reason)}
            _on_run(connection, event, state="failed", exit_code=event.exit_code, ended_at=event.at, **end)
        case ev.RunCancelled():
            end = {"end_reason": storable(event.reason)}
            _on_run(connection, event, state="cancelled", exit_code=event.exit_code, ended_at=event.at, **end)
        case _:  # joins, warnings, wishes: nothing a row shows
            return


def _resumed(connection: Connection, event: ev.RunResumed) -> None:
    if _change(connection, runs, {"run_id": event.run_id, "state": "landed"}, exit_code=0, end_reason=""):
        return  # resumed only to deliver once more
    limit = {} if event.budget_nano_usd is None else {"budget_nano_usd": _clipped(event.budget_nano_usd)}
    _on_run(connection, event, state="running", exit_code=None, end_reason="", **limit)
    _change(connection, jobs, {"run_id": event.run_id, "verdict": "hold"}, verdict=None)


def _on_run(connection: Connection, event: ev.AnyEvent, **values: Any) -> None:
    _change(connection, runs, {"run_id": event.run_id}, **values)


def _on_job(connection: Connection, job_id: str, **values: Any) -> bool:
    """Change a job's row; return whether there is one."""
    return _change(connection, jobs, {"job_id": job_id}, **values)


def _replace(connection: Connection, table: Table, key: Mapping[str, Any], **values: Any) -> None:
    _delete(connection, table, key)
    _insert(connection, table, {**key, **values})


def _change(connection: Connection, table: Table, key: Mapping[str, Any], **values: Any) -> bool:
    """Change the rows with these values in these columns; return whether there are any."""
    return connection.execute(_update(table, tuple(key)), _named(key) | values).rowcount > 0


def _delete(connection: Connection, table: Table, key: Mapping[str, Any]) -> None:
    connection.execute(_deletion(table, tuple(key)), _named(key))


def _insert(connection: Connection, table: Table, values: Mapping[str, Any]) -> None:
    connection.execute(_insertion(table), values)


# Statements are made once: to make one costs more than to run it.


@cache
def _update(table: Table, key: tuple[str, ...]) -> Update:
    return update(table).where(_where(table, key))


@cache
def _deletion(table: Table, key: tuple[str, ...]) -> Delete:
    return delete(table).where(_where(table, key))


@cache
def _insertion(table: Table) -> Insert:
    return insert(table)


def _where(table: Table, key: tuple[str, ...]) -> ColumnElement[bool]:
    return and_(*(table.c[name] == bindparam(f"key_{name}") for name in key))


def _named(key: Mapping[str, Any]) -> dict[str, Any]:
    return {f"key_{name}": value for name, value in key.items()}


def _counting(table: Table, names: tuple[str, ...]) -> dict[str, ColumnElement[int]]:
    return {name: table.c[name] + bindparam(f"more_{name}") for name in names}


_COUNTERS = ("cost_nano_usd", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_CALL_KEY = ("job_id", "attempt", "call_id")
_THE_CALL = select(calls.c.settled_at, calls.c.reserved_nano_usd).where(and_(*(calls.c[name] == bindparam(name) for name in _CALL_KEY)))
_COUNT_FOR_ATTEMPT = (
    update(attempts)
    .where(and_(attempts.c.job_id == bindparam("of_job"), attempts.c.attempt == bindparam("of_attempt")))
    .values(_counting(attempts, _COUNTERS))
)
_COUNT_FOR_RUN = update(runs).where(runs.c.run_id == bindparam("of_run")).values(_counting(runs, (*_COUNTERS, "unsettled_calls")))


def _call_key(event: ev.BudgetReserved | ev.BudgetSettled) -> dict[str, Any]:
    return {"job_id": event.job_id, "attempt": event.attempt, "call_id": storable(event.call_id)}


def _amounts(nano_usd: int, usage: Usage) -> Iterator[int]:
    cached = (usage.cache_read_input_tokens, usage.cache_write_input_tokens)
    return map(_clipped, (nano_usd, usage.input_tokens, usage.output_tokens, *cached))


def _clipped(amount: int) -> int:
    return min(amount, AMOUNT_MAX)
