"""Writes what a run's events say to its files and its trace (`runs/<id>/`); readable copies of the log, never in a run's way."""

import asyncio
import time

from sandbox.contract.errors import AndonError, BrokerError
from sandbox.contract.wire import SupervisorLink
from sandbox.log import Log
from supervisor.api.run_files import RunFiles, files_of
from supervisor.api.traces.run_trace import RunTrace
from supervisor.config import StateDirectory
from supervisor.pipeline.events import AnyEvent, AttemptEnded
from supervisor.pipeline.fold import apply, fold
from supervisor.pipeline.run import FINAL, RunState
from supervisor.store.log.event_log import EventLog

log = Log(__name__)

LOGS_QUEUE_MAX = 1_000
EARLY_EVENTS_MAX = 10_000
"""Events of runs whose files are not whole yet; beyond that they are left to the next supervisor, which makes them whole again."""
AGAIN_S = 5.0
REST_S = 0.01


class Witness:
    """Told of every event after it is stored. Files are brought up to the log first: another supervisor, perhaps on another host, or
    one that died between log and file, may have written the run's beginning."""

    def __init__(self, state: StateDirectory, link: SupervisorLink, trace: RunTrace, events: EventLog) -> None:
        """Take where files lie, where containers' logs are, who makes spans, and the log."""
        self._state = state
        self._link = link
        self._trace = trace
        self._events = events
        self._files: dict[str, RunFiles] = {}
        self._early: dict[str, list[tuple[RunState, AnyEvent]]] = {}
        self._torn: asyncio.Queue[str] = asyncio.Queue()
        self._logs: asyncio.Queue[AttemptEnded] = asyncio.Queue(LOGS_QUEUE_MAX)

    def observe(self, run: RunState, event: AnyEvent) -> None:
        """Take one event; a disk that is full must not stop a run, which the log already holds."""
        if event.type == "run_accepted":
            self._files[run.run_id] = files_of(self._state, run.run_id)
        if run.run_id in self._files:
            self._write(run, event)
            return
        if run.run_id not in self._early:
            self._early[run.run_id] = []
            self._torn.put_nowait(run.run_id)
        if len(self._early[run.run_id]) < EARLY_EVENTS_MAX:
            self._early[run.run_id].append((run, event))

    def _write(self, run: RunState, event: AnyEvent) -> None:
        try:
            self._files[run.run_id].append([event])
            self._trace.follow(run, event)
            if run.exit_code is not None:
                self._files[run.run_id].write_result(run)
        except OSError as error:
            log.warning("files.unwritten", "files of the run cannot be written", error=error, run_id=run.run_id)
        if isinstance(event, AttemptEnded):
            self._fetch_log(event)
        if run.state in FINAL and (run.state != "landed" or run.delivered):
            self._files.pop(run.run_id, None)

    def _fetch_log(self, event: AttemptEnded) -> None:
        if event.log is not None and not self._logs.full():
            self._logs.put_nowait(event)

    async def mend(self) -> None:
        """Make whole what the log says more of than the files: of every run that is not over here, then as events come; until cancelled."""
        for run_id in await self._events.runs():
            if run_id not in self._files and run_id not in self._early and await asyncio.to_thread(self._is_torn, run_id):
                self._early[run_id] = []
                self._torn.put_nowait(run_id)
        while True:
            run_id = await self._torn.get()
            began_s = time.monotonic()
            try:
                await self._mend(run_id)
                # As long a rest as the work took: a thousand runs may be torn, and claims, leases and requests come first.
                await asyncio.sleep(max(REST_S, time.monotonic() - began_s))
            except BrokerError as error:
                log.warning("files.unmended", "files of the run cannot be mended yet", error=error, run_id=run_id)
                await asyncio.sleep(AGAIN_S)
                self._torn.put_nowait(run_id)
            except (OSError, ValueError) as error:
                log.warning("files.unmended", "files of the run cannot be mended", error=error, run_id=run_id)
                self._files[run_id] = files_of(self._state, run_id)
                self._early.pop(run_id, None)

    def _is_torn(self, run_id: str) -> bool:
        known = files_of(self._state, run_id).result()
        return known is None or known.state not in FINAL

    async def _mend(self, run_id: str) -> None:
        """Write the events anew, and of a run that goes on its spans and logs too; a span that is in the file already is kept once.

        Of a run that is over and left no trace here, another host has the rest: the supervisor's part alone would be a torn one.
        """
        events = await self._events.read(run_id)
        files = files_of(self._state, run_id)
        await asyncio.to_thread(files.rewrite, events)
        run = fold(events) if events else None
        if run is not None and (run.state not in FINAL or files.trace_path.exists()):
            await self._follow(files, events)
        if run is not None and run.exit_code is not None:
            await asyncio.to_thread(files.write_result, run)
        self._files[run_id] = files
        seen = events[-1].seq if events else 0
        for later, event in self._early.pop(run_id, []):
            if event.seq > seen:
                self._write(later, event)

    async def _follow(self, files: RunFiles, events: list[AnyEvent]) -> None:
        run: RunState | None = None
        for event in events:
            run = apply(run, event)
            self._trace.follow(run, event)
            if isinstance(event, AttemptEnded) and not files.log_path(*_attempt_of(event)).exists():
                self._fetch_log(event)
            await asyncio.sleep(0)

    async def write_logs(self) -> None:
        """Fetch containers' logs from the object store and write them, until cancelled."""
        while True:
            event = await self._logs.get()
            if event.log is None:
                continue
            try:
                data = await self._link.get_blob(event.log)
                await asyncio.to_thread(files_of(self._state, event.run_id).write_log, *_attempt_of(event), data)
            except (AndonError, OSError) as error:
                log.warning("output.unwritten", "a container's output is not written", error=error, job_id=event.job_id)


def _attempt_of(event: AttemptEnded) -> tuple[str, int, int]:
    stage, round_ = event.job_id.removeprefix(f"{event.run_id}-").rsplit("-", 1)
    return stage, int(round_), event.attempt
