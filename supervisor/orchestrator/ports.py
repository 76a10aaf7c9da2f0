"""What the orchestrator works with, as protocols: bus, log, gates, git, delivery, time, chance; not their implementations."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

from sandbox.contract.job import JobSpec
from sandbox.contract.result import AttemptResult
from sandbox.contract.wire import SupervisorLink
from supervisor.intake import Accepted
from supervisor.pipeline.commands import Dispatch, Join
from supervisor.pipeline.events import AnyEvent, JobDispatched, JobJudged, Joined, RunLanded
from supervisor.pipeline.run import JobState, RunState
from supervisor.pipeline.submit import SubmitRequest
from supervisor.store.log.event_log import EventLog


class Integrates(Protocol):
    """Evidence to events, commits to commits (`supervisor/integrate.py`). Each call may be repeated after a crash and does the same.

    `InfrastructureError` is tried again; any other `AndonError` ends the line with its exit code.
    """

    async def judge(self, run: RunState, job: JobState) -> JobJudged:
        """Return the gates' verdict on a job's last attempt."""
        ...

    async def join(self, run: RunState, command: Join) -> Joined:
        """Return the union of the command's commits as one commit on its base."""
        ...

    async def land(self, run: RunState, commit: str) -> RunLanded:
        """Make the landing commit of `commit`'s tree and move the branch in the mirror; a branch that is there already is the proof."""
        ...

    async def salvage(self, run: RunState, job: JobState, result: AttemptResult) -> str | None:
        """Keep what an attempt wrote under a ref and return it; None if it left nothing that can be kept."""
        ...


class Dispatches(Protocol):
    """Decided jobs to jobs on the bus (`supervisor/dispatch`)."""

    async def prepare(self, run: RunState, command: Dispatch) -> JobDispatched:
        """Store everything the job needs as objects and return the event that says so; nothing is published."""
        ...


class Queues(Protocol):
    """Jobs that wait for an executor with a free slot (`dispatch/queue.py`)."""

    def put(self, job: JobSpec, dedupe: str, wanted: Callable[[], bool]) -> None:
        """Publish `job` when its pool has credit, if it is still wanted then; the same `dedupe` twice is put once."""
        ...

    def taken(self, dedupe: str) -> None:
        """Note that an executor has claimed the job."""
        ...

    def directed_to(self, dedupe: str) -> str:
        """Return the executor on whose own lane a published copy lies, empty if on none."""
        ...

    def ahead_of(self, dedupe: str) -> int:
        """Return how many jobs of the same pool go before this copy."""
        ...

    def is_waiting(self, dedupe: str) -> bool:
        """Return whether this copy is still to be published."""
        ...

    def count_held(self, held: Callable[[str], int]) -> None:
        """Take who knows how many of a run's jobs executors have claimed."""
        ...

    def kick(self) -> None:
        """Look at the credit now: an executor has just become free."""
        ...

    async def run(self) -> None:
        """Publish as credit comes, until cancelled."""
        ...


class Accepts(Protocol):
    """Submissions to runs (`supervisor/intake.py`)."""

    async def accept(self, request: SubmitRequest, taken: Collection[str]) -> Accepted:
        """Return the event that opens the run; `taken` are branches other open runs of this repository will land on.

        Raises:
            UsageError: The request, pipeline, model or consent is wrong (exit 2).
            ConflictError: The branch is taken (exit 6).
        """
        ...


FETCHES_AT_ONCE_MAX = 4


async def _nothing(_run: RunState) -> None:
    """Everything is here already."""


@dataclass(frozen=True)
class Ports:
    """Everything the orchestrator is given."""

    log: EventLog
    link: SupervisorLink
    intake: Accepts
    dispatcher: Dispatches
    queue: Queues
    integrator: Integrates
    deliver: Callable[[RunState], Awaitable[None]] | None = None
    """Brings a landed run's commit into the user's repository; None: a CLI on the repository's host does (DECISIONS D1)."""
    observe: Callable[[RunState, AnyEvent], None] = lambda _run, _event: None
    """Told every event after it is stored, with the state after it; must not block (spans, run files)."""
    restore: Callable[[RunState], Awaitable[None]] = field(default=_nothing)
    """Brings a run's commits into this supervisor's mirror, where another one may have made them; before anything is done with them."""
    hold: Callable[[], str] = lambda: ""
    """Returns why no new submission is taken now, e.g. a full disk; empty: they are."""
    clock: Callable[[], float] = time.time
    """Unix seconds; said in events, never compared: a clock that jumps ends no attempt."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds that only grow; every age and every deadline rests on it. It stands still while the host sleeps, as its executors do."""
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)

    fetching: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(FETCHES_AT_ONCE_MAX))
    """Held while a job is read from the store to be queued: a supervisor that takes up a thousand runs must not drown its own lease."""

    def delivers(self, run: RunState) -> bool:
        """Return whether a landed run is delivered here: its repository is on this host, and nobody else was named."""
        return self.deliver is not None and run.intent.delivery == "supervisor"
