"""Watch a run until it is over, with Ctrl-C meaning *park*; not how it is drawn (`live`) nor what is said at the end (`report`)."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sandbox.contract.wire import Progress
from supervisor.api.views import is_over
from supervisor.cli.client import Client
from supervisor.cli.live import TICK_S, Display
from supervisor.errors import BrokerError, Interrupted
from supervisor.pipeline.fold import apply
from supervisor.pipeline.run import RunState
from supervisor.pipeline.submit import StopRequest

Seen = Callable[[RunState], None]

PARK_S = 60.0
"""How long the first Ctrl-C waits for the supervisor to have parked the run."""


@dataclass(frozen=True)
class Watched:
    """How watching ended: the last state, and whether a person pressed Ctrl-C."""

    run: RunState
    is_interrupted: bool


async def watch(
    client: Client, run_id: str, display: Display, *, seen: Seen, history: RunState | None = None, is_resumed: bool = False
) -> Watched:
    """Follow a run until nothing more happens unless a person acts.

    Args:
        client: The connection.
        run_id: The run.
        display: Where it is shown.
        seen: Told every new state, so that whoever asked knows how far it went when watching breaks off.
        history: What is known already: events up to its `seq` are skipped and not shown.
        is_resumed: The run was asked to go on: its old end does not count, only one after `RunResumed`.

    Raises:
        Interrupted: Ctrl-C twice, or once and the run was not parked within `PARK_S`.
        BrokerError: The supervisor went away.
    """
    watcher = _Watcher(client, run_id, display, seen, history, may_end=not is_resumed)
    async with asyncio.TaskGroup() as group:
        with _signals(watcher.interrupt):
            beside = [group.create_task(watcher.tick()), group.create_task(watcher.park_when_interrupted())]
            try:
                run = await watcher.fold_until_over()
            finally:
                for task in beside:
                    task.cancel()
    return Watched(run, is_interrupted=watcher.first.is_set())


class _Watcher:
    def __init__(self, client: Client, run_id: str, display: Display, seen: Seen, history: RunState | None, *, may_end: bool) -> None:
        self.client = client
        self.run_id = run_id
        self.display = display
        self.seen = seen
        self.run = history
        self.may_end = may_end
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def interrupt(self) -> None:
        (self.second if self.first.is_set() else self.first).set()

    async def fold_until_over(self) -> RunState:
        async for item in self.client.follow(self.run_id):
            if isinstance(item, Progress):
                self.display.progress(item)
                continue
            if self.run is not None and item.seq <= self.run.seq:
                continue
            self.run = apply(self.run, item)
            self.may_end = self.may_end or item.type == "run_resumed"
            self.seen(self.run)
            self.display.event(self.run, item)
            if self.may_end and is_over(self.run):
                return self.run
        raise BrokerError(f"the supervisor went away; the run is kept, go on with: andon resume {self.run_id}")

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.display.tick()

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
