"""A run that a fleet elsewhere drives: its files are written on this host from the event log, so that every verb reads them here.

Not responsible for runs of the embedded stack, whose supervisor writes the files itself.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from sandbox.contract.release import RELEASE
from sandbox.contract.wire import Progress
from sandbox.telemetry import Spans
from supervisor.api.run_files import RunFiles, files_of, seen_files_of
from supervisor.api.traces.run_trace import RunTrace
from supervisor.api.traces.sink import TraceSink
from supervisor.api.views import ListRow, resolve_run_id, row_of
from supervisor.cli.app import App, say
from supervisor.cli.client import Client
from supervisor.config import StateDirectory, is_run_id
from supervisor.errors import AndonError, BrokerError, UnknownRun
from supervisor.pipeline.events import AnyEvent, AttemptEnded
from supervisor.pipeline.fold import apply, fold
from supervisor.pipeline.run import FINAL, RunState

READS_AT_ONCE = 16


def files_afar(app: App, given: str | None, *, logs: bool = False) -> RunFiles:
    """Return the files of the run a person named, brought up to the fleet's event log; without a name, of this host's newest.

    Args:
        app: The invocation.
        given: A run's id or the beginning of one; runs that other hosts submitted count too.
        logs: Whether the containers' logs are fetched as well.

    Raises:
        UnknownRun: There is none, or several begin with what was given.
        BrokerError: The fleet does not answer, and this host has no files of the run.
    """
    return asyncio.run(_files_afar(app, given, logs=logs))


def rows_afar(app: App, limit: int) -> list[ListRow]:
    """Return the newest runs of the whole fleet, newest first; one whose events cannot be read is left out."""
    return asyncio.run(_rows_afar(app, limit))


def refresh_open_runs(app: App, limit: int) -> None:
    """Bring the files of this host's newest runs that are not over up to the event log; says so if the fleet does not answer."""
    state = app.reading()
    stale = [files for files in (files_of(state, run_id) for run_id in state.run_ids()[-limit:]) if files.is_afar and not _is_over(files)]
    if stale:
        asyncio.run(_refresh(app, stale))


def _is_over(files: RunFiles) -> bool:
    result = files.result()
    return result is not None and result.state in FINAL


async def _refresh(app: App, stale: list[RunFiles]) -> None:
    try:
        async with fleet(app) as client:
            for files in stale:
                await fetch(client, files, files.directory.name, logs=False)
    except BrokerError as error:
        say(f"{error}; this is what this host knew last")


async def _files_afar(app: App, given: str | None, *, logs: bool) -> RunFiles:
    async with run_at_hand(app, given, logs=logs) as (_, files):
        return files


@asynccontextmanager
async def run_at_hand(app: App, given: str | None, *, logs: bool = False) -> AsyncIterator[tuple[Client | None, RunFiles]]:
    """Reach the fleet and give it with the run's files, as `files_afar`; None if it does not answer and this host has the files."""
    state = StateDirectory.open(app.config().state_directory)
    own = state.run_ids()
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(fleet(app))
            run_id = await _resolved(client, given, own)
            files = files_of(state, run_id) if run_id in own else seen_files_of(state, run_id)
            await fetch(client, files, run_id, logs=logs)
        except BrokerError as error:
            if not own:
                raise
            files = files_of(state, _own(given, own))
            say(f"{error}; this is what this host knew last")
            yield None, files
        else:
            yield client, files


@asynccontextmanager
async def fleet(app: App) -> AsyncIterator[Client]:
    """Reach the fleet, starting nothing."""
    async with app.bootstrap().look(app.config()) as client:
        if client is None:
            raise BrokerError("no stack is running, so there is no fleet to ask; start one with: andon up")
        yield client


async def _resolved(client: Client, given: str | None, own: list[str]) -> str:
    if given is None or given in own:
        return _own(given, own)
    if is_run_id(given):
        return given
    return resolve_run_id(given, {*own, *await client.runs()})


def _own(given: str | None, own: list[str]) -> str:
    if given is not None:
        return resolve_run_id(given, own)
    if not own:
        raise UnknownRun("this host has submitted no run to this fleet; `andon list --fleet` shows the runs of others")
    return own[-1]


async def fetch(client: Client, files: RunFiles, run_id: str, *, logs: bool) -> None:
    """Bring a run's files up to the event log; a run the log does not know (of another fleet, or expired) is left as it is."""
    events = await client.read(run_id)
    if not events:
        return
    files.rewrite(events)
    if logs:
        await fetch_logs(client, files, events)


async def fetch_logs(client: Client, files: RunFiles, events: Iterable[AnyEvent]) -> None:
    """Fetch the containers' logs that are not here yet; one that has expired is left out."""
    for event in events:
        if not isinstance(event, AttemptEnded) or event.log is None:
            continue
        stage, round_ = event.job_id.removeprefix(f"{event.run_id}-").rsplit("-", 1)
        if files.log_path(stage, int(round_), event.attempt).exists():
            continue
        try:
            files.write_log(stage, int(round_), event.attempt, await client.get_blob(event.log))
        except AndonError as error:
            say(f"the log of {event.job_id} is not there: {error}")


async def _rows_afar(app: App, limit: int) -> list[ListRow]:
    async with fleet(app) as client:
        ids = (await client.runs())[-limit:]
        turns = asyncio.Semaphore(READS_AT_ONCE)
        read = await asyncio.gather(*(_row(client, run_id, turns) for run_id in reversed(ids)))
    return [row for row in read if row is not None]


async def _row(client: Client, run_id: str, turns: asyncio.Semaphore) -> ListRow | None:
    async with turns:
        events = await client.read(run_id)
    try:
        return row_of(fold(events)) if events else None
    except (ValueError, KeyError):  # a newer release wrote it
        return None


def follow_afar(app: App, files: RunFiles, show_new: Callable[[], None], is_over: Callable[[], bool]) -> None:
    """Write a run's files as its events come, calling `show_new` after each, until `is_over`."""
    asyncio.run(_follow_afar(app, files, show_new, is_over))


async def _follow_afar(app: App, files: RunFiles, show_new: Callable[[], None], is_over: Callable[[], bool]) -> None:
    async with fleet(app) as client, aclosing(_events_of(client, files.directory.name)) as events:
        show_new()
        async for event in events:
            files.append([event])
            await fetch_logs(client, files, [event])
            show_new()
            if is_over():
                return


async def _events_of(client: Client, run_id: str) -> AsyncGenerator[AnyEvent, None]:
    async for item in client.follow(run_id):
        if not isinstance(item, Progress):
            yield item


class Keeper:
    """Writes a followed run's files and the supervisor's part of its trace as events come; the executors' part stays with the fleet."""

    def __init__(self, files: RunFiles) -> None:
        """Take the run's files."""
        self.files = files
        self._run: RunState | None = None
        sink = TraceSink(lambda _run_id: files.trace_path)
        self._trace = RunTrace(Spans("andon-sup", RELEASE, {"host.name": socket.gethostname()}), sink.store)

    def take(self, event: AnyEvent) -> None:
        """Write one event; a disk that is full must not stop a run that the fleet drives."""
        self._run = apply(self._run, event)
        try:
            self.files.append([event])
            self._trace.follow(self._run, event)
        except OSError as error:
            say(f"the run's files cannot be written: {error.strerror}")
