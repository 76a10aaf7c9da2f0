"""Gathers what an agent is told from a run, the mirror and earlier evidence; the words themselves are made in `knowledge`.

Everything about the repository is read from the job's own base commit or an earlier one, so a test stage can never be shown
the implementation that is written beside it.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from sandbox.contract.blob import BlobRef
from sandbox.contract.errors import ConfigError
from sandbox.contract.tree import Change, Tree
from sandbox.contract.wire import SupervisorLink
from sandbox.mirror import Mirror
from supervisor.gates.evidence import Evidence
from supervisor.gates.interface import lock_of
from supervisor.gates.spec import Spec, criteria_of, read_spec
from supervisor.knowledge.bundler import DIFFERENCE_CHARS_MAX, Brief, Context, brief_for
from supervisor.knowledge.feedback import Feedback
from supervisor.knowledge.repository import conventions_of, outline_of, structure_of
from supervisor.pipeline.commands import Dispatch
from supervisor.pipeline.definition import Stage
from supervisor.pipeline.run import JobState, RunState
from supervisor.stages.contract import checks_for, contract_for, scope_in_words, spec_path
from supervisor.stages.files import text_at
from supervisor.stages.lineage import interfaces_before, origin_of
from supervisor.stages.packages import packages_in_words

GetBlob = Callable[[BlobRef], Awaitable[bytes]]


class Bundler:
    """Makes briefs from one mirror; `link` holds the evidence of earlier jobs."""

    def __init__(self, mirror: Mirror, link: SupervisorLink) -> None:
        self._mirror = mirror
        self._link = link

    async def brief(self, run: RunState, command: Dispatch, stage: Stage) -> Brief:
        """Return bundle and first message of the job `command` names.

        Raises:
            ConfigError: The specification or `quality.toml` cannot be read.
            InfrastructureError: Git or the object store failed.
        """
        feedback = await self._feedback(run, command)
        lock = await self._lock(run, stage)
        gather = partial(_context, run, stage, lock, feedback)
        return brief_for(await self._mirror.inspect([run.intent.base_commit, command.base_commit], gather))

    async def _lock(self, run: RunState, stage: Stage) -> str:
        texts: list[str] = []
        for job in interfaces_before(run, stage.name):
            commit = job.commit or job.base_commit
            changes: Sequence[Change] = await self._mirror.changes(job.base_commit, commit)
            lock, _ = await self._mirror.inspect([job.base_commit, commit], partial(lock_of, changes=changes))
            texts.append(lock.as_text())
        return "\n".join(text for text in texts if text)

    async def _feedback(self, run: RunState, command: Dispatch) -> Feedback | None:
        judged = run.jobs.get(command.feedback_from) if command.feedback_from is not None else None
        if judged is None:
            return None
        failures: dict[str, str] = {}
        if judged.evidence is not None and judged.kind == "checks":
            failures = _failures(Evidence.model_validate_json(await self._link.get_blob(judged.evidence)), judged)
        before = run.latest(command.stage)
        origin = origin_of(run, command.stage, command.base_commit)
        return Feedback(
            round=command.round,
            judged_by=judged.stage,
            findings=judged.findings,
            failures=failures,
            difference=await self._mirror.patch(origin, command.base_commit, DIFFERENCE_CHARS_MAX) if origin != command.base_commit else "",
            summary=_summary(before),
        )


def _context(run: RunState, stage: Stage, lock: str, feedback: Feedback | None, base: Tree, work: Tree) -> Context:
    feature = run.intent.feature
    contract = contract_for(stage.role)
    path = spec_path(run.pipeline, feature)
    text, spec = _spec(work, path) if stage.role != "spec" else (None, None)
    around = spec.affected_components if spec is not None and stage.role in {"interface", "implement", "test"} else []
    return Context(
        role=stage.role,
        stage=stage.name,
        feature=feature,
        request=run.intent.request,
        owes=contract.owes,
        rules=(*contract.rules, *packages_in_words(stage)),
        scope=scope_in_words(stage, feature),
        spec_path=path,
        spec=text,
        criteria=tuple((each.id, each.text) for each in criteria_of(spec)) if spec is not None else (),
        lock=lock,
        outline=outline_of(work, around),
        structure=structure_of(work),
        conventions=conventions_of(base),
        checks=_commands(run, base),
        feedback=feedback,
    )


def _spec(tree: Tree, path: str) -> tuple[str | None, Spec | None]:
    """Return text and content of the specification, None where the line has none."""
    text = text_at(tree, path)
    return (None, None) if text is None else (text, read_spec(tree, path))


def _commands(run: RunState, base: Tree) -> tuple[str, ...]:
    judged_by = [stage for stage in run.pipeline.stages if stage.role == "validate"]
    try:
        return tuple(dict.fromkeys(" ".join(check.argv) for stage in judged_by for check in checks_for(base, stage)))
    except ConfigError:
        return ()  # the intake refuses such a file; an older run only loses a line of text


def _failures(evidence: Evidence, judged: JobState) -> dict[str, str]:
    """Return the tails of the red tests that caused the verdict, those the findings name first."""
    said = "\n".join(each.message for each in judged.findings)
    cases = [case for check in evidence.checks.values() for case in check.red.values() if case.tail]
    named = [case for case in cases if case.id.removeprefix("::") in said]
    return {case.id: case.tail for case in (named or cases)}


def _summary(job: JobState | None) -> str:
    ended = job.attempts[-1].ended if job is not None and job.attempts else None
    return ended.submission.summary if ended is not None and ended.submission is not None else ""
