"""A run as the fold of its events says and as the history in SQL says, side by side; and logs a history is kept from."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy

from sandbox.contract.result import Usage
from supervisor.pipeline import events as ev
from supervisor.pipeline.run import RunState
from supervisor.store.history.projection import Projection, keep, psycopg_url
from supervisor.store.history.tables import attempts, calls, findings, jobs, position, runs
from tests.fakes.memory_log import MemoryEventLog
from tests.fakes.wire_data import wait_until


@dataclass
class Database:
    """One empty database, looked at past the code under test."""

    file: Path
    url: str | None
    delete: Callable[[], object]
    """Throw the history away behind everybody's back."""
    engine: sqlalchemy.Engine

    def open(self) -> contextlib.AbstractContextManager[Projection]:
        return Projection.at(self.file, self.url, answer_s=1)

    def rows(self, table: sqlalchemy.Table) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(sqlalchemy.select(table).order_by(*table.primary_key)).mappings()]

    def run(self, statement: str) -> None:
        with self.engine.begin() as connection:
            connection.exec_driver_sql(statement)

    def position(self) -> int:
        """Return how far it is; -1: there is no history."""
        try:
            return int(self.rows(position)[0]["seq"])
        except (sqlalchemy.exc.DBAPIError, IndexError):
            return -1


def told(run: RunState) -> dict[str, Any]:
    """Return what the fold says of a run, as far as the history keeps it."""
    return {
        "run": (run.state, run.exit_code, run.end_reason, run.end_stage, run.end_check, run.branch, run.landed_commit, run.delivered),
        "times": (run.accepted_at, run.ended_at, run.seq),
        "money": (run.budget.limit_nano_usd, run.budget.settled_nano_usd, run.budget.held_nano_usd, run.budget.unsettled_calls),
        "usage": _usage(run.budget.usage),
        "calls": sorted(run.budget.settled_calls.items()),
        "jobs": sorted(
            (job.job_id, job.stage, job.round, job.kind, job.verdict, job.commit, job.judged_at, job.current and job.current.attempt)
            for job in run.jobs.values()
        ),
        "findings": sorted((job.job_id, each.check, each.message, each.path) for job in run.jobs.values() for each in job.findings),
        "attempts": sorted(
            (
                (job.job_id, each.attempt, each.executor, each.outcome and each.outcome.value, each.started_at),
                (each.ended and each.ended.ended_at, each.ended and each.ended.salvage_ref),
                (each.cost_nano_usd, *_usage(each.usage)),
            )
            for job in run.jobs.values()
            for each in job.attempts
        ),
    }


END = ("state", "exit_code", "end_reason", "end_stage", "end_check", "branch", "landed_commit", "delivered")


def kept(database: Database, run_id: str, *, is_whole: bool = True) -> dict[str, Any]:
    """Return the same of the history."""

    def of_run(table: sqlalchemy.Table) -> list[dict[str, Any]]:
        return [row for row in database.rows(table) if row["run_id"] == run_id]

    [run] = of_run(runs)
    paid = of_run(calls)
    return {
        "run": tuple(run[each] for each in END),
        "times": (run["accepted_at"], run["ended_at"], run["last_seq"]),
        "money": (
            *(run["budget_nano_usd"], run["cost_nano_usd"]),
            sum(row["reserved_nano_usd"] for row in paid if row["settled_at"] is None),
            run["unsettled_calls"],
        ),
        "usage": _counted(run),
        "calls": sorted(
            (f"{row['job_id']}/{row['attempt']}/{row['call_id']}", row["cost_nano_usd"]) for row in paid if row["settled_at"] is not None
        ),
        "jobs": sorted(
            (row["job_id"], row["stage"], row["round"], row["kind"], row["verdict"], row["commit_id"], row["judged_at"], row["held_by"])
            for row in of_run(jobs)
        ),
        "findings": sorted((row["job_id"], row["check_name"], row["message"], row["path"]) for row in of_run(findings)) if is_whole else [],
        "attempts": sorted(
            (
                (row["job_id"], row["attempt"], row["executor"], row["outcome"], row["started_at"]),
                (row["ended_at"], row["salvage_ref"]),
                (row["cost_nano_usd"], *_counted(row)),
            )
            for row in of_run(attempts)
        ),
    }


def _usage(usage: Usage) -> tuple[int, ...]:
    return (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens, usage.cache_write_input_tokens)


def _counted(row: dict[str, Any]) -> tuple[int, ...]:
    return (row["input_tokens"], row["output_tokens"], row["cache_read_tokens"], row["cache_write_tokens"])


def engine_of(url: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(psycopg_url(url), poolclass=sqlalchemy.pool.NullPool)


def in_file(file: Path) -> Database:
    return Database(file, None, file.unlink, sqlalchemy.create_engine(f"sqlite:///{file}", poolclass=sqlalchemy.pool.NullPool))


async def append(log: MemoryEventLog, events: list[ev.AnyEvent]) -> None:
    """Put a run's events into a log, which numbers them anew."""
    after = 0
    for each in events:
        after = await log.append(each, after)


async def a_log_of(*stories: list[ev.AnyEvent]) -> MemoryEventLog:
    """Return a log that holds these runs."""
    log = MemoryEventLog()
    for events in stories:
        await append(log, events)
    return log


@contextlib.asynccontextmanager
async def keeping(log: MemoryEventLog, projection: Projection) -> AsyncIterator[None]:
    """Keep the history while the block runs."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(keep(log, projection, check_s=0.2))
        yield
        task.cancel()


async def until_kept(database: Database, log: MemoryEventLog, within_s: float = 10) -> None:
    """Wait until the history is at the end of the log."""
    head = await log.head()

    async def is_there() -> bool:
        return database.position() == head.last_seq

    await wait_until(is_there, f"the history is at event {head.last_seq}, not {database.position()}", within_s)
