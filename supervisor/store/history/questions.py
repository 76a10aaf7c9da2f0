"""What the history in SQL is asked: runs and what they came to, calls and what they cost. Reads only; who writes it is `projection.py`."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import ColumnElement, Connection, Engine, Row, and_, case, func, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from sandbox.contract.model import Frozen
from sandbox.contract.result import Usage
from supervisor.pipeline.costs import UNKNOWN_MODEL, Call
from supervisor.pipeline.run import State
from supervisor.store.history.projection import ANSWER_S, HistoryAway, psycopg_url
from supervisor.store.history.tables import SCHEMA_VERSION, attempts, calls, jobs, position, runs

QUERY_S: Final = 30
"""How long a server may work on one question."""

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """Which runs are meant; None: all."""

    feature: str | None = None
    """A slug, or a pattern with `*`."""
    state: State | None = None
    since: float | None = None
    """Accepted at or after these Unix seconds."""
    limit: int = 20


class PastRun(Frozen):
    """One run."""

    run_id: str
    feature: str
    state: State
    exit_code: int | None
    end_reason: str
    branch: str
    commit: str | None
    repository: str
    request: str
    replay: bool
    trace_id: str
    accepted_at: float
    """Unix seconds."""
    duration_s: float
    """From acceptance to its end, else to the last event that is known."""
    cost_nano_usd: int
    usage: Usage
    reworks: int
    """How often the line went back: the highest round, less one."""
    executors: tuple[str, ...]


class Sum(Frozen):
    """All runs that are meant, also those beyond the limit."""

    runs: int = 0
    landed: int = 0
    cost_nano_usd: int = 0


def ask(file: Path, url: str | None, question: Question) -> tuple[list[PastRun], Sum] | None:
    """Return the runs, newest first, and their sum; None if there is no history yet.

    Args:
        file: SQLite's; used without `url`. It is not made.
        url: Of a PostgreSQL server.
        question: Which runs.

    Raises:
        HistoryAway: The database cannot be read; the message says why.
    """
    return _read(file, url, lambda connection: (_rows(connection, question), _sum(connection, question)))


def paid_calls(file: Path, url: str | None, since: float) -> list[Call] | None:
    """Return every model call that was settled since then (Unix seconds), of all runs; None if there is no history yet.

    Raises:
        HistoryAway: The database cannot be read; the message says why.
    """
    return _read(file, url, lambda connection: _calls(connection, since))


def _read(file: Path, url: str | None, read: Callable[[Connection], T]) -> T | None:
    if not url and not file.exists():
        return None
    engine = _server(url) if url else _file(file)
    try:
        with engine.connect() as connection:
            if not sqlalchemy.inspect(connection).has_table(position.name):
                return None
            found = connection.execute(select(position.c.schema_version)).scalar()
            if found != SCHEMA_VERSION:
                raise HistoryAway(
                    f"the history has version {found}, this andon knows {SCHEMA_VERSION}; the supervisor that keeps it decides"
                )
            return read(connection)
    except DBAPIError as error:
        raise HistoryAway(f"the history cannot be read: {' '.join(str(error.orig).split())[:300]}") from None
    except SQLAlchemyError as error:
        raise HistoryAway(f"the history cannot be read: {type(error).__name__}") from None
    finally:
        engine.dispose()


def _rows(connection: Connection, question: Question) -> list[PastRun]:
    newest = select(runs).where(_meant(question)).order_by(runs.c.accepted_at.desc(), runs.c.run_id.desc()).limit(question.limit)
    found = connection.execute(newest).all()
    ids = [row.run_id for row in found]
    highest = select(jobs.c.run_id, func.max(jobs.c.round)).where(jobs.c.run_id.in_(ids)).group_by(jobs.c.run_id)
    rounds = {run_id: int(last) for run_id, last in connection.execute(highest)}
    who = select(attempts.c.run_id, attempts.c.executor).where(attempts.c.run_id.in_(ids)).distinct().order_by(attempts.c.executor)
    executors: dict[str, list[str]] = {}
    for run_id, executor in connection.execute(who):
        executors.setdefault(run_id, []).append(executor)
    return [_past(row, rounds.get(row.run_id, 1) - 1, executors.get(row.run_id, [])) for row in found]


def _calls(connection: Connection, since: float) -> list[Call]:
    # Jobs and runs by an outer join: of a call whose job the history lacks, the money is still gone.
    of = calls.outerjoin(jobs, jobs.c.job_id == calls.c.job_id).outerjoin(runs, runs.c.run_id == calls.c.run_id)
    wanted = select(calls, jobs.c.stage, runs.c.feature).select_from(of).where(calls.c.settled_at >= since).order_by(calls.c.settled_at)
    return [
        Call(
            run_id=row.run_id,
            feature=row.feature or "",
            stage=row.stage or "",
            model=row.model or UNKNOWN_MODEL,
            at=row.settled_at,
            nano_usd=row.cost_nano_usd,
            usage=_usage(row),
            unsettled=row.unsettled,
        )
        for row in connection.execute(wanted)
    ]


def _usage(row: Row[Any]) -> Usage:
    return Usage(
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        cache_read_input_tokens=row.cache_read_tokens,
        cache_write_input_tokens=row.cache_write_tokens,
    )


def _past(row: Row[tuple[object, ...]], reworks: int, executors: Sequence[str]) -> PastRun:
    end = row.last_at if row.ended_at is None else row.ended_at
    return PastRun(
        run_id=row.run_id,
        feature=row.feature,
        state=row.state,
        exit_code=row.exit_code,
        end_reason=row.end_reason,
        branch=row.branch,
        commit=row.landed_commit,
        repository=row.repository,
        request=row.request,
        replay=row.mode == "replay",
        trace_id=row.trace_id,
        accepted_at=row.accepted_at,
        duration_s=max(0.0, end - row.accepted_at),
        cost_nano_usd=row.cost_nano_usd,
        usage=_usage(row),
        reworks=reworks,
        executors=tuple(executors),
    )


def _sum(connection: Connection, question: Question) -> Sum:
    landed = func.coalesce(func.sum(case((runs.c.state == "landed", 1), else_=0)), 0)
    cost = func.coalesce(func.sum(runs.c.cost_nano_usd), 0)
    count, won, paid = connection.execute(select(func.count(), landed, cost).select_from(runs).where(_meant(question))).one()
    return Sum(runs=int(count), landed=int(won), cost_nano_usd=int(paid))


def _meant(question: Question) -> ColumnElement[bool]:
    wanted: list[ColumnElement[bool]] = [sqlalchemy.true()]
    if question.feature is not None:
        literal = question.feature.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
        wanted.append(runs.c.feature.like(literal.replace("*", "%"), escape="\\"))
    if question.state is not None:
        wanted.append(runs.c.state == question.state)
    if question.since is not None:
        wanted.append(runs.c.accepted_at >= question.since)
    return and_(*wanted)


def _file(file: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=ANSWER_S, check_same_thread=False)

    return sqlalchemy.create_engine("sqlite://", creator=connect, poolclass=sqlalchemy.pool.NullPool)


def _server(url: str) -> Engine:
    options = f"-c default_transaction_read_only=on -c statement_timeout={QUERY_S}s"
    own = {"connect_timeout": ANSWER_S, "application_name": "andon history", "options": options}
    return sqlalchemy.create_engine(psycopg_url(url), poolclass=sqlalchemy.pool.NullPool, connect_args=own)
