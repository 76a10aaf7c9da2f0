"""How each command of the machine is done, through the collaborators; every effect ends by recording its event. Not when (`actor`)."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol, assert_never

from sandbox.contract.errors import BrokerError
from sandbox.contract.job import JobSpec
from sandbox.contract.result import Outcome
from supervisor.orchestrator.ports import Ports
from supervisor.pipeline.commands import Append, Cancel, Command, Deliver, Dispatch, Join, Judge, Land, Publish, Republish
from supervisor.pipeline.events import AnyEvent, AttemptEnded, JobRepublished, RunDelivered
from supervisor.pipeline.machine import is_due
from supervisor.pipeline.run import RunState

CANCEL_EVERY_S = 5.0
CANCEL_TRIES = 12
"""An attempt that is not back a minute after it was cancelled is declared dead."""


class Actor(Protocol):
    """What an effect needs of its run (`actor.RunActor`)."""

    @property
    def ports(self) -> Ports:
        """The collaborators."""
        ...

    @property
    def state(self) -> RunState:
        """The run as it is now."""
        ...

    @property
    def landing(self) -> asyncio.Lock:
        """Held while the branch moves."""
        ...

    def wants(self, command: Command) -> bool:
        """Return whether a command is still due."""
        ...

    async def record(self, build: Callable[[RunState], AnyEvent | None]) -> AnyEvent | None:
        """Append what `build` makes of the state."""
        ...

    async def wait_changed(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until `condition` holds after an event, at most `seconds`."""
        ...


async def effect_of(actor: Actor, command: Command) -> None:
    """Do one command; returns when its event is recorded or it is no longer wanted.

    Raises:
        InfrastructureError: Trying again may help.
        AndonError: It will never work.
    """
    if isinstance(command, Dispatch | Judge | Join | Land | Deliver):
        await actor.ports.restore(actor.state)
    match command:
        case Dispatch():
            await _record(actor, command, await actor.ports.dispatcher.prepare(actor.state, command))
        case Publish():
            await _publish(actor, command)
        case Republish():
            await _republish(actor, command)
        case Judge():
            await _record(actor, command, await actor.ports.integrator.judge(actor.state, actor.state.jobs[command.job_id]))
        case Join():
            joined = await actor.ports.integrator.join(actor.state, command)
            named = {"stage": command.stage, "round": command.round, "parents": command.commits}
            await _record(actor, command, joined.model_copy(update=named))
        case Cancel():
            await _cancel(actor, command)
        case Land():
            async with actor.landing:
                if actor.wants(command):
                    await _record(actor, command, await actor.ports.integrator.land(actor.state, command.commit))
        case Deliver():
            await _deliver(actor, command)
        case Append():
            await _record(actor, command, command.event)
        case _:
            assert_never(command)


async def _record(actor: Actor, command: Command, event: AnyEvent) -> None:
    stamped = event.model_copy(update={"at": actor.ports.clock(), "run_id": actor.state.run_id})
    await actor.record(_if_wanted(actor, command, stamped))


def _if_wanted(actor: Actor, command: Command, event: AnyEvent) -> Callable[[RunState], AnyEvent | None]:
    return lambda _run: event if actor.wants(command) else None


async def _publish(actor: Actor, command: Publish) -> None:
    async with actor.ports.fetching:
        spec = JobSpec.model_validate_json(await actor.ports.link.get_blob(actor.state.jobs[command.job_id].spec))
    actor.ports.queue.put(spec, copy_name(command.job_id, command.publication), lambda: is_due(actor.state, command))


def copy_name(job_id: str, publication: int) -> str:
    """Return the name of one copy of a job on the bus, by which the broker knows a repetition."""
    return f"{job_id}:{publication}"


async def _republish(actor: Actor, command: Republish) -> None:
    await actor.ports.sleep(command.delay_s)
    if not actor.wants(command):
        return
    # If it fails the old copy stays in the queue: whoever pulls it is told `busy` or `done` at the claim.
    with contextlib.suppress(BrokerError):
        await actor.ports.link.withdraw(actor.state.jobs[command.job_id].attempts[-1].ack_subject)
    await _record(actor, command, JobRepublished(run_id=actor.state.run_id, at=0, job_id=command.job_id, reason=command.reason))


async def _cancel(actor: Actor, command: Cancel) -> None:
    for _ in range(CANCEL_TRIES):
        # One-way and droppable: said again in a moment, and after the last time the attempt's token is void.
        with contextlib.suppress(BrokerError):
            await actor.ports.link.cancel(command.executor, command.job_id, command.reason)
        await actor.wait_changed(lambda: not actor.wants(command), CANCEL_EVERY_S)
        if not actor.wants(command):
            return
    while actor.wants(command):
        try:
            await end_as_lost(actor, command.job_id, command.attempt, f"did not stop: {command.reason}")
        except BrokerError:
            await actor.ports.sleep(CANCEL_EVERY_S)


async def _deliver(actor: Actor, command: Deliver) -> None:
    run = actor.state
    if actor.ports.deliver is None or not actor.ports.delivers(run) or run.landed_commit is None:
        return
    await actor.ports.deliver(run)
    await _record(actor, command, RunDelivered(run_id=run.run_id, at=0, branch=run.branch, commit=run.landed_commit))


async def end_as_lost(actor: Actor, job_id: str, attempt: int, reason: str) -> None:
    """Declare an attempt dead: from now on its token counts for nothing; what it still sends is salvaged."""

    def build(run: RunState) -> AnyEvent | None:
        job = run.jobs[job_id]
        if job.current is None or job.current.attempt != attempt:
            return None
        now = actor.ports.clock()
        return AttemptEnded(
            run_id=run.run_id,
            at=now,
            job_id=job_id,
            attempt=attempt,
            executor=job.current.executor,
            outcome=Outcome.LOST,
            reason=reason[:4_000],
            started_at=job.current.started_at,
            ended_at=now,
        )

    await actor.record(build)
