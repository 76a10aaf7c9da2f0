"""Jobs as they are prepared over a real mirror, and as the queue releases them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox.contract.blob import BlobRef
from sandbox.contract.errors import BrokerError, ConfigError, InfrastructureError
from sandbox.contract.job import JobSpec
from sandbox.contract.task_bundle import TaskBundle
from sandbox.mirror import Mirror
from supervisor import dispatch
from supervisor.delivery import snapshot
from supervisor.dispatch import Dispatcher, JobQueue
from supervisor.knowledge.bundler import Brief
from supervisor.pipeline.commands import Dispatch
from supervisor.pipeline.definition import Stage
from supervisor.pipeline.load import load_pipeline
from supervisor.pipeline.machine import apply
from supervisor.pipeline.run import RunState
from tests.fakes.line_driver import RUN, a_blob, accepted
from tests.fakes.line_world import wait_until
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink, MemorySupervisorLink
from tests.fakes.repositories import run_git, sample_repository, write_files


class OneBrief:
    """Gives every agent the same context."""

    async def brief(self, run: RunState, command: Dispatch, stage: Stage) -> Brief:
        """Return it."""
        return Brief(TaskBundle(files={"TASK.md": stage.name}), f"do {command.stage}")


class Bench:
    """A dispatcher over the newest commit of a repository."""

    def __init__(self, link: MemorySupervisorLink, mirror: Mirror, run: RunState) -> None:
        self.link = link
        self.run = run
        self.dispatcher = Dispatcher(mirror, link, OneBrief(), models={"alias": "claude-haiku-5-5"})

    async def job(self, stage: str, role: str, kind: str = "agent") -> JobSpec:
        """Prepare a job and return what is stored."""
        values = {"stage": stage, "role": role, "round": 2, "kind": kind, "base_commit": self.run.intent.base_commit}
        event = await self.dispatcher.prepare(self.run, Dispatch.model_validate(values))
        assert (event.job_id, event.role, event.round) == (f"{RUN}-{stage}-2", role, 2)
        return JobSpec.model_validate_json(await self.link.get_blob(event.spec))


@asynccontextmanager
async def a_bench(tmp_path: Path, files: dict[str, str], pipeline: str | None = None, **intent: object) -> AsyncIterator[Bench]:
    repository = sample_repository(tmp_path / "user")
    write_files(repository, {name: text.encode() for name, text in files.items()})
    run_git(repository, "add", ".")
    run_git(repository, "commit", "--quiet", "--allow-empty", "-m", "more")
    base = await snapshot(repository, None)
    mirror = await Mirror.open(tmp_path / "mirror.git")
    await mirror.import_base(base.commit, base.pack)
    line = load_pipeline(pipeline, "x") if pipeline else None
    run = apply(None, accepted(line, base_commit=base.commit, **intent))
    async with MemorySupervisorLink.connect(MemoryBroker()) as link:
        yield Bench(link, mirror, run)


async def test_an_agents_job_holds_all_that_its_attempt_needs(tmp_path: Path):
    """Agent, prompt, scope, limits, bundle and a pack that a mirror takes; no checks."""
    async with a_bench(tmp_path, {}) as bench:
        job = await bench.job("implement", "implement")
        pack = await bench.link.get_blob(job.input_pack)
        other = await Mirror.open(tmp_path / "other.git")
        await other.import_base(job.base_commit, pack)
        assert job.task_bundle is not None
        bundle = TaskBundle.decode(await bench.link.get_blob(job.task_bundle))

    assert job.agent is not None
    assert (job.agent.name, job.agent.model, job.agent.steps_max, job.agent.prompt) == (
        "implement",
        "claude-sonnet-5-5",
        60,
        "do implement",
    )
    assert job.scope.allows("src/app/core.py")
    assert not job.scope.allows("tests/test_core.py")
    assert (job.limits.memory_mib, job.checks, job.mode, bundle.files) == (2048, (), "live", {"TASK.md": "implement"})


async def test_a_checks_job_has_no_agent_and_may_write_nothing(tmp_path: Path):
    """Baseline and validate run every check of the base commit, the red-check only those that report tests."""
    files = {"quality.toml": '[quality_checks]\ntests = "pytest -q"\nlint = "ruff check"\n'}
    async with a_bench(tmp_path, files, mode="replay", cassette=a_blob("cassette"), record=True) as bench:
        jobs = [await bench.job(stage, stage, "checks") for stage in ("baseline", "validate", "red-check")]

    assert [[check.name for check in job.checks] for job in jobs] == [["tests", "lint"], ["tests", "lint"], ["tests"]]
    for job in jobs:
        assert (job.agent, job.task_bundle, job.cassette, job.record) == (None, None, None, False)
        assert not job.scope.patterns


async def test_a_replayed_agent_gets_the_cassette(tmp_path: Path):
    """And only it."""
    async with a_bench(tmp_path, {}, mode="replay", cassette=a_blob("cassette"), record=True) as bench:
        job = await bench.job("docs", "docs")

    assert (job.mode, job.cassette, job.record) == ("replay", a_blob("cassette"), True)


async def test_the_repositorys_own_agent_and_the_stages_words_are_used(tmp_path: Path):
    """The prompt is the repository's; model, limits, pool and budget are the pipeline's, mapped names included."""
    agent = "---\nname: docs\nmodel: claude-opus-5-5\n---\nWrite like us.\n"
    text = "pipeline: {stages: [{name: docs, model: alias, steps_max: 7, max_tokens: 999, pool: big, cpus: 1, budget_usd: 0.5}]}"
    async with a_bench(tmp_path, {".andon/agents/docs.md": agent}, text, dockerfile_sha256="d" * 64) as bench:
        job = await bench.job("docs", "docs")

    assert job.agent is not None
    assert (job.agent.system, job.agent.model, job.agent.steps_max, job.agent.output_tokens_max) == (
        "Write like us.",
        "claude-haiku-5-5",
        7,
        999,
    )
    assert (job.pool, job.limits.cpus, job.stage_budget_nano_usd, job.dockerfile_sha256) == ("big", 1.0, 500_000_000, "d" * 64)


async def test_a_wrong_configuration_in_the_base_is_a_usage_error(tmp_path: Path):
    """It ends the run with exit 2 instead of being tried again."""
    async with a_bench(tmp_path, {"quality.toml": "[quality_checks]\ntests = 3\n"}) as bench:
        with pytest.raises(ConfigError, match=r"quality\.toml"):
            await bench.job("validate", "validate", "checks")


def a_job(number: int, priority: int = 5, pool: str = "default") -> JobSpec:
    """Return a checks job."""
    values: dict[str, object] = {
        "job_id": f"{RUN}-s-{number}",
        "run_id": RUN,
        "feature": "f",
        "stage": "s",
        "role": "docs",
        "round": number,
        "kind": "checks",
        "pool": pool,
        "priority": priority,
        "base_commit": "b" * 40,
        "input_pack": BlobRef(bucket="IN", name="x", sha256="0" * 64, size_bytes=0),
    }
    return JobSpec.model_validate(values)


@asynccontextmanager
async def a_queue() -> AsyncIterator[tuple[JobQueue, MemoryBroker]]:
    broker = MemoryBroker()
    async with MemorySupervisorLink.connect(broker) as link:
        queue = JobQueue(link)
        task = asyncio.create_task(queue.run())
        try:
            yield queue, broker
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_jobs_are_released_by_credit_highest_priority_first():
    """Nothing is on the bus before an executor waits, and then only as much as it can take."""
    async with a_queue() as (queue, broker), MemoryExecutorLink.connect(broker, "host-1") as link:
        for number, priority in ((1, 5), (2, 1), (3, 9), (4, 5)):
            queue.put(a_job(number, priority), f"j:{number}", lambda: True)
        await asyncio.sleep(0.05)
        assert (len(broker.jobs), len(queue)) == (0, 4)
        rounds = []
        for _ in range(4):
            delivery = await link.next_job(5)
            assert delivery is not None
            rounds.append(delivery.job.round)
            await link.ack(delivery.ack_subject)

    assert rounds == [3, 1, 4, 2]


async def test_a_job_nobody_wants_any_more_is_never_published():
    """The run was stopped while the job waited."""
    wanted = [True]
    async with a_queue() as (queue, broker), MemoryExecutorLink.connect(broker, "host-1") as link:
        queue.put(a_job(1, 9), "j:1", lambda: wanted[0])
        queue.put(a_job(2), "j:2", lambda: True)
        wanted.clear()
        wanted.append(False)
        delivery = await link.next_job(5)
        assert delivery is not None
        await wait_until(lambda: len(queue) == 0, "the queue is empty")

    assert delivery.job.round == 2


async def test_the_same_copy_is_put_once_and_a_pool_does_not_wait_for_another():
    """A pool without executors keeps its jobs; the others' go out."""
    async with a_queue() as (queue, broker), MemoryExecutorLink.connect(broker, "host-1") as link:
        queue.put(a_job(1, 9, "gpu"), "j:1", lambda: True)
        queue.put(a_job(2), "j:2", lambda: True)
        queue.put(a_job(2), "j:2", lambda: True)
        assert len(queue) == 2
        first = await link.next_job(5)
        assert first is not None
        await link.ack(first.ack_subject)
        assert await link.next_job(0.1) is None
        assert len(queue) == 1


async def test_a_broker_that_is_away_is_waited_for():
    """The job stays in the queue until it is published."""

    class Away(MemorySupervisorLink):
        failures = 2

        async def credit(self, pool: str, executor: str = "") -> int:
            if self.failures:
                self.failures -= 1
                raise BrokerError("away")
            return 1

    async with Away.connect(MemoryBroker()) as link:
        queue = JobQueue(link)
        queue.put(a_job(1), "j:1", lambda: True)
        task = asyncio.create_task(queue.run())
        await wait_until(lambda: len(queue) == 0, "it is published")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_queue_is_bounded():
    """Beyond its bound a run is parked rather than memory filled."""
    async with MemorySupervisorLink.connect(MemoryBroker()) as link:
        queue = JobQueue(link)
        job = a_job(1)
        for number in range(dispatch.QUEUE_MAX):
            queue.put(job, f"j:{number}", lambda: True)

        with pytest.raises(InfrastructureError, match="wait for an executor"):
            queue.put(job, "one more", lambda: True)
