"""Answers CLIs: submit, stop, resume, why, delivered (DECISIONS D19); every request may be repeated after a lost answer. Not executors."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from sandbox.contract import subjects
from sandbox.contract.errors import AndonError, BrokerError, InfrastructureError, UsageError
from sandbox.contract.wire import Heartbeat, RpcHandler
from supervisor.orchestrator.activity import Activity
from supervisor.orchestrator.actor import RunActor
from supervisor.orchestrator.fitness import unfit
from supervisor.orchestrator.ports import Ports
from supervisor.orchestrator.why import View, why
from supervisor.pipeline.events import AnyEvent, DeliveryFailed, RunDelivered, RunResumed, StopRequested
from supervisor.pipeline.machine import apply
from supervisor.pipeline.run import FINAL, RunState
from supervisor.pipeline.submit import (
    Answer,
    DeliveredRequest,
    ResumeRequest,
    StopRequest,
    SubmitReply,
    SubmitRequest,
    WhyReply,
    WhyRequest,
)

OPEN_RUNS_MAX = 1000
REMEMBERED_MAX = 10_000
"""Submissions whose repetition is recognised: the newest ones."""
EXECUTORS_S = 1.0
"""How old the list of executors may be in an answer."""

RequestT = TypeVar("RequestT", bound=BaseModel)
Load = Callable[[str], Awaitable[RunState | None]]


class Requests:
    """The handlers of the FLEET account's requests over the open runs of one supervisor."""

    def __init__(
        self, ports: Ports, actors: Mapping[str, RunActor], load: Load, open_run: Callable[[RunState], RunActor], activity: Activity
    ) -> None:
        """Take the open runs, how to read any run from the log, how to open one, and what attempts last said."""
        self._ports = ports
        self._actors = actors
        self._load = load
        self._open = open_run
        self._activity = activity
        self._accepting = asyncio.Lock()
        self._known: dict[str, SubmitReply] = {}
        self._beats: tuple[float, list[Heartbeat]] = (float("-inf"), [])

    def handlers(self) -> dict[str, RpcHandler]:
        """Return what answers each subject."""
        return {
            subjects.RPC_INTENT: self._submit,
            subjects.RPC_STOP: _handler(StopRequest, self._stop),
            subjects.RPC_RESUME: _handler(ResumeRequest, self._resume),
            subjects.RPC_WHY: self._why,
            subjects.RPC_DELIVERED: _handler(DeliveredRequest, self._delivered),
        }

    def remember(self, run: RunState) -> None:
        """Note which submission opened a run: the same one again is answered with it."""
        if not run.request_id:
            return
        while len(self._known) >= REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        self._known[run.request_id] = _reply(run)

    # Submit

    async def _submit(self, data: bytes) -> bytes:
        try:
            reply = await self._accept(SubmitRequest.model_validate_json(data))
        except ValidationError as error:
            reply = SubmitReply(error=f"the submission is not one this supervisor understands: {_first(error)}", exit_code=2)
        except AndonError as error:
            reply = SubmitReply(error=str(error), exit_code=error.exit_code)
        return _encoded(reply)

    async def _accept(self, request: SubmitRequest) -> SubmitReply:
        async with self._accepting:  # one at a time: the next one sees this one's branch, and a repetition its run
            if request.request_id in self._known:
                return self._known[request.request_id]
            if held := self._ports.hold():
                raise InfrastructureError(f"no new run is taken now: {held}")
            if len(self._actors) >= OPEN_RUNS_MAX:
                raise BrokerError(f"{OPEN_RUNS_MAX} runs are open; stop or finish some")
            open_runs = [actor.state.intent for actor in self._actors.values()]
            taken = {intent.branch for intent in open_runs if intent.repository == request.repository}
            accepted = await self._ports.intake.accept(request, taken)
            if problem := unfit(accepted.event.pipeline, request.mode, await self._executors()):
                raise UsageError(problem)
            run = await self._append(None, accepted.event)
            self.remember(run)
            self._open(run)
        return _reply(run).model_copy(update={"notices": accepted.notices})

    # Stop and resume

    async def _stop(self, request: StopRequest) -> Answer:
        actor = self._actors.get(request.run_id)
        if actor is None:
            return await self._over(request.run_id)
        async with actor.landing:
            at = self._ports.clock()
            event = StopRequested(run_id=request.run_id, at=at, how=request.how, reason=request.reason[:400])
            if await actor.record(lambda run: event if _is_new_stop(run, request.how) else None) is None and actor.state.state in FINAL:
                return await self._over(request.run_id)
        return Answer(ok=True)

    async def _resume(self, request: ResumeRequest) -> Answer:
        actor = self._actors.get(request.run_id)
        if actor is None:
            return await self._deliver_again(request.run_id)
        spent = actor.state.budget.settled_nano_usd + actor.state.budget.held_nano_usd
        if request.budget_nano_usd is not None and request.budget_nano_usd <= spent:
            return Answer(ok=False, error=f"the run has spent ${spent / 1e9:.2f} already: give a larger --budget", exit_code=2)
        event = self._resumed(request.run_id, request.budget_nano_usd)
        await actor.record(lambda run: event if run.state in {"parked", "waiting"} or event.budget_nano_usd is not None else None)
        return Answer(ok=True)

    async def _deliver_again(self, run_id: str) -> Answer:
        run = await self._load(run_id)
        if run is None or run.state != "landed" or run.delivered or not self._ports.delivers(run):
            return await self._over(run_id)
        event = self._resumed(run_id, None)
        seq = await self._ports.log.append(event, run.seq)
        self._open(apply(run, event.model_copy(update={"seq": seq})))
        return Answer(ok=True)

    def _resumed(self, run_id: str, budget_nano_usd: int | None) -> RunResumed:
        return RunResumed(run_id=run_id, at=self._ports.clock(), reason="resumed by a person", budget_nano_usd=budget_nano_usd)

    async def _over(self, run_id: str) -> Answer:
        run = await self._load(run_id)
        if run is None:
            return _unknown(run_id)
        return Answer(ok=False, error=f"run {run_id} is {run.state}; there is nothing left to stop or resume", exit_code=2)

    # Delivered elsewhere

    async def _delivered(self, request: DeliveredRequest) -> Answer:
        run = await self._load(request.run_id)
        if run is None:
            return _unknown(request.run_id)
        if refusal := self._not_theirs(run, request.commit):
            return Answer(ok=False, error=refusal, exit_code=6)
        if run.delivered or (not request.ok and run.delivery_failed and run.end_reason == request.reason):
            return Answer(ok=True)  # the same again, because its answer was lost
        same = {"run_id": run.run_id, "at": self._ports.clock(), "branch": run.branch}
        if request.ok:
            await self._append(run, RunDelivered.model_validate(same | {"commit": request.commit}))
        else:
            said = {"exit_code": request.exit_code or 6, "reason": request.reason or "it could not be delivered"}
            await self._append(run, DeliveryFailed.model_validate(same | said))
        return Answer(ok=True)

    def _not_theirs(self, run: RunState, commit: str) -> str:
        """Return why nobody else may say that a run is delivered, empty if they may."""
        if run.state != "landed":
            return f"run {run.run_id} is {run.state}: only a landed run is delivered"
        if commit != run.landed_commit:
            return f"run {run.run_id} landed {run.landed_commit}, not {commit}"
        return f"run {run.run_id} is delivered by its supervisor" if self._ports.delivers(run) else ""

    async def _append(self, run: RunState | None, event: AnyEvent) -> RunState:
        seq = await self._ports.log.append(event, run.seq if run is not None else 0)
        stored = event.model_copy(update={"seq": seq})
        after = apply(run, stored)
        self._ports.observe(after, stored)
        return after

    # Why

    async def _why(self, data: bytes) -> bytes:
        try:
            request = WhyRequest.model_validate_json(data)
            actor = self._actors.get(request.run_id)
            run = actor.state if actor is not None else await self._load(request.run_id)
            if run is None:
                return _encoded(WhyReply(error=f"there is no run {request.run_id}", exit_code=2))
            return _encoded(why(run, await self._view()))
        except ValidationError as error:
            return _encoded(WhyReply(error=f"the request is not one this supervisor understands: {_first(error)}", exit_code=2))
        except AndonError as error:
            return _encoded(WhyReply(error=str(error), exit_code=error.exit_code))

    async def _executors(self) -> list[Heartbeat]:
        now = self._ports.monotonic()
        if now - self._beats[0] >= EXECUTORS_S:
            self._beats = (now, await self._ports.link.executors())
        return self._beats[1]

    async def _view(self) -> View:
        return View(queue=self._ports.queue, executors=await self._executors(), doing=self._activity.of, held=self._ports.hold())


def _handler(kind: type[RequestT], answer: Callable[[RequestT], Awaitable[Answer]]) -> RpcHandler:
    async def handle(data: bytes) -> bytes:
        try:
            return _encoded(await answer(kind.model_validate_json(data)))
        except (ValidationError, AndonError) as error:
            return _encoded(_refusal(error))

    return handle


def _reply(run: RunState) -> SubmitReply:
    return SubmitReply(run_id=run.run_id, feature=run.intent.feature, branch=run.branch, trace_id=run.trace_id)


def _is_new_stop(run: RunState, how: str) -> bool:
    """Return whether a stop changes anything: parking what is parked does not, cancelling it does."""
    if how == "park":
        return run.stop_requested is None and run.state in {"queued", "running"}
    return run.stop_requested != "cancel"


def _unknown(run_id: str) -> Answer:
    return Answer(ok=False, error=f"there is no run {run_id}", exit_code=2)


def _refusal(error: ValidationError | AndonError) -> Answer:
    if isinstance(error, ValidationError):
        return Answer(ok=False, error=f"the request is not one this supervisor understands: {_first(error)}", exit_code=2)
    return Answer(ok=False, error=str(error), exit_code=error.exit_code)


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"


def _encoded(reply: BaseModel) -> bytes:
    return reply.model_dump_json().encode()
