"""The supervisor's heart: takes up every open run from the log, serves executors and CLIs, until cancelled. Composition only."""

import asyncio

from sandbox.contract.errors import BrokerError
from sandbox.log import Log, about, of_run
from supervisor.orchestrator.activity import Activity
from supervisor.orchestrator.actor import RunActor
from supervisor.orchestrator.claims import Desk
from supervisor.orchestrator.ports import Ports
from supervisor.orchestrator.requests import OPEN_RUNS_MAX, Requests
from supervisor.orchestrator.results import Results
from supervisor.orchestrator.watch import Watch
from supervisor.pipeline.machine import apply, fold
from supervisor.pipeline.run import FINAL, RunState

log = Log(__name__)

READ_AT_ONCE = 64
"""Events folded before other tasks, e.g. the lease's renewal, have their turn."""

__all__ = ["OPEN_RUNS_MAX", "Orchestrator"]


class Orchestrator:
    """All open runs of one supervisor; there is one active supervisor per event log."""

    def __init__(self, ports: Ports) -> None:
        self.ready = asyncio.Event()
        """Set when every open run is taken up and requests are answered."""
        self._ports = ports
        self._actors: dict[str, RunActor] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._activity = Activity(ports)
        self._watch = Watch(ports, lambda: tuple(self._actors.values()), lambda job, attempt: self._desk.rates.waited_s(job, attempt))
        self._desk = Desk(ports, self._actors.get, self._watch.joined)
        self._results = Results(ports, self._actors.get, self._load)
        self._requests = Requests(ports, self._actors, self._load, self._open, self._activity)
        ports.queue.count_held(self._held)

    @property
    def busy_runs(self) -> tuple[str, ...]:
        """Return the runs that go on by themselves: neither over, nor parked, nor waiting for a person."""
        return tuple(name for name, actor in self._actors.items() if actor.state.state in {"queued", "running", "landed"})

    @property
    def open_runs(self) -> tuple[RunState, ...]:
        """Return the runs that are not over."""
        return tuple(actor.state for actor in self._actors.values())

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            StaleWriter: Another supervisor writes the same log: stand down.
            BrokerError: The bus does not answer at the start.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            began_s = self._ports.monotonic()
            await self._take_up()
            rebuilt_ms = round((self._ports.monotonic() - began_s) * 1000)
            await self._ports.link.serve(self._desk, self._requests.handlers())
            self.ready.set()
            log.info("supervisor.ready", open_runs=len(self._actors), duration_ms=rebuilt_ms)
            tasks.create_task(self._begin(tuple(self._actors.values())))
            tasks.create_task(self._ports.queue.run())
            tasks.create_task(self._results.consume())
            tasks.create_task(self._watch.run())
            tasks.create_task(self._activity.watch())

    def _held(self, run_id: str) -> int:
        """Return how many of a run's jobs executors have claimed, for the fairness between features."""
        actor = self._actors.get(run_id)
        return 0 if actor is None else sum(job.standing == "claimed" for job in actor.state.jobs.values())

    async def _take_up(self) -> None:
        try:
            runs = await self._read_all()
        except ValueError:  # one event that cannot be read must not keep the other runs from being taken up
            log.exception("events.unreadable", "an event cannot be read; the runs are read one by one")
            runs = [run for run_id in await self._ports.log.runs() if (run := await self._load(run_id)) is not None]
        for run in runs:
            self._requests.remember(run)
            if self._is_open(run):
                self._actors[run.run_id] = RunActor(self._ports, run)

    async def _begin(self, actors: tuple[RunActor, ...]) -> None:
        """Let the runs that were taken up go on, one after the other: a thousand at once would keep the lease from being renewed.

        One that is asked something before its turn answers then.
        """
        for actor in actors:
            if self._tasks is not None:
                self._tasks.create_task(self._live(actor))
            await asyncio.sleep(0)

    async def _read_all(self) -> list[RunState]:
        """Fold the whole log in one pass; what is over keeps nothing but its name.

        Raises:
            ValueError: An event cannot be read, or does not follow those before it.
        """
        runs: dict[str, RunState] = {}
        head = await self._ports.log.head()
        if not head.last_seq:
            return []
        async for event in self._ports.log.follow_all():
            runs[event.run_id] = apply(runs.get(event.run_id), event)
            if not self._is_open(runs[event.run_id]):
                runs[event.run_id] = runs[event.run_id].model_copy(update={"jobs": {}})
            if event.seq >= head.last_seq:
                break
            if event.seq % READ_AT_ONCE == 0:
                await asyncio.sleep(0)
        return list(runs.values())

    def _is_open(self, run: RunState) -> bool:
        return run.state not in FINAL or (run.state == "landed" and not RunActor(self._ports, run).is_over)

    async def _load(self, run_id: str) -> RunState | None:
        """Return a run from the log, None if there is none that can be read."""
        try:
            events = await self._ports.log.read(run_id)
            return fold(events) if events else None
        except ValueError:
            log.exception("run.unreadable", run_id=run_id)
            return None

    def _open(self, run: RunState) -> RunActor:
        if self._tasks is None:
            raise BrokerError("the supervisor is stopping")
        actor = self._actors[run.run_id] = RunActor(self._ports, run)
        self._tasks.create_task(self._live(actor))
        return actor

    async def _live(self, actor: RunActor) -> None:
        try:
            with about(**of_run(actor.state.run_id, f"{actor.state.sampled:02x}")):
                await actor.main()
        finally:
            # A run that is not over stays: whoever still asks of it while this supervisor stands down is told to ask again, not that
            # the run is unknown, which would end an attempt the next leader goes on with.
            if actor.is_over:
                self._actors.pop(actor.state.run_id, None)
