"""A supervisor's whole world in memory: bus, log, gates that say what a test wants, executors that do what it says.

The orchestrator in it is the real one; what it works with is scripted. Delays pass a hundred times faster, the clock does not.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel

from sandbox.contract import subjects
from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.blob import output_bucket
from sandbox.contract.errors import BrokerError
from sandbox.contract.ids import job_id, run_id, trace_id
from sandbox.contract.job import Check, JobSpec
from sandbox.contract.result import AttemptResult, Cause, Finding, Outcome, Usage
from sandbox.contract.wire import BudgetRequest, ClaimReply, ClaimRequest, Delivery, Heartbeat
from supervisor.dispatch import JobQueue
from supervisor.intake import Accepted
from supervisor.orchestrator import Orchestrator, Ports
from supervisor.pipeline import events as ev
from supervisor.pipeline.commands import Dispatch, Join
from supervisor.pipeline.load import default_pipeline
from supervisor.pipeline.machine import fold
from supervisor.pipeline.run import JobState, RunState
from supervisor.pipeline.submit import Answer, ResumeRequest, StopRequest, SubmitReply, SubmitRequest, WhyReply, WhyRequest
from supervisor.pipeline.survey import stage_of
from supervisor.store.log.event_log import EventLog
from tests.fakes.line_driver import a_blob, an_intent, sha
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink, MemorySupervisorLink
from tests.fakes.memory_log import MemoryEventLog

ReplyT = TypeVar("ReplyT", bound=BaseModel)

SPEED = 100
WAIT_S = 10.0


async def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds; fails with `what` after ten seconds."""
    until = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < until, f"waited {WAIT_S:.0f} s until {what}"
        await asyncio.sleep(0.002)


async def quick_sleep(seconds: float) -> None:
    """Sleep a hundredth of what was asked."""
    await asyncio.sleep(seconds / SPEED)


def a_submission(**changes: object) -> SubmitRequest:
    """Return a valid submission."""
    values: dict[str, object] = {
        "request": "Add rate limiting",
        "repository": "/repo",
        "base_name": "main",
        "base_commit": "b" * 40,
        "base_pack": a_blob("pack"),
        "baseline": False,
        "budget_nano_usd": 50_000,
        "warn_nano_usd": 10_000,
    }
    return SubmitRequest.model_validate(values | changes)


class ScriptedIntake:
    """Accepts everything; the run's id grows with each."""

    def __init__(self) -> None:
        self.count = 0
        self.pipeline = default_pipeline()

    async def accept(self, request: SubmitRequest, taken: Collection[str]) -> Accepted:
        """Return the event that opens the run."""
        self.count += 1
        name = run_id(1_750_000_000_000 + self.count * 64, b"\0\0")
        same = request.model_dump(include={"repository", "parallel", "baseline", "budget_nano_usd", "warn_nano_usd", "delivery"})
        intent = an_intent(**same)
        event = ev.RunAccepted(
            run_id=name,
            at=time.time(),
            intent=intent,
            pipeline=self.pipeline,
            trace_id=trace_id(name),
            request_id=request.request_id,
        )
        return Accepted(event, tuple(sorted(taken)))


class ScriptedDispatcher:
    """Prepares jobs with nothing in them."""

    def __init__(self, link: MemorySupervisorLink) -> None:
        self._link = link
        self.failures: list[Exception] = []

    async def prepare(self, run: RunState, command: Dispatch) -> ev.JobDispatched:
        """Store a job and return its event."""
        if self.failures:
            raise self.failures.pop(0)
        name = job_id(run.run_id, command.stage, command.round)
        same = command.model_dump(exclude={"feedback_from"})
        agent = AgentSpec(name=command.role, model="m", system="s", prompt="p") if command.kind == "agent" else None
        checks = () if agent else (Check(name="tests", argv=("pytest",)),)
        stage = stage_of(run.pipeline, command.stage)
        where = stage.model_dump(include={"pool", "labels"}) if stage is not None else {}
        more = {"run_id": run.run_id, "feature": "f", "input_pack": a_blob(), "agent": agent, "checks": checks}
        spec = JobSpec.model_validate({"job_id": name, "priority": run.intent.priority} | more | where | same)
        ref = await self._link.put_blob(f"{name}/job-{run.seq}", spec.model_dump_json().encode())
        return ev.JobDispatched(run_id=run.run_id, at=0, job_id=name, spec=ref, **same)


@dataclass
class ScriptedIntegrator:
    """Gates whose verdicts a test writes down: by `<stage>-<round>`, otherwise pass."""

    verdicts: dict[str, ev.Verdict] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    salvaged: list[str] = field(default_factory=list)
    landings: int = 0
    branch: str | None = None

    async def judge(self, run: RunState, job: JobState) -> ev.JobJudged:
        """Return the scripted verdict."""
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        verdict = self.verdicts.get(f"{job.stage}-{job.round}", "pass")
        findings = (Finding(check="pytest", message=f"{job.stage} is wrong"),) if verdict == "fail" else ()
        commit = sha(job.job_id) if verdict == "pass" and job.kind == "agent" else None
        return ev.JobJudged(run_id=run.run_id, at=0, job_id=job.job_id, verdict=verdict, findings=findings, commit=commit)

    async def join(self, run: RunState, command: Join) -> ev.Joined:
        """Return a commit made of its parents."""
        commit = sha("".join(command.commits))
        return ev.Joined(run_id=run.run_id, at=0, stage=command.stage, round=command.round, commit=commit, parents=command.commits)

    async def land(self, run: RunState, commit: str) -> ev.RunLanded:
        """Move the branch unless it is where it should be."""
        await asyncio.sleep(0)
        landed = sha(f"landed{commit}")
        if self.branch != landed:
            assert self.branch is None, "landed twice"
            self.branch = landed
            self.landings += 1
        return ev.RunLanded(run_id=run.run_id, at=0, branch=run.branch, commit=landed)

    async def salvage(self, run: RunState, job: JobState, result: AttemptResult) -> str | None:
        """Remember what was salvaged."""
        name = f"refs/andon/salvage/{run.run_id}/{job.stage}/{job.round}/{result.attempt}"
        self.salvaged.append(name)
        return name


Work = Callable[["Worker", Delivery, ClaimReply], Awaitable[AttemptResult | None]]


class Worker:
    """One executor with one slot; `work` is what it does with a granted job, None: it vanishes with the job in hand."""

    def __init__(self, link: MemoryExecutorLink, name: str, work: Work) -> None:
        self.link = link
        self.name = name
        self.work = work
        self.log: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        """Of its claims."""

    async def run(self) -> None:
        """Pull, claim, work, report, until cancelled."""
        while True:
            delivery = await self.link.next_job(0.2)
            if delivery is not None:
                await self._take(delivery)

    async def _take(self, delivery: Delivery) -> None:
        reply = await self.claim(delivery)
        self.log.append((delivery.job.job_id, reply.decision))
        if reply.decision in {"done", "gone"}:
            await self.link.ack(delivery.ack_subject)
        if reply.decision != "granted":
            await asyncio.sleep(0.01)
            return
        result = await self.work(self, delivery, reply)
        if result is not None:
            await self.link.publish_result(result)
            await self.link.ack(delivery.ack_subject)

    async def claim(self, delivery: Delivery, **changes: object) -> ClaimReply:
        """Ask until somebody answers."""
        about = {"executor": self.name, "job_id": delivery.job.job_id, "ack_subject": delivery.ack_subject}
        request = ClaimRequest.model_validate(about | changes)
        self.tokens.append(request.token)
        while True:
            try:
                return await self.link.claim(request)
            except BrokerError:
                await asyncio.sleep(0.01)

    async def beat(self, **changes: object) -> None:
        """Write a life sign."""
        about = {"executor": self.name, "release": "1", "pools": ("default",), "slots": 1, "busy": 0, "model": "live"}
        await self.link.heartbeat(Heartbeat.model_validate(about | changes))

    async def spend(self, delivery: Delivery, reply: ClaimReply, call: str, nano_usd: int) -> bool:
        """Reserve and settle one model call; False if it was not granted."""
        same = {"executor": self.name, "run_id": delivery.job.run_id, "job_id": delivery.job.job_id, "call_id": call, "nano_usd": nano_usd}
        for op in ("reserve", "settle"):
            request = {"attempt": reply.attempt, "token": reply.token, "op": op, "usage": Usage(output_tokens=1)}
            if not (await self.link.budget(BudgetRequest.model_validate(same | request))).granted:
                return False
        return True


def a_result(
    worker: Worker, delivery: Delivery, reply: ClaimReply, outcome: Outcome = Outcome.SUBMITTED, **changes: object
) -> AttemptResult:
    """Return a result of the granted attempt, with a git bundle if an agent submitted."""
    job = delivery.job
    values: dict[str, object] = {
        "token": reply.token,
        "attempt": reply.attempt,
        "executor": worker.name,
        "outcome": outcome,
        "started_at": time.time(),
        "ended_at": time.time(),
        "git_bundle": a_blob("bundle", output_bucket(worker.name)) if job.kind == "agent" else None,
    }
    values |= job.model_dump(include={"job_id", "run_id", "stage", "round"})
    return AttemptResult.model_validate(values | changes)


async def submit_at_once(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
    """Work that is done when it begins."""
    return a_result(worker, delivery, reply)


def ending(outcome: Outcome, cause: Cause = "", times: int = 1) -> Work:
    """Return work that ends badly for the first `times` attempts, then well."""
    left = [times]

    async def work(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        left[0] -= 1
        bad = left[0] >= 0
        return a_result(worker, delivery, reply, outcome, cause=cause) if bad else a_result(worker, delivery, reply)

    return work


class World:
    """Bus, log and scripted collaborators; supervisors and workers come and go."""

    def __init__(self, link: MemorySupervisorLink, broker: MemoryBroker, log: EventLog | None = None) -> None:
        self.broker = broker
        self.link = link
        self.log: EventLog = log or MemoryEventLog()
        self.integrator = ScriptedIntegrator()
        self.dispatcher = ScriptedDispatcher(link)
        self.intake = ScriptedIntake()
        self.delivered: list[str] = []
        self.delivery_failures: list[Exception] = []
        self.observed: list[ev.AnyEvent] = []
        self.orchestrator: Orchestrator | None = None

    def ports(self, **changes: object) -> Ports:
        """Return the collaborators of a supervisor."""
        values = {
            "log": self.log,
            "link": self.link,
            "intake": self.intake,
            "dispatcher": self.dispatcher,
            "queue": JobQueue(self.link),
            "integrator": self.integrator,
            "deliver": self._deliver,
            "observe": lambda _run, event: self.observed.append(event),
            "sleep": quick_sleep,
        }
        return Ports(**(values | changes))  # type: ignore[arg-type]

    async def _deliver(self, run: RunState) -> None:
        if self.delivery_failures:
            raise self.delivery_failures.pop(0)
        self.delivered.append(run.branch)

    @asynccontextmanager
    async def supervisor(self, **changes: object) -> AsyncIterator[Orchestrator]:
        """Run a supervisor as long as the context lasts; leaving it is a crash at that moment."""
        orchestrator = Orchestrator(self.ports(**changes))
        task = asyncio.create_task(orchestrator.run())
        ready = asyncio.create_task(orchestrator.ready.wait())
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        self.orchestrator = orchestrator
        try:
            yield orchestrator
        finally:
            ready.cancel()
            task.cancel()
            self.broker.desk, self.broker.rpcs = None, {}
            ended = (await asyncio.gather(task, ready, return_exceptions=True))[0]
            if isinstance(ended, Exception):
                raise ended

    @asynccontextmanager
    async def worker(self, work: Work = submit_at_once, name: str = "host-1") -> AsyncIterator[Worker]:
        """Run an executor as long as the context lasts."""
        async with MemoryExecutorLink.connect(self.broker, name) as link:
            worker = Worker(link, name, work)
            await worker.beat()
            task = asyncio.create_task(worker.run())
            try:
                yield worker
            finally:
                task.cancel()
                ended = (await asyncio.gather(task, return_exceptions=True))[0]
                if isinstance(ended, Exception):
                    raise ended

    async def submit(self, **changes: object) -> str:
        """Open a run and return its id."""
        data = await self.broker.rpcs["andon.rpc.intent"](a_submission(**changes).model_dump_json().encode())
        reply = SubmitReply.model_validate_json(data)
        assert reply.run_id is not None, reply
        return reply.run_id

    async def stop(self, run: str, how: str = "park") -> Answer:
        """Ask for a stop."""
        request = StopRequest.model_validate({"run_id": run, "how": how, "reason": "test"})
        return Answer.model_validate_json(await self.broker.rpcs["andon.rpc.stop"](request.model_dump_json().encode()))

    async def resume(self, run: str, budget_nano_usd: int | None = None) -> Answer:
        """Ask for a resume."""
        request = ResumeRequest(run_id=run, budget_nano_usd=budget_nano_usd)
        return Answer.model_validate_json(await self.broker.rpcs["andon.rpc.resume"](request.model_dump_json().encode()))

    async def ask(self, subject: str, request: BaseModel, reply: type[ReplyT]) -> ReplyT:
        """Ask the supervisor as a CLI does."""
        return reply.model_validate_json(await self.broker.rpcs[subject](request.model_dump_json().encode()))

    async def why(self, run: str) -> WhyReply:
        """Ask what a run waits for."""
        return await self.ask(subjects.RPC_WHY, WhyRequest(run_id=run), WhyReply)

    async def events(self, run: str) -> list[ev.AnyEvent]:
        """Return a run's log."""
        return await self.log.read(run)

    async def state(self, run: str) -> RunState:
        """Return a run folded from its log."""
        return fold(await self.log.read(run))

    async def until(self, run: str, condition: Callable[[RunState], bool], what: str) -> RunState:
        """Wait until the run's log says so."""
        until = time.monotonic() + WAIT_S
        while not condition(state := await self.state(run)):
            jobs = {name: (job.standing, job.verdict) for name, job in state.jobs.items()}
            assert time.monotonic() < until, f"waited {WAIT_S:.0f} s until {what}; it is {state.state} with {jobs}"
            await asyncio.sleep(0.002)
        return state


@asynccontextmanager
async def a_world(log: EventLog | None = None) -> AsyncIterator[World]:
    """Open a world."""
    broker = MemoryBroker(confirm_s=30 / SPEED)
    async with MemorySupervisorLink.connect(broker) as link:
        yield World(link, broker, log)
