"""Watch a run until it is over, with Ctrl-C meaning *park*; not how it is drawn (`live`) nor what is said at the end (`report`)."""

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from sandbox.contract.wire import Progress
from supervisor.api.views import is_over
from supervisor.cli.client import Client
from supervisor.cli.live import TICK_S, Display
from supervisor.errors import BrokerError, Interrupted
from supervisor.pipeline.events import AnyEvent, RunLanded
from supervisor.pipeline.fold import apply
from supervisor.pipeline.run import RunState
from supervisor.pipeline.submit import StopRequest, WhyRequest

Seen = Callable[[RunState], None]
Deliver = Callable[[RunState], Awaitable[None]]

OLD_END_S = 1.0
"""After `resume`: how long an end that this host had not heard of may stand before it counts as the new one."""
QUIET_S = 5.0
"""How long a job may wait for an executor before the run says why, and between two looks at it."""
PARK_S = 60.0
"""How long the first Ctrl-C waits for the supervisor to have parked the run."""


async def watch(
    client: Client,
    run_id: str,
    display: Display,
    *,
    seen: Seen,
    resumed: RunState | None = None,
    keep: Callable[[AnyEvent], None] = lambda _event: None,
    deliver: Deliver | None = None,
    quiet_s: float = QUIET_S,
) -> RunState:
    """Follow a run until nothing more happens unless a person acts, and return its last state.

    Args:
        client: The connection.
        run_id: The run.
        display: Where it is shown.
        seen: Told every new state, so that whoever asked knows how far it went when watching breaks off.
        keep: Told every event, also one that was known before.
        deliver: Brings the landed run into its repository and tells the supervisor; None: the supervisor does so itself.
        quiet_s: How long a job waits for an executor before the display says why.
        resumed: The run as this host knew it when it was asked to go on: older events are not shown, and an old end does not count.

    Raises:
        Interrupted: Ctrl-C twice, or once and the run was not parked within `PARK_S`.
        BrokerError: The supervisor went away.
    """
    watcher = _Watcher(client, run_id, display, seen, resumed, keep, deliver)
    async with asyncio.TaskGroup() as group:
        with _signals(watcher.interrupt):
            works = (watcher.tick(), watcher.park_when_interrupted(), watcher.say_why_it_waits(quiet_s))
            beside = [group.create_task(work) for work in works]
            try:
                run = await watcher.fold_until_over()
            finally:
                for task in beside:
                    task.cancel()
    return run


class _Watcher:
    def __init__(
        self,
        client: Client,
        run_id: str,
        display: Display,
        seen: Seen,
        resumed: RunState | None,
        keep: Callable[[AnyEvent], None],
        deliver: Deliver | None,
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.display = display
        self.seen = seen
        self.keep = keep
        self.deliver = deliver
        self.run = resumed
        self.is_old_end = resumed is not None
        """Whether an end may still be the one the run was resumed from: until `RunResumed` is seen."""
        self.must_see_resumed = resumed is not None and is_over(resumed)
        self.is_trace_named = False
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def interrupt(self) -> None:
        (self.second if self.first.is_set() else self.first).set()

    async def fold_until_over(self) -> RunState:
        items = aiter(self.client.follow(self.run_id))
        try:
            while self.run is None or self.is_old_end or not is_over(self.run) or self._is_to_be_delivered(self.run):
                await self._step(items)
            return self.run
        finally:
            await _close(items)

    async def _step(self, items: AsyncIterator[AnyEvent | Progress]) -> None:
        may_stand = self.is_old_end and self.run is not None and is_over(self.run) and not self.must_see_resumed
        try:
            # A supervisor that was killed may have parked the run without this host's files knowing: then `RunResumed` comes at once.
            async with asyncio.timeout(OLD_END_S if may_stand else None):
                item = await anext(items)
        except TimeoutError:
            self.is_old_end = False
        except StopAsyncIteration:
            raise BrokerError(f"the supervisor went away; the run is kept, go on with: andon resume {self.run_id}") from None
        else:
            self._take(item)
            if self.deliver is not None and isinstance(item, RunLanded) and self.run is not None:
                await self.deliver(self.run)

    def _is_to_be_delivered(self, run: RunState) -> bool:
        """Return whether the run has landed and the supervisor has not written down yet how our delivery went."""
        return self.deliver is not None and run.state == "landed" and not (run.delivered or run.delivery_failed)

    def _take(self, item: AnyEvent | Progress) -> None:
        if isinstance(item, Progress):
            self.display.progress(item)
            return
        self.keep(item)
        if self.run is None or item.seq > self.run.seq:
            self.run = apply(self.run, item)
            self.is_old_end = self.is_old_end and item.type != "run_resumed"
            self.must_see_resumed = self.must_see_resumed and self.is_old_end
            self.seen(self.run)
            self.display.event(self.run, item)
            self._name_trace(self.run)

    def _name_trace(self, run: RunState) -> None:
        """Say once where the run can be watched from the inside; at its end it is said again, in the closing lines."""
        if run.trace_url and not self.is_trace_named and not is_over(run):
            self.display.say(f"trace: {run.trace_url}")
        self.is_trace_named = True

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.display.tick()

    async def say_why_it_waits(self, quiet_s: float) -> None:
        """Say what a job waits for that no executor has taken for a while, and again when that changes."""
        waiting: set[tuple[str, int]] = set()
        said = ""
        while True:
            await asyncio.sleep(quiet_s)
            before, waiting = waiting, self._waiting()
            told = await self._why() if before & waiting else ""
            if told and told != said:
                self.display.say(told)
            said = told

    def _waiting(self) -> set[tuple[str, int]]:
        """Return the copies of jobs that are on the bus, or about to be."""
        jobs = self.run.jobs.values() if self.run is not None and not is_over(self.run) else ()
        return {(job.job_id, job.publications) for job in jobs if job.standing == "queued"}

    async def _why(self) -> str:
        try:
            reply = await self.client.why(WhyRequest(run_id=self.run_id))
        except BrokerError:  # the next look asks again
            return ""
        return "; ".join(reason.text for reason in reply.reasons if reason.kind in {"queued", "throttled"})

    async def park_when_interrupted(self) -> None:
        await self.first.wait()
        self.display.say("parking the run, what is written is kept; Ctrl-C again leaves at once")
        async with asyncio.TaskGroup() as group:
            parking = group.create_task(self._park())
            try:
                async with asyncio.timeout(PARK_S):
                    await self.second.wait()
                ended = "left at once"
            except TimeoutError:
                ended = f"not parked within {PARK_S:.0f} s"
            parking.cancel()
        raise Interrupted(f"{ended}; go on with: andon resume {self.run_id}")

    async def _park(self) -> None:
        answer = await self.client.stop(StopRequest(run_id=self.run_id, how="park", reason="interrupted by Ctrl-C"))
        if not answer.ok:
            self.display.say(f"not parked: {answer.error}")


async def _close(items: AsyncIterator[object]) -> None:
    """End a generator here and now, not when the loop collects it: what it has open ends in the task that opened it."""
    if isinstance(items, AsyncGenerator):
        try:
            await items.aclose()
        except* GeneratorExit:
            pass  # a generator that yields from inside a task group gives its own end back in a group


@contextmanager
def _signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C and a polite kill call `interrupt` instead of breaking off what is under way."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
