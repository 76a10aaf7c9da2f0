"""The history in SQL, kept up to the event log: a copy of it, exactly once, deleted and rebuilt at will; not its reader (`history.py`).

The position in the log is moved by compare-and-swap in the same transaction as the rows it stands for, so an event counts once
whatever dies and whoever else writes. SQLite in the state directory is ours alone; PostgreSQL may be shared with other things, so
there only our own tables are touched, and the history of another log is left alone. Why: docs/adr/0016.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, cast

import sqlalchemy
from sqlalchemy import Connection, Engine, event, insert, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from sandbox.contract.errors import BrokerError, InfrastructureError
from sandbox.git import in_thread
from sandbox.log import Log
from supervisor.pipeline.events import AnyEvent
from supervisor.store.history.rows import record
from supervisor.store.history.tables import SCHEMA_VERSION, metadata, position
from supervisor.store.log.event_log import EventLog, Head

log = Log(__name__)

BATCH: Final = 500
"""Events in one transaction at most."""
CHECK_S: Final = 5.0
"""How often an idle history is looked at: it may have been deleted."""
RETRIES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Waits between tries while the database is away; the last one repeats."""
ANSWER_S: Final = 10
"""How long the database may take to answer, and a lock to be given."""
_SERVER_TIMEOUTS: Final = {"lock_timeout": 1, "statement_timeout": 3, "idle_in_transaction_session_timeout": 1}
_LOCK_KEY: Final = 0x616E646F6E  # "andon"
_CORRUPT: Final = frozenset({11, 26})
"""SQLite's codes for a malformed file and for one that is no database."""
_GONE: Final = frozenset({"42P01", "42703"})
"""PostgreSQL's codes for a table and a column that are not there."""
_GONE_SQLITE: Final = re.compile(r"no such (?:table|column)|table \w+ has no column")


class HistoryAway(InfrastructureError):
    """The database cannot be used now, or not by us; the message holds no password."""


class Moved(Exception):
    """The position is not where this writer left it: another one writes, or the history was replaced."""


class Projection:
    """One database that holds the history. Its methods block; each is one transaction."""

    def __init__(self, engine: Engine, file: Path | None) -> None:
        """Use an engine; `file` is SQLite's, None for a server. `at` makes both."""
        self._engine = engine
        self._file = file
        self._opened: tuple[int, int] | None = None

    @classmethod
    @contextmanager
    def at(cls, file: Path, url: str | None = None, *, answer_s: int = ANSWER_S) -> Iterator["Projection"]:
        """Use the server at `url`, else the SQLite file; connects when it is first needed.

        Raises:
            HistoryAway: The URL cannot be understood or its driver is not installed.
        """
        projection = cls(_postgres(url, answer_s) if url else _sqlite(file, answer_s), None if url else file)
        try:
            yield projection
        finally:
            projection._engine.dispose()

    def look(self) -> int:
        """Return the number of the last event that is there, 0 if that cannot be told; for `prepare`."""
        self._forget_a_replaced_file()
        with self._guarded(), self._engine.begin() as connection:
            found = _found(connection)
        return found[2] if found else 0

    def prepare(self, head: Head, seen: int) -> int:
        """Make the tables what this release and this log need; return the number of the last event they hold.

        Made anew: of an older schema, incomplete, ahead of the log; and, if the file is ours alone, of another log.

        Args:
            head: Of the log.
            seen: What `look` said before the log was asked for its head: only what was ahead then was not put there by a rival since.

        Raises:
            Moved: It was a file nobody can read and is set aside; try again.
            HistoryAway: The database does not answer, or holds what is not ours to throw away.
        """
        self._forget_a_replaced_file()
        with self._guarded(), self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            seq = self._usable(connection, head, seen)
            if seq is None:
                _make_anew(connection, head.origin)
            return seq or 0

    def apply(self, events: Sequence[AnyEvent], after: int, origin: str) -> int:
        """Record events that follow number `after` of the log, all or none; return the number of the last one.

        Raises:
            Moved: The history is not at `after` of this log, or gone; nothing was recorded.
            HistoryAway: The database refused; nothing was recorded, or (a lost answer) the position tells.
        """
        self._forget_a_replaced_file()
        last = events[-1].seq
        with self._guarded(), self._engine.begin() as connection:
            # First the position: its lock keeps a second writer out until the rows are there too.
            here = (position.c.id == 1) & (position.c.seq == after) & (position.c.origin == origin)
            moved = update(position).where(here, position.c.schema_version == SCHEMA_VERSION).values(seq=last)
            if connection.execute(moved).rowcount != 1:
                raise Moved(f"the history is not at event {after}")
            record(connection, events)
        return last

    def check(self, after: int, origin: str) -> None:
        """Look whether the history is still where this writer left it.

        Raises:
            Moved: It is not, e.g. it was deleted.
            HistoryAway: The database does not answer.
        """
        self._forget_a_replaced_file()
        with self._guarded(), self._engine.begin() as connection:
            if _found(connection) != (SCHEMA_VERSION, origin, after):
                raise Moved(f"the history is not at event {after}")

    def _usable(self, connection: Connection, head: Head, seen: int) -> int | None:
        """Return the position if what is there can be gone on with, None if it is to be made anew."""
        found = _found(connection)
        if found is None:
            return None
        version, origin, seq = found
        if version > SCHEMA_VERSION:
            raise HistoryAway(f"the history has version {version}, this andon knows {SCHEMA_VERSION}: a newer one keeps it")
        if origin != head.origin and self._file is None:
            raise HistoryAway("the database holds the history of another event log; name another one, or drop its andon_ tables")
        if (version, origin) != (SCHEMA_VERSION, head.origin) or min(seq, seen) > head.last_seq or not _is_complete(connection):
            return None
        return seq

    def _forget_a_replaced_file(self) -> None:
        """Close connections to a file that has been deleted: closing them later would touch its successor's journal."""
        found = self._identity()
        if self._file is not None and (found is None or found != self._opened):
            self._engine.dispose()
            self._file.touch(mode=0o600)
            self._opened = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        try:
            facts = self._file.stat()
        except OSError:
            return None
        return facts.st_dev, facts.st_ino

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn a database's errors into ours: gone tables and broken files mean to begin anew, everything else to wait."""
        try:
            yield
        except DBAPIError as error:
            if self._file is not None and getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _CORRUPT:
                self._set_aside(self._file)
                raise Moved("the history was not readable") from None
            if getattr(error.orig, "sqlstate", "") in _GONE or _GONE_SQLITE.match(str(error.orig)):
                raise Moved("the history was deleted") from None
            raise HistoryAway(f"the database: {' '.join(str(error.orig).split())[:300]}") from None
        except SQLAlchemyError as error:
            raise HistoryAway(f"the database: {type(error).__name__}") from None

    def _set_aside(self, file: Path) -> None:
        self._engine.dispose()
        aside = file.with_name(f"{file.name}.broken")
        file.replace(aside)
        for suffix in ("-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
        log.warning("history.set_aside", "the history was not readable; it is set aside and made anew from the event log", path=aside)


async def keep(events: EventLog, database: Projection, *, check_s: float = CHECK_S) -> None:
    """Bring the database up to the log and keep it there, until cancelled; whatever goes wrong is said once and tried again."""
    tries = 0
    while True:
        try:
            async for _ in _kept(events, database, check_s):
                if tries:
                    log.warning("history.back", "the history is kept again")
                tries = 0
        except Moved as error:
            log.info("history.moved", f"{error}; looking again")
            await asyncio.sleep(RETRIES_S[0])
        except (HistoryAway, BrokerError, OSError, ValueError) as error:
            if tries == 0:
                log.warning("history.away", "the history is not kept now, runs go on without it", error=error)
            await asyncio.sleep(RETRIES_S[min(tries, len(RETRIES_S) - 1)])
            tries += 1


async def _kept(events: EventLog, database: Projection, check_s: float) -> AsyncIterator[int]:
    """Keep the history from where it is; yield after every step that worked. Ends by an error only."""
    seen = await in_thread(database.look)
    head = await events.head()
    after = await in_thread(database.prepare, head, seen)
    yield after
    async with _batches(events, after) as batches:
        while True:
            batch = await batches.next(check_s)
            if batch:
                after = await in_thread(database.apply, batch, after, head.origin)
            else:
                await in_thread(database.check, after, head.origin)
            yield after


class _Batches:
    """What a follower has read and nobody has taken yet, at most `BATCH` events."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[AnyEvent | BaseException] = asyncio.Queue(BATCH)

    async def fill(self, stream: AsyncIterator[AnyEvent]) -> None:
        try:
            async with aclosing(cast("Any", stream)):
                async for each in stream:
                    await self._queue.put(each)
        except (BrokerError, ValueError) as error:
            await self._queue.put(error)

    async def next(self, within_s: float) -> list[AnyEvent]:
        """Return what is there, in order; empty if nothing came in time."""
        try:
            async with asyncio.timeout(within_s):
                found = [await self._queue.get()]
        except TimeoutError:
            return []
        while not self._queue.empty():
            found.append(self._queue.get_nowait())
        batch: list[AnyEvent] = []
        for each in found:
            if isinstance(each, BaseException):
                if batch:
                    self._queue.put_nowait(each)  # first what is before it
                    break
                raise each
            batch.append(each)
        return batch


@asynccontextmanager
async def _batches(events: EventLog, after: int) -> AsyncIterator[_Batches]:
    batches = _Batches()
    filling = asyncio.ensure_future(batches.fill(events.follow_all(after)))
    try:
        yield batches
    finally:
        filling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await filling


def _sqlite(file: Path, answer_s: int) -> Engine:
    engine = sqlalchemy.create_engine(f"sqlite:///{file}", connect_args={"timeout": answer_s}, pool_size=1)

    @event.listens_for(engine, "connect")
    def _connected(raw: Any, _: object) -> None:
        raw.isolation_level = None  # we say where a transaction begins; the driver would leave table changes outside
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _postgres(url: str, answer_s: int) -> Engine:
    return sqlalchemy.create_engine(
        psycopg_url(url),
        pool_size=1,
        max_overflow=1,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": answer_s,
            "application_name": "andon",
            # A server that is cut off is given up after half a minute instead of the system's two hours.
            **{"keepalives_idle": answer_s, "keepalives_interval": answer_s // 2, "keepalives_count": 4, "tcp_user_timeout": 30_000},
            # A writer that was stopped in the middle (a paused supervisor) must not hold the next one up.
            "options": " ".join(f"-c {name}={answer_s * factor}s" for name, factor in _SERVER_TIMEOUTS.items()),
        },
    )


def psycopg_url(url: str) -> sqlalchemy.URL:
    """Return a PostgreSQL URL for the driver we bring.

    Raises:
        HistoryAway: It is none; the message does not repeat it.
    """
    try:
        parsed = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
        sqlalchemy.create_engine(parsed).dispose()
    except ImportError:
        raise HistoryAway("a PostgreSQL history needs psycopg: pip install 'andon[postgres]'") from None
    except (SQLAlchemyError, ValueError):
        raise HistoryAway("database_url is not a URL like postgresql://USER:PASSWORD@HOST:5432/DATABASE") from None
    return parsed


def _found(connection: Connection) -> tuple[int, str, int] | None:
    """Return version, origin and position of what is there; None if that cannot be told."""
    names = inspect(connection)
    if not names.has_table(position.name) or not _has_columns(names, position):
        return None
    row = connection.execute(select(position).where(position.c.id == 1)).one_or_none()
    return None if row is None else (row.schema_version, row.origin, row.seq)


def _is_complete(connection: Connection) -> bool:
    names = inspect(connection)
    return all(names.has_table(table.name) and _has_columns(names, table) for table in metadata.sorted_tables)


def _has_columns(names: Any, table: sqlalchemy.Table) -> bool:
    return {column["name"] for column in names.get_columns(table.name)} >= set(table.c.keys())


def _make_anew(connection: Connection, origin: str) -> None:
    metadata.drop_all(connection)
    metadata.create_all(connection)
    connection.execute(insert(position).values(id=1, schema_version=SCHEMA_VERSION, origin=origin, seq=0))
