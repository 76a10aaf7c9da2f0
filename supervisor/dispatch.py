"""A decided job becomes bytes on the bus: `Dispatcher` prepares it, `JobQueue` releases it; neither decides anything about a run.

Everything a job needs is stored as objects before its event is appended, and its event is appended before it is published, so a
crash anywhere leaves either nothing or a job that is published again byte for byte.
"""

import asyncio
import hashlib
import heapq
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.blob import BlobRef
from sandbox.contract.errors import BrokerError, ConfigError, InfrastructureError
from sandbox.contract.ids import job_id
from sandbox.contract.job import Check, JobSpec
from sandbox.contract.scope import WriteScope
from sandbox.contract.wire import SupervisorLink
from sandbox.mirror import Mirror
from supervisor.knowledge.bundler import Brief
from supervisor.pipeline.commands import Dispatch
from supervisor.pipeline.definition import Stage
from supervisor.pipeline.events import JobDispatched
from supervisor.pipeline.load import RED_CHECK
from supervisor.pipeline.run import RunState
from supervisor.pipeline.survey import stage_of
from supervisor.stages.agents import agent_spec, load_agent, override_path
from supervisor.stages.contract import scope_for
from supervisor.stages.files import text_at
from supervisor.stages.quality import checks_for, checks_of_tests

log = logging.getLogger(__name__)

QUEUE_MAX = 10_000
POLL_S = 0.2
"""Between two looks at the credit while jobs wait (NATS.md §3)."""
AWAY_S = 1.0


class Briefs(Protocol):
    """Makes an agent's context from a run (`supervisor/briefing.py`)."""

    async def brief(self, run: RunState, command: Dispatch, stage: Stage) -> Brief:
        """Return bundle and first message of the job `command` names; its feedback comes from `command.feedback_from`."""
        ...


class Dispatcher:
    """Turns a `Dispatch` into stored objects and the event that names them."""

    def __init__(self, mirror: Mirror, link: SupervisorLink, briefs: Briefs, *, models: dict[str, str] | None = None) -> None:
        """Make a dispatcher.

        Args:
            mirror: Holds every commit of the run.
            link: Where objects are stored.
            briefs: Context of agents.
            models: A pipeline's model name to the one that is called; the configuration's `models:`.
        """
        self._mirror = mirror
        self._link = link
        self._briefs = briefs
        self._models = models or {}

    async def prepare(self, run: RunState, command: Dispatch) -> JobDispatched:
        """Store the job's pack, bundle and bytes, and return the event to append; nothing is published.

        Raises:
            ConfigError: An agent definition or `quality.toml` of the base commit is wrong.
            InfrastructureError: Git or the object store failed.
        """
        stage = stage_of(run.pipeline, command.stage)
        if stage is None:
            raise ConfigError(f"the pipeline has no stage whose limits {command.stage} could have: add a validate stage")
        pack = await self._mirror.pack_of(command.base_commit)
        name = f"{run.run_id}/{command.stage}/{command.round}"
        input_pack = await self._put(f"{run.run_id}/{command.base_commit}/pack", pack)
        work: dict[str, object]
        if command.kind == "agent":
            brief = await self._briefs.brief(run, command, stage)
            bundle = await self._put(f"{name}/task", brief.bundle.encode())
            work = {"agent": await self._agent(run, stage, brief.prompt), "task_bundle": bundle}
        else:
            work = {"checks": await self._checks(run, command, stage)}
        spec = _spec(run, command, stage, input_pack).model_copy(update=work)
        data = spec.model_dump_json().encode()
        return JobDispatched(
            run_id=run.run_id,
            at=0,
            job_id=spec.job_id,
            stage=command.stage,
            role=command.role,
            round=command.round,
            kind=command.kind,
            base_commit=command.base_commit,
            spec=await self._put(f"{name}/job", data),
        )

    async def _put(self, name: str, data: bytes) -> BlobRef:
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        return await self._link.put_blob(f"{name}-{digest}", data)

    async def _agent(self, run: RunState, stage: Stage, prompt: str) -> AgentSpec:
        override = await self._mirror.inspect(
            [run.intent.base_commit], lambda tree: text_at(tree, override_path(stage.agent or stage.role))
        )
        model = self._models.get(stage.model, stage.model) if stage.model else None
        definition = load_agent(stage.agent or stage.role, override, model=model)
        return agent_spec(definition, prompt, steps_max=stage.steps_max, output_tokens_max=stage.output_tokens_max)

    async def _checks(self, run: RunState, command: Dispatch, stage: Stage) -> tuple[Check, ...]:
        # Of the base commit, never of the branch under test (DECISIONS D12).
        checks = await self._mirror.inspect([run.intent.base_commit], lambda tree: checks_for(tree, stage))
        return checks_of_tests(checks) if command.stage == RED_CHECK else checks


def _spec(run: RunState, command: Dispatch, stage: Stage, input_pack: BlobRef) -> JobSpec:
    intent, is_agent = run.intent, command.kind == "agent"
    return JobSpec(
        job_id=job_id(run.run_id, command.stage, command.round),
        run_id=run.run_id,
        feature=intent.feature,
        stage=command.stage,
        role=command.role,
        round=command.round,
        kind=command.kind,
        pool=stage.pool,
        priority=stage.priority or intent.priority,
        labels=stage.labels,
        base_commit=command.base_commit,
        input_pack=input_pack,
        scope=scope_for(stage, intent.feature) if is_agent else WriteScope(),
        limits=stage.limits,
        runtime=stage.runtime,
        dockerfile_sha256=intent.dockerfile_sha256,
        mode=intent.mode,
        cassette=intent.cassette if is_agent else None,
        record=intent.record and is_agent,
        stage_budget_nano_usd=int(Decimal(stage.budget_usd) * 10**9) if stage.budget_usd else None,
    )


@dataclass(order=True)
class _Waiting:
    rank: tuple[int, int]
    job: JobSpec = field(compare=False)
    dedupe: str = field(compare=False)
    wanted: Callable[[], bool] = field(compare=False)


class JobQueue:
    """Jobs that wait for a free slot, a heap for each pool: higher priority first, then first come. In memory: the log rebuilds it.

    A job is published when an executor of its pool waits for one, so what is on the bus is about to be taken, and a job of a run
    that was stopped meanwhile is never published at all.
    """

    def __init__(self, link: SupervisorLink) -> None:
        self._link = link
        self._pools: dict[str, list[_Waiting]] = {}
        self._names: set[str] = set()
        self._count = 0
        self._kicked = asyncio.Event()

    def __len__(self) -> int:
        """Return how many jobs wait."""
        return len(self._names)

    def put(self, job: JobSpec, dedupe: str, wanted: Callable[[], bool]) -> None:
        """Publish `job` as soon as its pool has credit, if `wanted()` still holds then; the same `dedupe` is put once.

        Raises:
            InfrastructureError: 10,000 jobs wait already.
        """
        if dedupe in self._names:
            return
        if len(self._names) >= QUEUE_MAX:
            raise InfrastructureError(f"{QUEUE_MAX} jobs wait for an executor; start more with `andon executor`")
        self._count += 1
        self._names.add(dedupe)
        waiting = _Waiting(rank=(-job.priority, self._count), job=job, dedupe=dedupe, wanted=wanted)
        heapq.heappush(self._pools.setdefault(job.pool, []), waiting)
        self._kicked.set()

    def is_waiting(self, dedupe: str) -> bool:
        """Return whether this copy is still to be published."""
        return dedupe in self._names

    def kick(self) -> None:
        """Look at the credit now."""
        self._kicked.set()

    async def run(self) -> None:
        """Publish as credit comes, until cancelled; a broker that is away is waited for."""
        while True:
            await self._kicked.wait()
            self._kicked.clear()
            try:
                for pool in list(self._pools):
                    await self._release(pool)
            except BrokerError as error:
                log.warning("queue.broker_away", extra={"waiting": len(self), "reason": str(error)})
                await asyncio.sleep(AWAY_S)
                self._kicked.set()
            if self._names:
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(POLL_S):
                await self._kicked.wait()
        except TimeoutError:
            self._kicked.set()

    async def _release(self, pool: str) -> None:
        heap = self._pools[pool]
        while self._first(heap) is not None and await self._link.credit(pool) > 0:
            first = self._first(heap)
            if first is None:
                break
            await self._link.publish_job(first.job, first.dedupe)
            # Others may have been put before it meanwhile, so it is removed by name, not from the top.
            heap.remove(first)
            heapq.heapify(heap)
            self._names.discard(first.dedupe)
        if not heap:
            self._pools.pop(pool, None)

    def _first(self, heap: list[_Waiting]) -> _Waiting | None:
        """Return the job to publish next, after dropping those nobody wants any more."""
        while heap and not heap[0].wanted():
            self._names.discard(heapq.heappop(heap).dedupe)
        return heap[0] if heap else None
