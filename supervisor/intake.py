"""A submission becomes a run, or is refused before a cent is spent; nothing after the first event is its matter (`orchestrator`)."""

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sandbox.contract.agent_spec import DriverSpec
from sandbox.contract.errors import ConfigError, ConflictError, UsageError
from sandbox.contract.ids import SLUG_CHARS_MAX, run_id, slug_of, trace_id
from sandbox.contract.price import PriceList
from sandbox.contract.tree import Tree
from sandbox.contract.wire import SupervisorLink
from sandbox.git import ANDON
from sandbox.mirror import Mirror
from supervisor.gates.given import given_files, given_message
from supervisor.gates.spec import Spec, parse_spec
from supervisor.pipeline.agent_form import driver_of
from supervisor.pipeline.definition import Pipeline, Stage
from supervisor.pipeline.events import Intent, RunAccepted
from supervisor.pipeline.hosts import asks_of_hosts, unserved
from supervisor.pipeline.load import default_pipeline, load_pipeline
from supervisor.pipeline.submit import SubmitRequest
from supervisor.stages.agents import load_agent, override_path
from supervisor.stages.contract import scope_for
from supervisor.stages.files import text_at
from supervisor.stages.quality import checks_for

PIPELINE_PATH = ".andon/pipeline.yaml"
DOCKERFILE_PATH = ".andon/Dockerfile"
DOCKERFILE_BYTES_MAX = 256 << 10
HOSTS_WAIT_S = 10.0
"""An embedded stack's executor, just started, says so within two."""
HOSTS_LOOK_S = 0.2
SLUG_TRIES_MAX = 1000
"""Runs of one derived slug in one repository."""

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True)
class Accepted:
    """A submission that may become a run."""

    event: RunAccepted
    notices: tuple[str, ...] = ()


class Intake:
    """Validates submissions against the base commit they name."""

    def __init__(
        self,
        mirror: Mirror,
        link: SupervisorLink,
        prices: PriceList,
        *,
        check_spec: Callable[[str, str], Spec] = parse_spec,
        models: dict[str, str] | None = None,
        strict: bool = False,
        hosts_wait_s: float = HOSTS_WAIT_S,
        clock: Callable[[], float] = time.time,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        is_sampled: Callable[[str], bool] = lambda _trace_id: True,
        traces_at: str = "",
    ) -> None:
        """Make an intake.

        Args:
            mirror: Takes the base commit in.
            link: Holds the submitted objects.
            prices: Models a run may use.
            check_spec: Parses a given specification from its text and source; raises `UsageError` if it is not one.
            models: A pipeline's model name to the one that is called; the configuration's `models:`.
            strict: Every stage of every run is strict.
            hosts_wait_s: How long a pipeline that asks for special hosts waits for the first of a pool to appear.
            clock: Unix seconds.
            entropy: Random bytes, for run ids and slugs.
            is_sampled: Whether the spans of the run with this trace id are kept.
            traces_at: Address of the Jaeger that shows them; empty: none does.
        """
        self._mirror = mirror
        self._link = link
        self._prices = prices
        self._check_spec = check_spec
        self._models = models or {}
        self._strict = strict
        self._hosts_wait_s = hosts_wait_s
        self._clock = clock
        self._entropy = entropy
        self._is_sampled = is_sampled
        self._traces_at = traces_at

    async def accept(self, request: SubmitRequest, taken: Collection[str]) -> Accepted:
        """Return the event that opens the run.

        Args:
            request: The submission; its objects are stored already.
            taken: Branches other open runs of the same repository will land on.

        Raises:
            UsageError: Request, pipeline, agent, model, checks or consent is wrong; says what, which and what to do.
            ConflictError: The branch is taken, or a branch `andon` is in its way.
            InfrastructureError: Git or the object store failed.
        """
        slug, notices = free_slug(request, set(request.branches) | set(taken), self._entropy(3).hex())
        if request.mode == "replay" and request.cassette is None:
            raise UsageError("a replay needs a cassette")
        await self._mirror.import_base(request.base_commit, await self._link.get_blob(request.base_pack))
        pipeline, dockerfile_sha256 = await self._mirror.inspect([request.base_commit], lambda tree: self._examine(tree, request, slug))
        await self._check_hosts(pipeline)
        now = self._clock()
        run = run_id(int(now * 1000), self._entropy(2))
        intent = Intent(
            request=request.request,
            feature=slug,
            slug_given=request.slug is not None,
            repository=request.repository,
            base_name=request.base_name,
            base_commit=request.base_commit,
            base_pack=request.base_pack,
            branch=branch_of(slug),
            author_name=request.author_name or ANDON.name,
            author_email=request.author_email or ANDON.email,
            mode=request.mode,
            cassette=request.cassette,
            record=request.record,
            parallel=request.parallel,
            baseline=request.baseline,
            budget_nano_usd=request.budget_nano_usd,
            warn_nano_usd=request.warn_nano_usd,
            given_spec=request.spec_text,
            spec_commit=await self._spec_commit(request, pipeline, slug, int(now)),
            dockerfile_sha256=dockerfile_sha256,
            priority=request.priority,
            delivery=request.delivery,
        )
        sampled = self._is_sampled(trace_id(run))
        caller = request.traceparent if _TRACEPARENT.fullmatch(request.traceparent) else ""
        event = RunAccepted(
            run_id=run,
            at=now,
            intent=intent,
            pipeline=pipeline,
            trace_id=trace_id(run),
            sampled=sampled,
            trace_url=f"{self._traces_at}/trace/{trace_id(run)}" if sampled and self._traces_at else "",
            traceparent_of_caller=caller,
            request_id=request.request_id,
        )
        return Accepted(event, notices)

    async def _check_hosts(self, pipeline: Pipeline) -> None:
        """Refuse a pipeline that no host there could run; wait a little for hosts that only start."""
        pools = asks_of_hosts(pipeline)
        if not pools:
            return
        deadline = time.monotonic() + self._hosts_wait_s
        while True:
            beats = await self._link.executors()
            present = {pool for beat in beats for pool in beat.pools}
            if pools <= present or time.monotonic() > deadline:
                break
            await asyncio.sleep(HOSTS_LOOK_S)
        why = unserved(pipeline, beats)
        if why:
            raise UsageError(why)

    def _examine(self, tree: Tree, request: SubmitRequest, slug: str) -> tuple[Pipeline, str | None]:
        """Return the run's pipeline and the hash of its image recipe, after reading everything the stages will read."""
        pipeline = _strict(_pipeline(tree, request)) if request.strict or self._strict else _pipeline(tree, request)
        for stage in pipeline.stages:
            scope_for(stage, slug)
            if stage.role == "validate":
                checks_for(tree, stage)
            if stage.agent is None:
                continue
            self._examine_agent(tree, stage, stage.agent)
        return pipeline, _consented(tree, request.dockerfile_sha256)

    def _examine_agent(self, tree: Tree, stage: Stage, name: str) -> None:
        model = self._models.get(stage.model, stage.model) if stage.model else None
        try:
            definition = load_agent(name, text_at(tree, override_path(name)), model=model)
        except ConfigError as error:
            raise ConfigError(f"stage {stage.name}: {error}") from error
        if not self._prices.knows(definition.model):
            raise ConfigError(
                f"stage {stage.name}: model {definition.model!r} has no price, so no budget can hold it: name a known model in the "
                f"pipeline, or map it in the configuration's `models:`"
            )
        _check_driver(tree, stage, stage.driver or driver_of(definition, name) or DriverSpec())

    async def _spec_commit(self, request: SubmitRequest, pipeline: Pipeline, slug: str, at: int) -> str | None:
        """Return the base commit plus the given specification, None if none was given."""
        if request.spec_text is None:
            return None
        spec = self._check_spec(request.spec_text, "--spec")
        files, message = given_files(spec, pipeline, slug), given_message(slug)
        return await self._mirror.commit_files(request.base_commit, files, message=message, author=ANDON, committer=ANDON, at=at)


def branch_of(slug: str) -> str:
    """Return the branch a feature lands on."""
    return f"andon/{slug}"


def free_slug(request: SubmitRequest, branches: Collection[str], entropy: str) -> tuple[str, tuple[str, ...]]:
    """Return the run's slug and what a person should know about it (DECISIONS G8).

    Args:
        request: A given slug is taken as it is; otherwise one is derived from the request's words.
        branches: Every branch that is `andon` or begins with `andon/`.
        entropy: Six hex digits for a request without a usable word.

    Raises:
        ConflictError: The given slug's branch exists, or a branch named `andon` leaves no room for any.
    """
    if "andon" in branches:
        raise ConflictError("a branch named `andon` is in the way of `andon/<feature>`: rename it, e.g. git branch -m andon andon-old")
    if request.slug is not None:
        if _is_taken(request.slug, branches):
            raise ConflictError(f"branch {branch_of(request.slug)} exists or will soon: choose another --slug, or delete the branch")
        return request.slug, ()
    derived = slug_of(request.request) or f"feature-{entropy}"
    if not _is_taken(derived, branches):
        return derived, ()
    for number in range(2, SLUG_TRIES_MAX):
        ending = f"-{number}"
        slug = derived[: SLUG_CHARS_MAX - len(ending)].rstrip("-") + ending
        if not _is_taken(slug, branches):
            return slug, (f"branch {branch_of(derived)} is taken: this run is {slug}",)
    raise ConflictError(f"branches {branch_of(derived)} to -{SLUG_TRIES_MAX - 1} are all taken: give a --slug")


def _check_driver(tree: Tree, stage: Stage, driver: DriverSpec) -> None:
    if driver.kind == "claude-code" and text_at(tree, DOCKERFILE_PATH) is None:
        raise ConfigError(
            f"stage {stage.name}: driver claude-code: the shipped image does not hold Claude Code; "
            f"put it into yours with {DOCKERFILE_PATH}, see docs/agents.md"
        )
    if stage.strict and driver.lowers:
        raise ConfigError(f"stage {stage.name}: strict: {driver.lowers[0]}; use the builtin driver, or take `strict` away")


def _is_taken(slug: str, branches: Collection[str]) -> bool:
    branch = branch_of(slug)
    return any(name == branch or name.startswith(f"{branch}/") for name in branches)


def _pipeline(tree: Tree, request: SubmitRequest) -> Pipeline:
    if request.pipeline_yaml is not None:
        return load_pipeline(request.pipeline_yaml, request.pipeline_source or "--pipeline")
    text = text_at(tree, PIPELINE_PATH)
    return default_pipeline() if text is None else load_pipeline(text, PIPELINE_PATH)


def _strict(pipeline: Pipeline) -> Pipeline:
    return pipeline.model_copy(update={"stages": tuple(stage.model_copy(update={"strict": True}) for stage in pipeline.stages)})


def _consented(tree: Tree, consented_sha256: str | None) -> str | None:
    """Return the hash of the base commit's own image recipe, None if it has none (DECISIONS D11)."""
    try:
        recipe = tree.read(DOCKERFILE_PATH, DOCKERFILE_BYTES_MAX)
    except KeyError:
        return None
    digest = hashlib.sha256(recipe).hexdigest()
    if consented_sha256 is None:
        raise UsageError(f"{DOCKERFILE_PATH} builds an image with network access: read it, then run `andon trust` or give --yes")
    if digest != consented_sha256:
        raise UsageError(f"{DOCKERFILE_PATH} of the base commit is not the one that was agreed to: read it again, then run `andon trust`")
    return digest
