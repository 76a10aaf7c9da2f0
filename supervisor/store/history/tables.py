"""The tables of the history in SQL, as SQLite and PostgreSQL alike have them; not who fills them (`rows.py`).

Money is integer nano-USD, times are Unix seconds of the supervisor's clock (for display, never for order). Names begin with
`andon_`, so that a database may hold other things beside them. Nothing here is the truth: a change of the tables raises
`SCHEMA_VERSION`, and an older history is thrown away and made anew from the event log.
"""

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, Table, Text

SCHEMA_VERSION: Final = 1

metadata = MetaData()


def _counters() -> list[Column[int]]:
    """Return the columns of what a run, attempt or call used; amounts are clipped at `rows.AMOUNT_MAX`."""
    names = ("cost_nano_usd", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
    return [Column(name, BigInteger, nullable=False, server_default="0") for name in names]


position = Table(
    "andon_position",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("schema_version", Integer, nullable=False),
    Column("origin", Text, nullable=False),  # which log this is a copy of (`event_log.Head`)
    Column("seq", BigInteger, nullable=False),  # everything up to here is in the other tables, nothing after it
)
"""One row, number 1."""

runs = Table(
    "andon_runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("feature", Text, nullable=False),
    Column("request", Text, nullable=False),  # the beginning
    Column("repository", Text, nullable=False),
    Column("base_name", Text, nullable=False),
    Column("base_commit", Text, nullable=False),
    Column("branch", Text, nullable=False),
    Column("mode", Text, nullable=False),  # live, replay
    Column("trace_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("exit_code", Integer),
    Column("end_stage", Text, nullable=False, server_default=""),
    Column("end_check", Text, nullable=False, server_default=""),
    Column("end_reason", Text, nullable=False, server_default=""),
    Column("landed_commit", Text),
    Column("delivered", Boolean, nullable=False),
    Column("accepted_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("last_at", Double, nullable=False),  # of the last event
    Column("budget_nano_usd", BigInteger, nullable=False),
    *_counters(),
    Column("unsettled_calls", Integer, nullable=False, server_default="0"),  # charged in full because their usage was lost
    Column("last_seq", BigInteger, nullable=False),
    Index("andon_runs_feature", "feature"),
    Index("andon_runs_accepted", "accepted_at"),
)

jobs = Table(
    "andon_jobs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("run_id", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("round", Integer, nullable=False),
    Column("kind", Text, nullable=False),  # agent, checks
    Column("dispatched_at", Double, nullable=False),
    Column("held_by", Integer),  # the attempt that has it now
    Column("judged_at", Double),
    Column("verdict", Text),  # pass, fail, hold
    Column("commit_id", Text),
    Column("tests_passed", Integer, nullable=False, server_default="0"),
    Column("tests_failed", Integer, nullable=False, server_default="0"),
    Column("tests_skipped", Integer, nullable=False, server_default="0"),
    Index("andon_jobs_run", "run_id"),
)

attempts = Table(
    "andon_attempts",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("run_id", Text, nullable=False),
    Column("executor", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("outcome", Text),
    Column("reason", Text, nullable=False, server_default=""),
    Column("container_id", Text, nullable=False, server_default=""),
    Column("salvage_ref", Text),
    *_counters(),
    Index("andon_attempts_run", "run_id"),
)

calls = Table(
    "andon_calls",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("call_id", Text, primary_key=True),
    Column("run_id", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("reserved_nano_usd", BigInteger, nullable=False),
    Column("settled_at", Double),  # empty: the reservation is held
    Column("unsettled", Boolean, nullable=False),
    *_counters(),
    Index("andon_calls_run", "run_id"),
)
"""One row a model call: what it reserved, then what it cost."""

findings = Table(
    "andon_findings",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("run_id", Text, nullable=False),
    Column("check_name", Text, nullable=False),
    Column("path", Text),
    Column("message", Text, nullable=False),
    Index("andon_findings_run", "run_id"),
)
"""Why a job's last verdict is what it is."""
