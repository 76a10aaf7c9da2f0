"""The supervisor's heart: takes up every open run from the log, serves executors and CLIs, until cancelled. Composition only."""

import asyncio
import logging

from pydantic import BaseModel, ValidationError

from sandbox.contract import subjects
from sandbox.contract.errors import AndonError, BrokerError
from sandbox.contract.wire import RpcHandler
from supervisor.orchestrator.actor import RunActor
from supervisor.orchestrator.claims import Desk
from supervisor.orchestrator.ports import Ports
from supervisor.orchestrator.results import Results
from supervisor.orchestrator.watch import Watch
from supervisor.pipeline.events import RunResumed, StopRequested
from supervisor.pipeline.machine import apply, fold
from supervisor.pipeline.run import FINAL, RunState
from supervisor.pipeline.submit import Answer, ResumeRequest, StopRequest, SubmitReply, SubmitRequest

log = logging.getLogger(__name__)

OPEN_RUNS_MAX = 1000


class Orchestrator:
    """All open runs of one supervisor; there is one active supervisor per event log."""

    def __init__(self, ports: Ports) -> None:
        self.ready = asyncio.Event()
        """Set when every open run is taken up and requests are answered."""
        self._ports = ports
        self._actors: dict[str, RunActor] = {}
        self._accepting = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None
        self._watch = Watch(ports, lambda: tuple(self._actors.values()))
        self._desk = Desk(ports, self._actors.get, self._watch.joined)
        self._results = Results(ports, self._actors.get, self._load)

    @property
    def busy_runs(self) -> tuple[str, ...]:
        """Return the runs that go on by themselves: neither over, nor parked, nor waiting for a person."""
        return tuple(name for name, actor in self._actors.items() if actor.state.state in {"queued", "running", "landed"})

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            StaleWriter: Another supervisor writes the same log: stand down.
            BrokerError: The bus does not answer at the start.
        """
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await self._take_up()
            rpcs: dict[str, RpcHandler] = {
                subjects.RPC_INTENT: self._submit,
                subjects.RPC_STOP: self._stop,
                subjects.RPC_RESUME: self._resume,
            }
            await self._ports.link.serve(self._desk, rpcs)
            self.ready.set()
            tasks.create_task(self._ports.queue.run())
            tasks.create_task(self._results.consume())
            tasks.create_task(self._watch.run())

    async def _take_up(self) -> None:
        for run_id in await self._ports.log.runs():
            run = await self._load(run_id)
            if (run is not None and run.state not in FINAL) or (
                run is not None and run.state == "landed" and not RunActor(self._ports, run).is_over
            ):
                self._open(run)

    async def _load(self, run_id: str) -> RunState | None:
        """Return a run from the log, None if there is none that can be read."""
        try:
            events = await self._ports.log.read(run_id)
            return fold(events) if events else None
        except ValueError:  # one corrupt log must not keep the others from being taken up
            log.exception("run.unreadable", extra={"run_id": run_id})
            return None

    def _open(self, run: RunState) -> RunActor:
        if self._tasks is None:
            raise BrokerError("the supervisor is stopping")
        actor = self._actors[run.run_id] = RunActor(self._ports, run)
        self._tasks.create_task(self._live(actor))
        return actor

    async def _live(self, actor: RunActor) -> None:
        try:
            await actor.main()
        finally:
            self._actors.pop(actor.state.run_id, None)

    async def _submit(self, data: bytes) -> bytes:
        try:
            reply = await self._accept(SubmitRequest.model_validate_json(data))
        except ValidationError as error:
            reply = SubmitReply(error=f"the submission is not one this supervisor understands: {_first(error)}", exit_code=2)
        except AndonError as error:
            reply = SubmitReply(error=str(error), exit_code=error.exit_code)
        return _encoded(reply)

    async def _accept(self, request: SubmitRequest) -> SubmitReply:
        async with self._accepting:  # one at a time: the next one sees this one's branch
            if len(self._actors) >= OPEN_RUNS_MAX:
                raise BrokerError(f"{OPEN_RUNS_MAX} runs are open; stop or finish some")
            open_runs = [actor.state.intent for actor in self._actors.values()]
            taken = {intent.branch for intent in open_runs if intent.repository == request.repository}
            accepted = await self._ports.intake.accept(request, taken)
            seq = await self._ports.log.append(accepted.event, 0)
            event = accepted.event.model_copy(update={"seq": seq})
            run = apply(None, event)
            self._ports.observe(run, event)
            self._open(run)
        return SubmitReply(
            run_id=run.run_id, feature=run.intent.feature, branch=run.branch, trace_id=run.trace_id, notices=accepted.notices
        )

    async def _stop(self, data: bytes) -> bytes:
        try:
            request = StopRequest.model_validate_json(data)
            return _encoded(await self._asked_to_stop(request))
        except (ValidationError, AndonError) as error:
            return _encoded(_refusal(error))

    async def _asked_to_stop(self, request: StopRequest) -> Answer:
        actor = self._actors.get(request.run_id)
        if actor is None:
            return await self._over(request.run_id)
        async with actor.landing:
            at = self._ports.clock()
            event = StopRequested(run_id=request.run_id, at=at, how=request.how, reason=request.reason[:400])
            if await actor.record(lambda run: event if _is_new_stop(run, request.how) else None) is None and actor.state.state in FINAL:
                return await self._over(request.run_id)
        return Answer(ok=True)

    async def _resume(self, data: bytes) -> bytes:
        try:
            request = ResumeRequest.model_validate_json(data)
            return _encoded(await self._asked_to_resume(request))
        except (ValidationError, AndonError) as error:
            return _encoded(_refusal(error))

    async def _asked_to_resume(self, request: ResumeRequest) -> Answer:
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
            return Answer(ok=False, error=f"there is no run {run_id}", exit_code=2)
        return Answer(ok=False, error=f"run {run_id} is {run.state}; there is nothing left to stop or resume", exit_code=2)


def _is_new_stop(run: RunState, how: str) -> bool:
    """Return whether a stop changes anything: parking what is parked does not, cancelling it does."""
    if how == "park":
        return run.stop_requested is None and run.state in {"queued", "running"}
    return run.stop_requested != "cancel"


def _refusal(error: ValidationError | AndonError) -> Answer:
    if isinstance(error, ValidationError):
        return Answer(ok=False, error=f"the request is not one this supervisor understands: {_first(error)}", exit_code=2)
    return Answer(ok=False, error=str(error), exit_code=error.exit_code)


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"


def _encoded(reply: BaseModel) -> bytes:
    return reply.model_dump_json().encode()
