"""One run: the only place that appends its events, and the tasks that do what the machine wants; not what it wants.

Everybody who wants an event hands `record` a function that makes it from the state at that moment, or says that it is no longer
due. One task takes them in turn, appends with the expected sequence, folds, asks `decide`, and starts an effect for each command
that is not in flight. An effect checks that its command is still wanted before it acts and again when it records.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from sandbox.contract.errors import AndonError, BrokerError, InfrastructureError
from sandbox.log import Log
from supervisor.orchestrator.effects import effect_of
from supervisor.orchestrator.ports import Ports
from supervisor.pipeline.commands import Append, Command, Deliver, Publish
from supervisor.pipeline.events import AnyEvent, AttemptEnded, AttemptStarted, DeliveryFailed, StepFailed, encode
from supervisor.pipeline.machine import apply, decide, is_due, pending
from supervisor.pipeline.run import FINAL, JobState, RunState
from supervisor.store.log.event_log import StaleWriter

log = Log(__name__)

INBOX_MAX = 1024
APPENDS_MAX = 10_000
"""Events one event may bring after it; more is a bug in the machine."""
RETRY_DELAYS_S = (0.0, 1.0, 2.0, 4.0)
"""Before each try of an effect whose infrastructure failed (REQUIREMENTS c-7)."""
OVERTAKEN_MAX = 5
DOUBTFUL_MAX = 64
AWAY_S = 5.0
"""Between two tries while the log itself cannot be written."""
_AFTER_LANDING = ("run_delivered", "delivery_failed", "run_resumed")

Build = Callable[[RunState], AnyEvent | None]


class _Overtaken(Exception):
    """The state moved under an event that was to be appended: make it again."""


class RunActor:
    """The state of one run and its tasks, alive as long as `main` runs."""

    def __init__(self, ports: Ports, state: RunState) -> None:
        self.ports = ports
        self.state = state
        self.landing = asyncio.Lock()
        """Held while the branch moves: a stop waits for it, so that a landed run is never called cancelled."""
        self.held_since: dict[str, tuple[int, float]] = {}
        """Current attempt of a job, and when this process first knew of it (`Ports.monotonic`)."""
        self._note_held()
        self._changed = asyncio.Condition()
        self._inbox: asyncio.Queue[tuple[Build, asyncio.Future[AnyEvent | None]]] = asyncio.Queue(INBOX_MAX)
        self._in_flight: set[Command] = set()
        self._is_closed = False
        self._doubtful: deque[AnyEvent] = deque(maxlen=DOUBTFUL_MAX)
        """Events whose append was not answered: one of them may still arrive."""
        self._tasks: asyncio.TaskGroup | None = None

    @property
    def is_over(self) -> bool:
        """Return whether nothing can happen any more in this run, but by a new actor."""
        run = self.state
        undelivered = run.state == "landed" and not run.delivered and not run.delivery_failed and self.ports.delivers(run)
        return run.state in FINAL and not undelivered

    async def record(self, build: Build) -> AnyEvent | None:
        """Append what `build` makes of the state, and all that follows from it; None if it made nothing or the run is over.

        Raises:
            BrokerError: The log cannot be written now.
        """
        if self.is_over:
            return None
        if self._is_closed:
            raise BrokerError(f"run {self.state.run_id}: this supervisor stands down")
        future: asyncio.Future[AnyEvent | None] = asyncio.get_running_loop().create_future()
        try:
            self._inbox.put_nowait((build, future))
        except asyncio.QueueFull:
            raise BrokerError(f"run {self.state.run_id} has {INBOX_MAX} events waiting for its log") from None
        return await future

    async def wait_changed(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until `condition` holds after an event, at most `seconds`."""

        async def wait() -> None:
            async with self._changed:
                await self._changed.wait_for(condition)

        waiting = asyncio.create_task(wait())
        alarm = asyncio.ensure_future(self.ports.sleep(seconds))
        try:
            await asyncio.wait({waiting, alarm}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            alarm.cancel()
            await asyncio.gather(waiting, alarm, return_exceptions=True)

    async def main(self) -> None:
        """Do what is undone, then serve `record` until the run is over.

        Raises:
            StaleWriter: Another supervisor writes this run: this one has to stand down.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._go_on(pending(self.state))
                while not self.is_over:
                    await self._serve(*await self._inbox.get())
                self._dismiss()  # effects that still wait for their event end now, or the group would wait for them
        finally:
            self._tasks = None
            self._is_closed = True
            self._dismiss()

    def _dismiss(self) -> None:
        """Answer everybody who still waits: nothing, if the run is over; else that this supervisor cannot say, but the next one can."""
        while not self._inbox.empty():
            _, future = self._inbox.get_nowait()
            if future.done():
                continue
            if self.is_over:
                future.set_result(None)
            else:
                future.set_exception(BrokerError(f"run {self.state.run_id}: this supervisor stands down"))

    async def _go_on(self, commands: list[Command]) -> None:
        """Append and start what `commands` ask for; while the log is away there is nothing else this run could do."""
        while True:
            try:
                self._start(await self._follow(commands))
            except BrokerError as error:
                log.warning("events.unwritten", "the run waits for its log", error=error)
                await self.ports.sleep(AWAY_S)
                commands = pending(self.state)
            else:
                return

    async def _serve(self, build: Build, future: "asyncio.Future[AnyEvent | None]") -> None:
        try:
            event = await self._commit(build)
        except asyncio.CancelledError:
            future.cancel()
            raise
        except StaleWriter as error:
            if not future.done():
                future.set_exception(BrokerError(str(error)))
            raise
        except Exception as error:  # noqa: BLE001 -- it belongs to whoever asked for the event, not to the run's own task
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(event)
        async with self._changed:
            self._changed.notify_all()

    async def _commit(self, build: Build) -> AnyEvent | None:
        for _ in range(OVERTAKEN_MAX):
            event = build(self.state)
            if event is None or not self._may_follow(event):
                return None
            try:
                stored = await self._append(event)
            except _Overtaken:
                await self._go_on(pending(self.state))
                continue
            await self._go_on(decide(self.state, stored))
            return stored
        raise BrokerError(f"run {self.state.run_id}: the log moves under every event")

    def _may_follow(self, event: AnyEvent) -> bool:
        return self.state.state not in FINAL or (self.state.state == "landed" and event.type in _AFTER_LANDING)

    async def _follow(self, commands: list[Command]) -> list[Command]:
        """Append what the machine appends by itself, and return the other commands it wants after that."""
        wanted: list[Command] = []
        for _ in range(APPENDS_MAX):
            wanted += [command for command in commands if not isinstance(command, Append)]
            due = next((command.event for command in commands if isinstance(command, Append)), None)
            if due is None:
                return wanted
            try:
                stored = await self._append(due.model_copy(update={"at": self.ports.clock()}))
                commands = decide(self.state, stored)
            except _Overtaken:
                commands = pending(self.state)
        raise RuntimeError(f"run {self.state.run_id}: the machine appends without end, last {commands}")

    async def _append(self, event: AnyEvent) -> AnyEvent:
        """Store one event and fold it; an answer that got lost is looked up in the log.

        Raises:
            BrokerError: The log did not answer; the event may be stored, which the next append finds out.
            StaleWriter: Somebody else wrote.
        """
        try:
            seq = await self.ports.log.append(event, self.state.seq)
        except (BrokerError, StaleWriter) as error:
            seq = await self._seq_of_lost(event, error)
        stored = event.model_copy(update={"seq": seq})
        self._fold(stored)
        return stored

    async def _seq_of_lost(self, event: AnyEvent, error: BrokerError | StaleWriter) -> int:
        """Return the number of `event` if it was stored although `error` was the answer."""
        if isinstance(error, BrokerError):
            self._doubtful.append(event)
        after = [one for one in await self.ports.log.read(self.state.run_id) if one.seq > self.state.seq]
        if not after and isinstance(error, BrokerError):
            raise error
        if after and encode(after[0]) == encode(event):
            return after[0].seq
        if after and any(encode(after[0]) == encode(one) for one in self._doubtful):
            self._fold(after[0])
            raise _Overtaken
        raise StaleWriter(f"run {self.state.run_id}: another supervisor writes it") from error

    def _fold(self, event: AnyEvent) -> None:
        self.state = apply(self.state, event)
        self._doubtful.clear()
        if isinstance(event, AttemptStarted | AttemptEnded):
            self._note_held()
        try:
            self.ports.observe(self.state, event)
        except Exception:  # an observer (spans, files) must not stop the line
            log.exception("event.unobserved", "files or trace lack an event", type=event.type)

    def _note_held(self) -> None:
        now = self.ports.monotonic()
        current = {job.job_id: job.current.attempt for job in self.state.jobs.values() if job.current is not None}
        same = {name: held for name, held in self.held_since.items() if current.get(name) == held[0]}
        self.held_since = {name: (attempt, now) for name, attempt in current.items()} | same

    def held_s(self, job: JobState) -> float:
        """Return how long this process has known of a job's current attempt; 0 if it has none."""
        held = self.held_since.get(job.job_id)
        return self.ports.monotonic() - held[1] if held is not None else 0.0

    def _start(self, commands: list[Command]) -> None:
        for command in commands:
            if self._tasks is None or command in self._in_flight or (isinstance(command, Deliver) and not self.ports.delivers(self.state)):
                continue
            self._in_flight.add(command)
            self._tasks.create_task(self._perform(command))

    async def _perform(self, command: Command) -> None:
        try:
            await self._with_retries(command)
        finally:
            self._in_flight.discard(command)
        if isinstance(command, Publish):
            return
        # What was named while an equal command was in flight is started now; a published job is not published again.
        undone = pending(self.state) if not self.is_over else []
        self._start([one for one in undone if one != command and not isinstance(one, Append | Publish)])

    async def _with_retries(self, command: Command) -> None:
        failure: Exception | None = None
        for delay_s in RETRY_DELAYS_S:
            await self.ports.sleep(delay_s)
            if not self.wants(command):
                return
            try:
                await effect_of(self, command)
            except InfrastructureError as error:
                failure = error
                log.warning("step.retried", "tried again", error=error, command=type(command).__name__)
            except AndonError as error:
                return await self._give_up(command, error, "fail")
            except Exception as error:
                # Our bug, in one run's gate or git call: the others go on, this one keeps its work and can be resumed after a fix.
                log.exception("step.broke", command=type(command).__name__)
                failure = InfrastructureError(f"internal error in {type(command).__name__.lower()}: {error!r}")
                break
            else:
                return None
        if failure is not None:
            await self._give_up(command, failure, "park")

    def wants(self, command: Command) -> bool:
        """Return whether a command is still due."""
        return is_due(self.state, command) if isinstance(command, Publish) else command in pending(self.state)

    async def _give_up(self, command: Command, error: Exception, how: str) -> None:
        while self.wants(command):
            try:
                await self.record(lambda run: self._failed(run, command, error, how))
            except BrokerError:
                await self.ports.sleep(AWAY_S)
            else:
                return

    def _failed(self, run: RunState, command: Command, error: Exception, how: str) -> AnyEvent | None:
        if command not in pending(run):
            return None
        exit_code = error.exit_code if isinstance(error, AndonError) else 5
        head = {"run_id": run.run_id, "at": self.ports.clock(), "exit_code": exit_code, "reason": str(error)[:4_000]}
        if isinstance(command, Deliver):
            return DeliveryFailed.model_validate(head | {"branch": run.branch})
        stage = getattr(command, "stage", "") or (run.jobs[command.job_id].stage if hasattr(command, "job_id") else "")
        check = type(command).__name__.lower()
        return StepFailed.model_validate(head | {"how": how, "stage": stage or check, "check": check})
