"""A decided job becomes bytes in the object store and the event that names them; not when and where it goes (`queue`).

Everything a job needs is stored as objects before its event is appended, and its event is appended before it is published, so a
crash anywhere leaves either nothing or a job that is published again byte for byte.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Protocol

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.blob import BlobRef, Bucket, input_bucket
from sandbox.contract.errors import ConfigError
from sandbox.contract.ids import job_id
from sandbox.contract.job import Check, JobSpec
from sandbox.contract.labels import needed
from sandbox.contract.scope import WriteScope
from sandbox.contract.wire import SupervisorLink
from sandbox.mirror import Mirror
from supervisor.dispatch.signatures import signature_check
from supervisor.knowledge.bundler import Brief
from supervisor.pipeline.commands import Dispatch
from supervisor.pipeline.definition import Stage
from supervisor.pipeline.events import JobDispatched
from supervisor.pipeline.load import BASELINE, RED_CHECK
from supervisor.pipeline.run import RunState
from supervisor.pipeline.survey import stage_of
from supervisor.stages.agents import agent_spec, load_agent, override_path
from supervisor.stages.contract import scope_for
from supervisor.stages.files import text_at
from supervisor.stages.programs import program_of, programs_check
from supervisor.stages.quality import checks_for, checks_of_tests

REMEMBERED_MAX = 4096
REMEMBERED_S = 86_400.0
"""An object we stored is not stored again for so long; its bucket keeps it for seven days."""


class Briefs(Protocol):
    """Makes an agent's context from a run (`supervisor/briefing.py`)."""

    async def brief(self, run: RunState, command: Dispatch, stage: Stage) -> Brief:
        """Return bundle and first message of the job `command` names; its feedback comes from `command.feedback_from`."""
        ...


class Dispatcher:
    """Turns a `Dispatch` into stored objects and the event that names them."""

    def __init__(
        self,
        mirror: Mirror,
        link: SupervisorLink,
        briefs: Briefs,
        *,
        models: dict[str, str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a dispatcher.

        Args:
            mirror: Holds every commit of the run.
            link: Where objects are stored.
            briefs: Context of agents.
            models: A pipeline's model name to the one that is called; the configuration's `models:`.
            monotonic: Seconds.
        """
        self._mirror = mirror
        self._link = link
        self._briefs = briefs
        self._models = models or {}
        self._monotonic = monotonic
        self._stored: dict[tuple[Bucket, str], tuple[float, BlobRef]] = {}

    async def prepare(self, run: RunState, command: Dispatch) -> JobDispatched:
        """Store the job's pack, bundle and bytes, and return the event to append; nothing is published.

        Raises:
            ConfigError: An agent definition or `quality.toml` of the base commit is wrong.
            InfrastructureError: Git or the object store failed.
        """
        stage = stage_of(run.pipeline, command.stage)
        if stage is None:
            raise ConfigError(f"the pipeline has no stage whose limits {command.stage} could have: add a validate stage")
        bucket = input_bucket(stage.pool)  # an executor can read only what is for its own pools
        name = f"{run.run_id}/{command.stage}/{command.round}"
        pack = await self._mirror.pack_of(command.base_commit)
        input_pack = await self._put(f"{run.run_id}/{command.base_commit}/pack", pack, bucket)
        work: dict[str, object]
        if command.kind == "agent":
            brief = await self._briefs.brief(run, command, stage)
            bundle = await self._put(f"{name}/task", brief.bundle.encode(), bucket)
            cassette = await self._copy(run.intent.cassette, bucket) if run.intent.cassette is not None else None
            work = {"agent": await self._agent(run, stage, brief.prompt), "task_bundle": bundle, "cassette": cassette}
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

    async def _put(self, name: str, data: bytes, bucket: Bucket = "IN") -> BlobRef:
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        name = f"{name}-{digest}"
        return self._known(bucket, name) or self._remembered(bucket, name, await self._link.put_blob(name, data, bucket))

    async def _copy(self, ref: BlobRef, bucket: Bucket) -> BlobRef:
        """Return a submitted object where executors can read it."""
        name = f"submitted/{ref.sha256}"
        known = self._known(bucket, name)
        return known or self._remembered(bucket, name, await self._link.put_blob(name, await self._link.get_blob(ref), bucket))

    def _known(self, bucket: Bucket, name: str) -> BlobRef | None:
        """Return an object this process stored lately: its name holds its digest, so it is the same."""
        at, ref = self._stored.get((bucket, name), (float("-inf"), None))
        return ref if self._monotonic() - at < REMEMBERED_S else None

    def _remembered(self, bucket: Bucket, name: str, ref: BlobRef) -> BlobRef:
        while len(self._stored) >= REMEMBERED_MAX:
            del self._stored[next(iter(self._stored))]
        self._stored[bucket, name] = (self._monotonic(), ref)
        return ref

    async def _agent(self, run: RunState, stage: Stage, prompt: str) -> AgentSpec:
        override = await self._mirror.inspect(
            [run.intent.base_commit], lambda tree: text_at(tree, override_path(stage.agent or stage.role))
        )
        model = self._models.get(stage.model, stage.model) if stage.model else None
        definition = load_agent(stage.agent or stage.role, override, model=model)
        return agent_spec(definition, prompt, steps_max=stage.steps_max, output_tokens_max=stage.output_tokens_max, driver=stage.driver)

    async def _programs(self, run: RunState) -> list[str]:
        agents = [stage for stage in run.pipeline.stages if stage.agent is not None]
        drivers = [stage.driver or (await self._agent(run, stage, "")).driver for stage in agents]
        return [program_of(driver) for driver in drivers]

    async def _checks(self, run: RunState, command: Dispatch, stage: Stage) -> tuple[Check, ...]:
        # Of the base commit, never of the branch under test (DECISIONS D12).
        checks = await self._mirror.inspect([run.intent.base_commit], lambda tree: checks_for(tree, stage))
        if command.stage == BASELINE:
            return (*checks, *programs_check(await self._programs(run), checks))
        chosen = checks_of_tests(checks) if command.stage == RED_CHECK else checks
        ours = await signature_check(self._mirror, run, stage, command.base_commit, chosen)
        # Before the others: what they run could put another product in the place of what they ran.
        return (ours, *chosen) if ours is not None else chosen


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
        labels={**stage.labels, **needed(stage.runtime, strict=stage.strict)},
        base_commit=command.base_commit,
        input_pack=input_pack,
        scope=scope_for(stage, intent.feature) if is_agent else WriteScope(),
        limits=stage.limits,
        network=stage.network,
        packages=stage.packages,
        runtime=stage.runtime,
        strict=stage.strict,
        dockerfile_sha256=intent.dockerfile_sha256,
        mode=intent.mode,
        record=intent.record and is_agent,
        stage_budget_nano_usd=int(Decimal(stage.budget_usd) * 10**9) if stage.budget_usd else None,
    )
