"""What the history in SQL promises (`store.projection`), shown on SQLite and on a real PostgreSQL."""

import asyncio
import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from sandbox.contract.ids import job_id
from sandbox.contract.result import Finding, Outcome, Usage
from supervisor.pipeline import events as ev
from supervisor.pipeline.machine import fold
from supervisor.store.history.projection import BATCH, HistoryAway, Moved, Projection
from supervisor.store.history.questions import Question, Sum, ask
from supervisor.store.history.rows import AMOUNT_MAX
from supervisor.store.history.tables import SCHEMA_VERSION, attempts, calls, findings, jobs, metadata, position, runs
from supervisor.store.log.event_log import Head
from tests.fakes.histories import Database, a_log_of, append, engine_of, in_file, keeping, kept, told, until_kept
from tests.fakes.run_events import RED, RUN, Story, conflict, failed, happy, parked_on_budget, rework
from tests.fakes.wire_data import wait_until
from tests.servers.databases import Cluster, cluster
from tests.servers.engines import NotHereError
from tests.unit.pipeline.test_machine_properties import RunMachine

ORIGIN = "this log"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    with cluster() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Return an empty database of each kind."""
    file = tmp_path / "history.db"
    if request.param == "sqlite":
        yield in_file(file)
        return
    try:
        server: Cluster = request.getfixturevalue("postgres")
    except NotHereError as error:
        if request.config.getoption("--require-all"):
            raise
        pytest.skip(str(error))
    name = f"history_{secrets.token_hex(4)}"
    server.run(f"CREATE DATABASE {name}")
    tables = ", ".join(metadata.tables)
    yield Database(file, server.url(name), lambda: server.run(f"DROP TABLE {tables}", name), engine_of(server.url(name)))
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


# What it says


def a_late_end() -> list[ev.AnyEvent]:
    """Return the log of a job that went out again before its first attempt was heard of, which then ends twice."""
    story = Story().accepted().dispatched("spec").started("spec")
    story.add(ev.JobRepublished(run_id=RUN, at=story.at, job_id=job_id(RUN, "spec", 1), reason="silent")).ended(
        "spec", outcome=Outcome.LOST
    )
    return story.started("spec", attempt=2).ended("spec").ended("spec", attempt=2).ended("spec", attempt=2, outcome=Outcome.LOST).log


def held_and_resumed() -> list[ev.AnyEvent]:
    """Return the log of a run a gate held, which a person resumed with more money."""
    story = Story().accepted().dispatched("spec").started("spec").ended("spec").judged("spec", "hold", findings=(RED,))
    return story.add(ev.RunResumed(run_id=RUN, at=story.at, budget_nano_usd=99 * 10**9)).log


def delivered_at_last() -> list[ev.AnyEvent]:
    """Return the log of a run that won, could not be delivered, and was resumed to deliver again."""
    log = conflict()
    return [*log, ev.RunResumed(run_id=RUN, at=log[-1].at + 1, budget_nano_usd=1, seq=log[-1].seq + 1)]


LOGS = {
    **{"late end": a_late_end, "held": held_and_resumed, "delivered at last": delivered_at_last},
    "happy": happy,
    "rework": rework,
    "failed": failed,
    "parked": parked_on_budget,
    "conflict": conflict,
}


@pytest.mark.parametrize("name", LOGS)
def test_the_history_says_what_the_log_says(database: Database, name: str) -> None:
    """States, costs, verdicts and attempts of a run are those of its folded events."""
    log = LOGS[name]()

    with database.open() as projection:
        assert projection.prepare(Head(ORIGIN, 10_000), 0) == 0
        projection.apply(log, 0, ORIGIN)

    assert kept(database, RUN) == told(fold(log))
    assert database.position() == log[-1].seq


def test_it_agrees_with_the_fold_over_random_histories(database: Database) -> None:
    """Whatever happens in whatever order, the two ways to read a log come to the same."""
    with database.open() as projection:

        class HistoryMachine(RunMachine):
            """Random histories of one run, copied event by event."""

            known = 0

            @invariant()
            def the_history_agrees(self) -> None:
                if self.known == 0:
                    database.run("DROP TABLE IF EXISTS andon_position")
                    projection.prepare(Head(ORIGIN, 10_000), 0)
                fresh = [event for event in self.line.log if event.seq > self.known]
                if fresh:
                    self.known = projection.apply(fresh, self.known, ORIGIN)
                    assert kept(database, self.line.run.run_id) == told(self.line.run)

        slow = [HealthCheck.too_slow, HealthCheck.filter_too_much]
        sizes = (25, 40) if database.url is None else (6, 25)
        chosen = settings(max_examples=sizes[0], stateful_step_count=sizes[1], deadline=None, suppress_health_check=slow)
        run_state_machine_as_test(HistoryMachine, settings=chosen)


def test_findings_are_the_last_verdicts(database: Database) -> None:
    """Why a job failed can be asked in SQL; a second verdict replaces the first one's reasons."""
    story = Story().accepted().dispatched("validate").started("validate").ended("validate")
    story.judged("validate", "hold", findings=(RED, RED)).judged("validate", "fail", findings=(RED,), tests=(3, 1, 2))

    _write(database, story.log)

    [finding] = database.rows(findings)
    assert (finding["check_name"], finding["message"], finding["path"]) == (RED.check, RED.message, RED.path)
    [job] = database.rows(jobs)
    assert (job["tests_passed"], job["tests_failed"], job["tests_skipped"]) == (3, 1, 2)


def test_every_model_call_has_its_row(database: Database) -> None:
    """A held reservation is told from a settled call, and a call is charged once however often it is settled."""
    story = Story().accepted().dispatched("spec").started("spec").paid("spec", 500, tokens=70)
    settled = story.log[-1]
    assert isinstance(settled, ev.BudgetSettled)
    story.add(settled).add(settled.model_copy(update={"nano_usd": 900}))
    held = {"run_id": RUN, "at": 1.0, "job_id": job_id(RUN, "spec", 1), "attempt": 1, "call_id": "held", "model": "m"}
    for amount in (10, 30, 20):
        story.add(ev.BudgetReserved(**held, nano_usd=amount))

    _write(database, story.log)

    by_id = {row["call_id"]: row for row in database.rows(calls)}
    assert (by_id["held"]["reserved_nano_usd"], by_id["held"]["settled_at"], by_id["held"]["model"]) == (30, None, "m")
    assert (by_id[settled.call_id]["cost_nano_usd"], by_id[settled.call_id]["input_tokens"]) == (500, 70)
    assert [(row["cost_nano_usd"], row["input_tokens"]) for row in database.rows(runs)] == [(500, 70)]


def test_no_event_can_stop_it(database: Database) -> None:
    """Text no database takes, figures beyond 64 bits and events of unknown runs and jobs are recorded as far as they can be."""
    story = Story(request="nul \0 in it " + "x" * 20_000).accepted().dispatched("spec").started("spec")
    huge = {"run_id": RUN, "at": 1.0, "job_id": job_id(RUN, "spec", 1), "attempt": 1, "call_id": "c\0"}
    story.add(ev.BudgetReserved(**huge, nano_usd=10**40))
    story.add(ev.BudgetSettled(**huge, nano_usd=10**40, usage=Usage(input_tokens=10**30)))
    story.ended("spec", reason="\0").judged("spec", "fail", findings=(Finding(check="x\0", message="\0"),))
    story.ended("docs").judged("docs").started("docs")
    story.add(ev.RunParked(run_id="0123456789", at=1.0, reason="", exit_code=5))

    _write(database, story.log)

    [run] = database.rows(runs)
    assert run["request"].startswith("nul \ufffd in it")
    assert len(run["request"]) < 5_000
    assert (run["cost_nano_usd"], run["input_tokens"]) == (AMOUNT_MAX, AMOUNT_MAX)
    assert [row["job_id"] for row in database.rows(attempts)] == [job_id(RUN, "spec", 1)]


# Exactly once


def test_an_event_counts_once_whoever_writes(database: Database) -> None:
    """A second writer that believes to be the one changes nothing and is told; it goes on where the first one is."""
    log = happy()
    with database.open() as one, database.open() as two:
        start = one.prepare(Head(ORIGIN, 10_000), 0)
        assert two.prepare(Head(ORIGIN, 10_000), 0) == start == 0
        after = one.apply(log[:9], 0, ORIGIN)

        with pytest.raises(Moved):
            two.apply(log[:9], 0, ORIGIN)
        with pytest.raises(Moved):
            two.check(0, ORIGIN)
        again = two.prepare(Head(ORIGIN, 10_000), 0)
        two.apply(log[9:], again, ORIGIN)

    assert again == after == log[8].seq
    assert kept(database, RUN) == told(fold(log))


def test_a_batch_is_recorded_whole_or_not_at_all(database: Database) -> None:
    """What breaks in the middle of a transaction leaves neither rows nor a moved position."""
    log = happy()
    with database.open() as projection:
        projection.prepare(Head(ORIGIN, 10_000), 0)
        after = projection.apply(log[:3], 0, ORIGIN)
        database.run("ALTER TABLE andon_findings RENAME TO aside")
        red = Story().accepted().dispatched("spec").judged("spec", "fail", findings=(RED,)).log[2].model_copy(update={"seq": 1_000})

        with pytest.raises(Moved):
            projection.apply([*log[3:], red], after, ORIGIN)

    assert database.position() == after
    assert kept(database, RUN, is_whole=False) == told(fold(log[:3]))


@pytest.mark.parametrize("cut", [0, 1, 8, 21, 33])
def test_it_goes_on_where_it_was_stopped(database: Database, cut: int) -> None:
    """A writer that ends after any event and one that begins there come to the same as one alone."""
    log = rework()
    for part in (log[:cut], log[cut:]):
        with database.open() as projection:
            after = projection.prepare(Head(ORIGIN, 10_000), 0)
            if part:
                projection.apply(part, after, ORIGIN)

    assert kept(database, RUN) == told(fold(log))


# Kept from a log


async def test_it_follows_the_log(database: Database) -> None:
    """What was and what comes, of every run, arrives by itself."""
    log = await a_log_of(happy(), happy(run="01jd8m6w30"))
    with database.open() as projection:
        async with keeping(log, projection):
            await until_kept(database, log)
            before = kept(database, RUN)
            await append(log, happy(run="01jd8m6w40"))
            await until_kept(database, log)

    assert before == told(fold(await log.read(RUN)))
    assert [row["run_id"] for row in database.rows(runs)] == [RUN, "01jd8m6w30", "01jd8m6w40"]


async def test_more_events_than_one_transaction_takes(database: Database) -> None:
    """A long log is copied whole, in bounded steps."""
    story = Story().accepted().dispatched("spec").started("spec")
    for _ in range(BATCH):
        story.paid("spec", 3)
    log = await a_log_of(story.log)

    with database.open() as projection:
        async with keeping(log, projection):
            await until_kept(database, log, within_s=60)

    assert kept(database, RUN) == told(fold(await log.read(RUN)))
    assert len(database.rows(calls)) == BATCH


async def test_it_may_be_deleted_at_any_time(database: Database) -> None:
    """Deleted under a running writer, at rest and between events: it is made anew from the log and says the same."""
    log = await a_log_of(rework())
    with database.open() as projection:
        async with keeping(log, projection):
            await until_kept(database, log)
            database.delete()
            await until_kept(database, log, within_s=20)
            assert kept(database, RUN) == told(fold(await log.read(RUN)))

            database.delete()
            await append(log, happy(run="01jd8m6w30"))
            await until_kept(database, log, within_s=20)

    assert kept(database, RUN) == told(fold(await log.read(RUN)))
    assert kept(database, "01jd8m6w30") == told(fold(await log.read("01jd8m6w30")))


async def test_two_keepers_at_once_double_nothing(database: Database) -> None:
    """Two supervisors that both believe to lead keep one history."""
    log = await a_log_of(happy())
    with database.open() as one, database.open() as two:
        async with keeping(log, one), keeping(log, two):
            for number in range(12):
                await append(log, happy(run=f"01jd8m6x{number:02}"))
                await asyncio.sleep(0)
            await until_kept(database, log, within_s=60)

    for run_id in await log.runs():
        assert kept(database, run_id) == told(fold(await log.read(run_id)))


# What is there when it begins


@pytest.mark.parametrize("change", ["schema_version = 0", "seq = 20000"], ids=["an older schema", "ahead of the log"])
def test_what_cannot_be_gone_on_with_is_made_anew(database: Database, change: str) -> None:
    """The tables of an older release, or of a log that was cut off since, are thrown away."""
    _write(database, happy())
    database.run(f"UPDATE andon_position SET {change}")

    with database.open() as projection:
        after = projection.prepare(Head(ORIGIN, 10_000), projection.look())

    assert after == 0
    assert database.rows(runs) == []
    assert database.rows(position) == [{"id": 1, "schema_version": SCHEMA_VERSION, "origin": ORIGIN, "seq": 0}]


@pytest.mark.parametrize(
    "damage", ["DROP TABLE andon_calls", "ALTER TABLE andon_runs DROP COLUMN repository", "DELETE FROM andon_position"]
)
def test_what_is_not_whole_is_made_anew(database: Database, damage: str) -> None:
    """A missing table, column or position means that nobody knows what else is missing."""
    _write(database, happy())
    database.run(damage)

    with database.open() as projection:
        assert projection.prepare(Head(ORIGIN, 10_000), 0) == 0
        projection.apply(happy(), 0, ORIGIN)

    assert kept(database, RUN) == told(fold(happy()))


def test_a_newer_history_is_left_alone(database: Database) -> None:
    """A release that goes back does not throw away what a newer one keeps, also where the newer one's tables look different."""
    _write(database, happy())
    database.run(f"UPDATE andon_position SET schema_version = {SCHEMA_VERSION + 1}")
    database.run("ALTER TABLE andon_position ADD COLUMN more INTEGER")

    with database.open() as projection, pytest.raises(HistoryAway, match="newer"):
        projection.prepare(Head(ORIGIN, 10_000), 0)

    assert len(database.rows(runs)) == 1


def test_another_logs_history(database: Database) -> None:
    """A file is ours alone and follows its log; in a server another fleet's history is not ours to throw away."""
    _write(database, happy())

    with database.open() as projection:
        if database.url is None:
            assert projection.prepare(Head("another log", 10_000), 0) == 0
            assert database.rows(runs) == []
            return
        with pytest.raises(HistoryAway, match="another event log"):
            projection.prepare(Head("another log", 10_000), 0)

    assert len(database.rows(runs)) == 1


def test_nothing_else_in_the_database_is_touched(database: Database) -> None:
    """Tables of others stay, whatever becomes of ours."""
    database.run("CREATE TABLE runs (mine INTEGER)")
    database.run("INSERT INTO runs VALUES (7)")
    _write(database, happy())
    database.run("UPDATE andon_position SET schema_version = 0")

    with database.open() as projection:
        projection.prepare(Head(ORIGIN, 10_000), 0)

    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT mine FROM runs").scalars().all() == [7]


# What it is asked


def test_both_kinds_answer_alike(database: Database) -> None:
    """Runs newest first with their figures, chosen and summed, by a session that may only read."""
    with database.open() as projection:
        after = projection.apply(rework(), projection.prepare(Head(ORIGIN, 10_000), 0), ORIGIN)
        later = [event.model_copy(update={"run_id": "01jd8m6w30", "seq": after + place}) for place, event in enumerate(failed()[:1], 1)]
        projection.apply(later, after, ORIGIN)

    found, total = ask(database.file, database.url, Question()) or ([], Sum())
    landed, some = ask(database.file, database.url, Question(state="landed", feature="add-*", since=found[1].accepted_at)) or ([], Sum())

    assert [run.run_id for run in found] == ["01jd8m6w30", RUN]
    assert (found[1].reworks, found[1].executors, found[1].cost_nano_usd) == (1, ("host-1",), 710_000_000)
    assert total == Sum(runs=2, landed=1, cost_nano_usd=710_000_000)
    assert (landed, some) == (found[1:], Sum(runs=1, landed=1, cost_nano_usd=710_000_000))
    assert ask(database.file, database.url, Question(feature="no%")) == ([], Sum())


def test_an_empty_database_has_no_history(database: Database) -> None:
    """That is not an error: no supervisor has written yet."""
    assert ask(database.file, database.url, Question()) is None


# SQLite alone


@pytest.mark.parametrize("intact_bytes", [0, 100, 4096], ids=["no database", "no schema", "no tables"])
async def test_a_broken_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture, intact_bytes: int) -> None:
    """Garbage from some byte on: the file is kept under another name, which is said in one line, and the history made anew."""
    here = in_file(tmp_path / "history.db")
    log = await a_log_of(happy())
    _write(here, happy())
    whole = here.file.read_bytes()
    here.file.write_bytes(whole[:intact_bytes] + b"no database here" * 2_000)
    broken = here.file.read_bytes()

    with here.open() as projection:
        async with keeping(log, projection):
            await until_kept(here, log)

    assert kept(here, RUN) == told(fold(await log.read(RUN)))
    assert (tmp_path / "history.db.broken").read_bytes() == broken
    assert [record.levelname for record in caplog.records if "set aside" in record.getMessage()] == ["WARNING"]


async def test_a_locked_file_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody who holds a transaction open delays the history, which says so once and then goes on."""
    here = in_file(tmp_path / "history.db")
    log = await a_log_of(happy())
    with here.open() as projection, contextlib.closing(sqlite3.connect(here.file, isolation_level=None)) as other:
        projection._engine.dispose()
        projection.prepare(await log.head(), 0)
        other.execute("BEGIN IMMEDIATE")
        async with keeping(log, projection):
            await wait_until(lambda: _said(caplog, "not kept now"), "it says that it waits", within_s=30)
            other.execute("ROLLBACK")
            await until_kept(here, log, within_s=30)
            await wait_until(lambda: _said(caplog, "kept again"), "it says that it is back")

    assert kept(here, RUN) == told(fold(await log.read(RUN)))
    assert sum("not kept now" in record.getMessage() for record in caplog.records) == 1


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Requests and reasons are in it: nobody else may read it, nor what lies beside it while it is written."""
    here = in_file(tmp_path / "history.db")
    with here.open() as projection:
        projection.prepare(Head(ORIGIN, 10_000), 0)
        projection.apply(happy(), 0, ORIGIN)
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}

    assert modes.keys() >= {"history.db", "history.db-wal"}
    assert set(modes.values()) == {0o600}


# PostgreSQL alone


async def test_a_server_that_is_away_stops_nothing(postgres: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """A server that cuts sessions off and refuses new ones is tried again, said once, and nothing is lost or doubled."""
    postgres.run("CREATE DATABASE away")
    here = Database(Path("/nonexistent"), postgres.url("away"), lambda: None, engine_of(postgres.url("away")))
    log = await a_log_of(happy())
    with here.open() as projection:
        async with keeping(log, projection):
            await until_kept(here, log)
            postgres.run("ALTER DATABASE away ALLOW_CONNECTIONS false")
            postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'away'")
            await append(log, happy(run="01jd8m6w30"))
            await wait_until(lambda: _said(caplog, "not kept now"), "it says that it waits", within_s=30)
            postgres.run("ALTER DATABASE away ALLOW_CONNECTIONS true")
            await until_kept(here, log, within_s=40)

    for run_id in await log.runs():
        assert kept(here, run_id) == told(fold(await log.read(run_id)))
    assert sum("not kept now" in record.getMessage() for record in caplog.records) == 1
    postgres.run("DROP DATABASE away WITH (FORCE)")


def test_a_paused_writer_does_not_hold_the_next_one_up(postgres: Cluster) -> None:
    """A leader that was stopped within its transaction loses it after `ANSWER_S`; the next one waits no longer than that."""
    postgres.run("CREATE DATABASE paused")
    here = Database(Path("/nonexistent"), postgres.url("paused"), lambda: None, engine_of(postgres.url("paused")))
    with here.open() as paused, here.open() as leader:
        paused.prepare(Head(ORIGIN, 10_000), 0)
        with paused._engine.connect() as connection:
            connection.execute(sqlalchemy.update(position).values(seq=1))

            for _ in range(2):
                with contextlib.suppress(HistoryAway):
                    leader.apply(happy(), leader.prepare(Head(ORIGIN, 10_000), 0), ORIGIN)
                    break
            with contextlib.suppress(sqlalchemy.exc.DBAPIError):
                connection.rollback()

        assert leader.prepare(Head(ORIGIN, 10_000), 0) == happy()[-1].seq
    postgres.run("DROP DATABASE paused WITH (FORCE)")


@pytest.mark.parametrize("url", ["postgresql://ada:hush@127.0.0.1:1/andon", "postgresql://ada:hush@@@:x/", "postgresql://h:hush/"])
def test_a_password_is_in_no_message(url: str, tmp_path: Path) -> None:
    """Whatever is wrong with the address, the reason does not repeat it."""
    with pytest.raises(HistoryAway) as refused, Projection.at(tmp_path / "x", url) as projection:
        projection.prepare(Head(ORIGIN, 1), 0)

    assert "hush" not in f"{refused.value!r} {refused.value.__cause__!r}"
    assert refused.value.__cause__ is None


def _write(database: Database, log: list[ev.AnyEvent]) -> None:
    with database.open() as projection:
        projection.apply(log, projection.prepare(Head(ORIGIN, 10_000), 0), ORIGIN)


async def _said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return any(words in record.getMessage() for record in caplog.records)
