"""Submissions against a real mirror: what opens a run, and what is refused before a cent is spent."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.contract.agent_spec import DriverSpec
from sandbox.contract.errors import ConfigError, ConflictError, UsageError
from sandbox.contract.labels import offered
from sandbox.contract.price import parse_prices, shipped_prices
from sandbox.contract.tree import Tree
from sandbox.contract.wire import Heartbeat
from sandbox.mirror import Mirror
from supervisor.delivery import snapshot
from supervisor.intake import Intake, free_slug
from supervisor.pipeline.submit import SubmitRequest
from tests.fakes.line_world import a_submission
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink, MemorySupervisorLink
from tests.fakes.repositories import run_git, sample_repository, write_files

SPEC = """
feature: anything
description: Limit the rate
requirements:
  - id: REQ-001
    description: limits
    acceptance: [Given a client, When it asks 101 times, Then it is told 429]
"""

CLAUDE = "pipeline: {stages: [{name: docs, agent: {driver: claude-code}}]}"
IMAGE = {".andon/Dockerfile": "FROM andon/agent\n"}
AGREED = {"dockerfile_sha256": hashlib.sha256(IMAGE[".andon/Dockerfile"].encode()).hexdigest()}


@dataclass
class Bench:
    """An intake over one repository."""

    intake: Intake
    mirror: Mirror
    link: MemorySupervisorLink
    repository: Path

    async def submission(self, **changes: object) -> SubmitRequest:
        """Return a submission of the repository's newest commit."""
        base = await snapshot(self.repository, None)
        pack = await self.link.put_blob("pack", base.pack)
        return a_submission(**({"base_commit": base.commit, "base_pack": pack} | changes))

    def commit(self, files: dict[str, str]) -> None:
        """Add files to the repository."""
        write_files(self.repository, {name: text.encode() for name, text in files.items()})
        run_git(self.repository, "add", "--force", ".")
        run_git(self.repository, "commit", "--quiet", "-m", "more")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Give an intake over a plain repository."""
    mirror = await Mirror.open(tmp_path / "mirror.git")
    async with MemorySupervisorLink.connect(MemoryBroker()) as link:
        intake = Intake(mirror, link, shipped_prices(), clock=lambda: 1_750_000_000.5, entropy=lambda count: b"\xab" * count)
        yield Bench(intake, mirror, link, sample_repository(tmp_path / "user"))


async def test_a_submission_becomes_a_run_of_the_shipped_line(bench: Bench):
    """The base is in the mirror, the branch is derived from the request, the trace from the run."""
    accepted = await bench.intake.accept(await bench.submission(request="Add rate limiting: 100 a minute"), ())

    event = accepted.event
    assert (event.intent.feature, event.intent.branch, event.intent.slug_given) == ("add-rate-limiting", "andon/add-rate-limiting", False)
    assert [stage.name for stage in event.pipeline.stages] == ["spec", "interface", "implement", "test", "validate", "docs", "land"]
    assert len(event.run_id) == 10
    assert await bench.mirror.pack_of(event.intent.base_commit)
    assert (event.intent.spec_commit, accepted.notices) == (None, ())


async def test_the_repositorys_own_line_beats_the_default_and_a_given_one_beats_both(bench: Bench):
    """`--pipeline` > `.andon/pipeline.yaml` of the base commit > the shipped one."""
    bench.commit({".andon/pipeline.yaml": "pipeline: {name: own, stages: [{name: docs}]}"})
    own = await bench.intake.accept(await bench.submission(), ())
    given = await bench.intake.accept(await bench.submission(pipeline_yaml="pipeline: {name: mine, stages: [{name: docs}]}"), ())

    assert (own.event.pipeline.name, given.event.pipeline.name) == ("own", "mine")


async def test_what_is_not_committed_is_not_read(bench: Bench):
    """A pipeline in the work tree only is not the base commit's."""
    write_files(bench.repository, {".andon/pipeline.yaml": b"pipeline: {name: own, stages: [{name: docs}]}"})

    assert (await bench.intake.accept(await bench.submission(), ())).event.pipeline.name == "feature"


@pytest.mark.parametrize(
    ("files", "changes", "says"),
    [
        ({".andon/pipeline.yaml": "pipeline: {stages: [{name: x}]}"}, {}, ".andon/pipeline.yaml: stage 'x': role: "),
        ({}, {"pipeline_yaml": "x", "pipeline_source": "p.yaml"}, "p.yaml: the file has exactly one key"),
        ({}, {"pipeline_yaml": "pipeline: {stages: [{name: docs, model: nobody-1}]}"}, "stage docs: model 'nobody-1' has no price"),
        ({}, {"pipeline_yaml": "pipeline: {stages: [{name: docs, agent: nobody}]}"}, "stage docs: agent 'nobody' is unknown"),
        ({".andon/agents/docs.md": "no front matter"}, {}, ".andon/agents/docs.md: "),
        ({}, {"pipeline_yaml": CLAUDE}, "stage docs: driver claude-code: the shipped image does not hold Claude Code"),
        (
            IMAGE,
            {"pipeline_yaml": CLAUDE.replace("agent", "strict: true, agent"), **AGREED},
            "stage docs: strict: agent driver claude-code",
        ),
        ({"quality.toml": "[quality_checks]\ntests = 3"}, {}, "quality.toml: "),
        ({".andon/pipeline.yaml": "pipeline: \ud83d".encode("utf-8", "surrogatepass").decode("latin-1")}, {}, ".andon/pipeline.yaml"),
        ({}, {"spec_text": "feature: 3"}, "--spec: "),
        ({}, {"mode": "replay"}, "a replay needs a cassette"),
        ({".andon/Dockerfile": "FROM andon/agent"}, {}, "read it, then run `andon trust` or give --yes"),
        ({".andon/Dockerfile": "FROM andon/agent"}, {"dockerfile_sha256": "0" * 64}, "is not the one that was agreed to"),
    ],
)
async def test_a_wrong_submission_is_refused_with_exit_2(bench: Bench, files: dict[str, str], changes: dict[str, object], says: str):
    """Before the first model call, in one line that names file or stage."""
    if files:
        bench.commit(files)
    with pytest.raises(UsageError) as caught:
        await bench.intake.accept(await bench.submission(**changes), ())

    assert says in str(caught.value)
    assert caught.value.exit_code == 2


async def test_the_first_sources_models_need_a_map(bench: Bench):
    """Names no price list knows are refused, unless the configuration maps them."""
    text = (Path(__file__).parents[1] / "fixtures" / "assembly_line.yaml").read_text()
    with pytest.raises(ConfigError, match="functiongemma-spec-v1"):
        await bench.intake.accept(await bench.submission(pipeline_yaml=text), ())
    names = ("spec", "interface", "impl", "test", "docs")
    models = {f"functiongemma-{name}-v1": "claude-sonnet-5-5" for name in names}
    mapped = Intake(bench.mirror, bench.link, shipped_prices(), models=models)

    assert (await mapped.accept(await bench.submission(pipeline_yaml=text), ())).event.pipeline.stages[2].name == "implementation"


async def test_without_any_price_nothing_runs(bench: Bench):
    """A budget cannot hold what has no price."""
    rates = "\n".join(f"{kind} = 1" for kind in ("input", "output", "cache_write_5m", "cache_write_1h", "cache_read"))
    text = f'[[price]]\nmodel = "other"\neffective_from = 2025-01-01\n{rates}\n'
    with pytest.raises(ConfigError, match="has no price"):
        await Intake(bench.mirror, bench.link, parse_prices(text, "x")).accept(await bench.submission(), ())


async def test_the_consented_image_recipe_is_recorded(bench: Bench):
    """Its hash goes with every job; consent to a recipe the base does not have is nothing."""
    recipe = "FROM andon/agent\n"
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    without = await bench.intake.accept(await bench.submission(dockerfile_sha256=digest), ())
    bench.commit({".andon/Dockerfile": recipe})
    with_it = await bench.intake.accept(await bench.submission(dockerfile_sha256=digest), ())

    assert (without.event.intent.dockerfile_sha256, with_it.event.intent.dockerfile_sha256) == (None, digest)


async def test_a_foreign_agent_is_taken_with_an_image_of_ones_own(bench: Bench):
    """What is in the image only its sandbox can tell; a command may be in the shipped one."""
    assert (
        await bench.intake.accept(await bench.submission(pipeline_yaml=CLAUDE.replace("claude-code", "command, command: mini")), ())
    ).event
    bench.commit(IMAGE)

    accepted = await bench.intake.accept(await bench.submission(pipeline_yaml=CLAUDE, **AGREED), ())

    assert accepted.event.pipeline.stages[0].driver == DriverSpec(kind="claude-code")


async def test_a_given_specification_is_committed_on_the_base(bench: Bench):
    """The line starts from that commit, where the spec has the run's slug and its criteria their ids."""
    accepted = await bench.intake.accept(await bench.submission(spec_text=SPEC, slug="limits"), ())
    commit = accepted.event.intent.spec_commit
    assert commit is not None

    def read(tree: Tree) -> bytes:
        return tree.read(".andon/features/limits/spec.yaml")

    text = (await bench.mirror.inspect([commit], read)).decode()
    assert "feature: limits" in text
    assert "REQ-001.1" in text
    assert [change.path for change in await bench.mirror.changes(accepted.event.intent.base_commit, commit)] == [
        ".andon/features/limits/spec.yaml"
    ]


@pytest.mark.parametrize(("given", "kept"), [("00-" + "a" * 32 + "-" + "b" * 16 + "-01", True), ("00-x", False), ("", False)])
async def test_only_a_real_traceparent_is_linked(bench: Bench, given: str, kept: bool):
    """Whatever else a caller's environment holds does not reach the trace."""
    accepted = await bench.intake.accept(await bench.submission(traceparent=given), ())

    assert accepted.event.traceparent_of_caller == (given if kept else "")


@pytest.mark.parametrize(
    ("request_", "slug", "branches", "expected", "notices"),
    [
        ("Add rate limiting", None, [], "add-rate-limiting", 0),
        ("Add rate limiting", None, ["andon/add-rate-limiting"], "add-rate-limiting-2", 1),
        ("Add rate limiting", None, ["andon/add-rate-limiting", "andon/add-rate-limiting-2"], "add-rate-limiting-3", 1),
        ("Add rate limiting", None, ["andon/add-rate-limiting/x"], "add-rate-limiting-2", 1),
        ("日本語", None, [], "feature-abcdef", 0),
        ("x" * 60, None, [f"andon/{'x' * 48}"], "x" * 46 + "-2", 1),
        ("Add rate limiting", "mine", ["andon/add-rate-limiting"], "mine", 0),
    ],
)
def test_the_slug_is_free(request_: str, slug: str | None, branches: list[str], expected: str, notices: int):
    """A derived one takes the next free number and says so; a given one is taken as it is (DECISIONS G8)."""
    found, said = free_slug(a_submission(request=request_, slug=slug), branches, "abcdef")

    assert (found, len(said)) == (expected, notices)


@pytest.mark.parametrize(
    ("slug", "branches"), [("mine", ["andon/mine"]), ("mine", ["andon"]), (None, ["andon"]), ("mine", ["andon/mine/a"])]
)
def test_a_taken_branch_is_exit_6(slug: str | None, branches: list[str]):
    """A given slug is never changed, and `andon` leaves no room for `andon/…`."""
    with pytest.raises(ConflictError) as caught:
        free_slug(a_submission(slug=slug), branches, "abcdef")

    assert caught.value.exit_code == 6


def life_sign(**changes: object) -> Heartbeat:
    fields: dict[str, object] = {"executor": "ex1", "release": "1", "pools": ("default",), "slots": 1, "busy": 0, "model": "live"}
    return Heartbeat.model_validate(fields | changes)


UNDER_KATA = "pipeline: {stages: [{name: docs, runtime: kata}]}"


async def test_a_line_no_host_could_run_is_refused_before_anything_is_spent(bench: Bench):
    """By runtime and by strictness, the submitter's and the supervisor's own; a host that has what is asked for is enough."""
    async with MemoryExecutorLink.connect(bench.link._broker, executor="ex1") as host:
        await host.heartbeat(life_sign(missing=("no swap limit",)))
        with pytest.raises(UsageError, match="stage docs: no executor of pool default has runtime 'kata'"):
            await bench.intake.accept(await bench.submission(pipeline_yaml=UNDER_KATA), ())
        with pytest.raises(UsageError, match=r"stage spec is strict, and no executor .* no swap limit"):
            await bench.intake.accept(await bench.submission(strict=True), ())
        own = Intake(bench.mirror, bench.link, shipped_prices(), strict=True)
        with pytest.raises(UsageError, match="is strict"):
            await own.accept(await bench.submission(), ())

        await host.heartbeat(life_sign(labels=offered(["kata"], ["runc"])))

        assert (await bench.intake.accept(await bench.submission(pipeline_yaml=UNDER_KATA), ())).event.pipeline.stages[0].runtime == "kata"
        assert all(stage.strict for stage in (await own.accept(await bench.submission(), ())).event.pipeline.stages)


async def test_a_host_that_only_starts_is_waited_for_and_a_pool_without_any_is_not_refused(bench: Bench):
    """An embedded stack's executor says what it has a moment after the run was asked for."""
    patient = Intake(bench.mirror, bench.link, shipped_prices(), hosts_wait_s=20)
    hasty = Intake(bench.mirror, bench.link, shipped_prices(), hosts_wait_s=0)

    assert (await hasty.accept(await bench.submission(pipeline_yaml=UNDER_KATA), ())).event.pipeline.stages[0].runtime == "kata"
    async with MemoryExecutorLink.connect(bench.link._broker, executor="ex1") as host:
        asking = asyncio.create_task(patient.accept(await bench.submission(pipeline_yaml=UNDER_KATA), ()))
        await host.heartbeat(life_sign())
        with pytest.raises(UsageError, match="ex1 has runc"):
            await asking


async def test_whether_a_run_is_traced_is_decided_by_its_trace_id_and_is_in_its_first_event(bench: Bench):
    """Once, for everybody who takes part, and for whoever goes on with the run."""
    asked: list[str] = []

    def refuse(trace: str) -> bool:
        asked.append(trace)
        return False

    kept = await bench.intake.accept(await bench.submission(), ())
    other = Intake(bench.mirror, bench.link, shipped_prices(), is_sampled=refuse)
    dropped = await other.accept(await bench.submission(), ())

    assert (kept.event.sampled, dropped.event.sampled) == (True, False)
    assert asked == [dropped.event.trace_id]


async def test_a_run_knows_the_page_of_its_trace(bench: Bench):
    """From its first event on, so that whoever follows it needs no setting; a run that is not traced has none."""
    shown = Intake(bench.mirror, bench.link, shipped_prices(), traces_at="http://127.0.0.1:16686")
    dropped = Intake(bench.mirror, bench.link, shipped_prices(), traces_at="http://127.0.0.1:16686", is_sampled=lambda _trace: False)

    event = (await shown.accept(await bench.submission(), ())).event

    assert event.trace_url == f"http://127.0.0.1:16686/trace/{event.trace_id}"
    assert [(await each.accept(await bench.submission(), ())).event.trace_url for each in (dropped, bench.intake)] == ["", ""]
