"""Jobs as they are prepared over a real mirror."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from sandbox.contract.blob import BlobRef, Bucket, input_bucket
from sandbox.contract.errors import ConfigError
from sandbox.contract.job import JobSpec
from sandbox.contract.signatures import ToImport
from sandbox.contract.task_bundle import TaskBundle
from sandbox.git import ANDON
from sandbox.mirror import Mirror
from supervisor.delivery import snapshot
from supervisor.dispatch import Dispatcher
from supervisor.knowledge.bundler import Brief
from supervisor.pipeline.commands import Dispatch
from supervisor.pipeline.definition import Stage
from supervisor.pipeline.load import load_pipeline
from supervisor.pipeline.machine import apply
from supervisor.pipeline.run import RunState
from tests.fakes.line_driver import RUN, LineDriver, a_blob, accepted
from tests.fakes.memory_bus import MemoryBroker, MemorySupervisorLink
from tests.fakes.repositories import run_git, sample_repository, write_files


class OneBrief:
    """Gives every agent the same context."""

    async def brief(self, run: RunState, command: Dispatch, stage: Stage) -> Brief:
        """Return it."""
        return Brief(TaskBundle(files={"TASK.md": stage.name}), f"do {command.stage}")


class CountingBroker(MemoryBroker):
    """Remembers what was stored."""

    def __init__(self) -> None:
        super().__init__()
        self.puts: list[str] = []


class CountingLink(MemorySupervisorLink):
    """Tells a counting broker what it stores."""

    async def put_blob(self, name: str, data: bytes, bucket: Bucket = "IN") -> BlobRef:
        """Store an object."""
        if isinstance(self._broker, CountingBroker):
            self._broker.puts.append(name)
        return await super().put_blob(name, data, bucket)


class Bench:
    """A dispatcher over the newest commit of a repository."""

    def __init__(self, link: MemorySupervisorLink, mirror: Mirror, run: RunState) -> None:
        self.link = link
        self.run = run
        self.dispatcher = Dispatcher(mirror, link, OneBrief(), models={"alias": "claude-haiku-5-5"})

    async def job(self, stage: str, role: str, kind: str = "agent", commit: str | None = None) -> JobSpec:
        """Prepare a job and return what is stored."""
        values = {"stage": stage, "role": role, "round": 2, "kind": kind, "base_commit": commit or self.run.intent.base_commit}
        event = await self.dispatcher.prepare(self.run, Dispatch.model_validate(values))
        assert (event.job_id, event.role, event.round) == (f"{RUN}-{stage}-2", role, 2)
        return JobSpec.model_validate_json(await self.link.get_blob(event.spec))


@asynccontextmanager
async def a_bench(
    tmp_path: Path, files: dict[str, str], pipeline: str | None = None, broker: MemoryBroker | None = None, **intent: object
) -> AsyncIterator[Bench]:
    repository = sample_repository(tmp_path / "user")
    write_files(repository, {name: text.encode() for name, text in files.items()})
    run_git(repository, "add", ".")
    run_git(repository, "commit", "--quiet", "--allow-empty", "-m", "more")
    base = await snapshot(repository, None)
    mirror = await Mirror.open(tmp_path / "mirror.git")
    await mirror.import_base(base.commit, base.pack)
    line = load_pipeline(pipeline, "x") if pipeline else None
    run = apply(None, accepted(line, base_commit=base.commit, **intent))
    async with CountingLink.connect(broker or MemoryBroker()) as link:
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


async def test_the_baseline_looks_for_the_programs_of_foreign_agents(tmp_path: Path):
    """Those a stage or a definition of the base commit names, once each, after the checks; no other job does, and no line of our own."""
    text = """
pipeline:
  stages:
    - {name: implement, agent: {name: implement, driver: claude-code}}
    - {name: test, agent: {name: test, driver: claude-code}}
    - {name: docs, agent: docs, depends_on: [test]}
    - {name: validate, type: builtin, depends_on: [implement, docs]}
"""
    docs = "---\nname: docs\nmodel: claude-sonnet-5-5\ndriver: command\ncommand: mini --task {prompt}\n---\nWrite.\n"
    async with a_bench(tmp_path, {".andon/agents/docs.md": docs}, text) as bench:
        jobs = [await bench.job(stage, stage, "checks") for stage in ("baseline", "validate")]
    async with a_bench(tmp_path / "ours", {}) as bench:
        ours = await bench.job("baseline", "baseline", "checks")

    assert [[check.name for check in job.checks] for job in (*jobs, ours)] == [["tests", "agent-programs"], ["tests"], ["tests"]]
    assert jobs[0].checks[-1].argv[-2:] == ("claude", "mini")


_THREE = "{name: i, role: interface}, {name: m, role: implement, depends_on: [i]}, {name: v, role: validate, depends_on: [m]}"
LOCKING = f"pipeline: {{stages: [{_THREE}]}}"


@pytest.mark.parametrize(
    "quality", ["", "signatures = false\n", 'signatures = "python3.12"\ntests = {command = "pytest", sealed = true}\n']
)
async def test_where_python_is_locked_validate_imports_it_first(tmp_path: Path, quality: str):
    """The locked modules, then the other changed ones; sealed as the tests are. The base commit may name the Python, or want none."""
    async with a_bench(tmp_path, {"quality.toml": f"[quality_checks]\n{quality}"}, LOCKING) as bench:
        mirror, base = await Mirror.open(tmp_path / "mirror.git"), bench.run.intent.base_commit
        make = partial(mirror.commit_files, message="m", author=ANDON, committer=ANDON, at=1)
        locked = await make(base, {"limit.py": b"def f(): ...\n", "web/a.ts": b"", "tests/test_a.py": b""})
        done = await make(locked, {"limit.py": b"def f(): pass\n", "more.py": b"", "__main__.py": b"", "docs/conf.py": b""})
        driver = LineDriver(load_pipeline(LOCKING, "x"), base_commit=base)
        driver.do("i", commit=locked)
        bench.run = driver.run
        job = await bench.job("v", "validate", "checks", done)
        baseline = await bench.job("baseline", "baseline", "checks")

    assert [check.name for check in baseline.checks] == ["tests"]
    if "false" in quality:
        assert [check.name for check in job.checks] == ["tests"]
        return
    ours, tests = job.checks
    assert (ours.name, ours.report, ours.is_tests, ours.tests_scope) == ("signatures", "signatures", False, tests.tests_scope)
    assert ours.argv == (("python3.12",) if quality else ("python",))
    assert ours.to_import == ToImport(locked=("limit.py",), others=("more.py",))


async def test_a_replayed_agent_gets_the_cassette(tmp_path: Path):
    """And only it: a copy of what was submitted, where executors of its pool can read it."""
    broker = MemoryBroker()
    async with MemorySupervisorLink.connect(broker) as link:
        cassette = await link.put_blob("cassette", b"{}")
    async with a_bench(tmp_path, {}, broker=broker, mode="replay", cassette=cassette, record=True) as bench:
        job = await bench.job("docs", "docs")
        assert job.cassette is not None
        copied = await bench.link.get_blob(job.cassette)

    assert (job.mode, job.cassette.bucket, copied, job.record) == ("replay", input_bucket("default"), b"{}", True)


async def test_the_inputs_of_a_job_lie_where_only_its_pool_can_read_them(tmp_path: Path):
    """A pool is the trust boundary: pack and bundle of a job are in the bucket of its pool, the job itself is not."""
    text = "pipeline: {stages: [{name: spec}, {name: docs, depends_on: [spec], pool: big}]}"
    async with a_bench(tmp_path, {}, text) as bench:
        jobs = [await bench.job(name, name) for name in ("spec", "docs")]

    for job, pool in zip(jobs, ("default", "big"), strict=True):
        assert job.task_bundle is not None
        assert (job.input_pack.bucket, job.task_bundle.bucket) == (input_bucket(pool), input_bucket(pool))


async def test_the_same_input_is_stored_once(tmp_path: Path):
    """Siblings, reworks and retries start from the same pack; their bytes cross the bus once a day, not once a job."""
    broker = CountingBroker()
    async with a_bench(tmp_path, {}, broker=broker) as bench:
        jobs = [await bench.job(name, name) for name in ("implement", "test", "implement")]

    assert len({job.input_pack.name for job in jobs}) == 1
    assert [name for name in broker.puts if name.rsplit("/", 1)[-1].startswith("pack-")] == [jobs[0].input_pack.name]


async def test_priority_and_labels_are_the_stages_else_the_runs(tmp_path: Path):
    """A stage that says nothing has the run's priority and asks for nothing."""
    text = "pipeline: {stages: [{name: spec}, {name: docs, depends_on: [spec], priority: 9, labels: {gpu: '1'}}]}"
    async with a_bench(tmp_path, {}, text, priority=2) as bench:
        spec, docs = [await bench.job(name, name) for name in ("spec", "docs")]

    assert (spec.priority, spec.labels, docs.priority, docs.labels) == (2, {}, 9, {"gpu": "1"})


async def test_runtime_and_strictness_become_labels_nobody_else_chooses(tmp_path: Path):
    """So the job goes to a host that says it has them; what the pipeline's own labels claim of it does not count."""
    spec_stage = "{name: spec, runtime: runsc, strict: true, labels: {gpu: '1', runtime.runsc: 'no'}}"
    text = f"pipeline: {{stages: [{spec_stage}, {{name: docs, strict: true}}]}}"
    async with a_bench(tmp_path, {}, text) as bench:
        spec, docs = [await bench.job(name, name) for name in ("spec", "docs")]

    assert (spec.runtime, spec.strict) == ("runsc", True)
    assert spec.labels == {"gpu": "1", "runtime.runsc": "yes", "strict.runsc": "yes"}
    assert (docs.runtime, docs.strict, docs.labels) == ("runc", True, {"strict.runc": "yes"})


async def test_what_a_stage_may_install_is_in_its_job(tmp_path: Path):
    """Names in normal form; a stage that says nothing may install nothing."""
    text = "pipeline: {stages: [{name: spec, network: allowlist, packages: {pip: [Six]}}, {name: docs, depends_on: [spec]}]}"
    async with a_bench(tmp_path, {}, text) as bench:
        spec, docs = [await bench.job(name, name) for name in ("spec", "docs")]

    assert (spec.network, spec.packages.pip) == ("allowlist", ("six",))
    assert (docs.network, docs.packages.pip) == ("none", ())


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
