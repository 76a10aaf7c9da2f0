"""Which commit every stage starts from and which it gave, computed from a run's state; pure. What to do next is `machine`'s.

A stage's *result* is the commit its latest job passed with, as long as that job started from the stage's *input* of now. So a
rework of `implement` takes the results of all that came after it away, without a rule that says so.
"""

from dataclasses import dataclass, field

from supervisor.pipeline.definition import Pipeline, Stage
from supervisor.pipeline.graph import ancestors, in_order, nearest
from supervisor.pipeline.load import RED_CHECK
from supervisor.pipeline.run import JobState, RunState


@dataclass(frozen=True)
class Meeting:
    """Results that have to be joined first, and the commit they all grew from."""

    base: str
    commits: tuple[str, ...]


@dataclass
class Survey:
    """Inputs and results of all stages of one state."""

    order: list[Stage]
    inputs: dict[str, str | Meeting] = field(default_factory=dict)
    """A missing stage waits for others."""
    results: dict[str, str] = field(default_factory=dict)
    _histories: dict[str, tuple[str, ...]] = field(default_factory=dict)


def survey(run: RunState) -> Survey:
    """Return inputs and results of every stage, in the order of the line."""
    found = Survey(order=in_order(run.pipeline))
    root = run.intent.spec_commit or run.intent.base_commit
    for stage in found.order:
        before = nearest(run.pipeline, stage.name)
        if any(name not in found.results for name in before):
            continue
        history, start = _start(run, [found._histories[name] for name in before], root)
        found.inputs[stage.name] = start
        if isinstance(start, Meeting):
            continue
        result = start if is_given(run, stage) else _result(run, stage, start)
        if result is not None:
            found.results[stage.name] = result
            found._histories[stage.name] = history if result == start else (*history, result)
    return found


def _start(run: RunState, histories: list[tuple[str, ...]], root: str) -> tuple[tuple[str, ...], str | Meeting]:
    """Return the history a stage continues and the commit it starts from, or what has to meet first."""
    if not histories:
        return (root,), root
    ends = tuple(dict.fromkeys(history[-1] for history in histories))
    if len(ends) == 1:
        return histories[0], ends[0]
    shared = _common_prefix(histories)
    # A side that changed nothing is the base of the others and adds nothing to the union.
    sides = tuple(commit for commit in ends if commit != shared[-1])
    if len(sides) == 1:
        return next(history for history in histories if history[-1] == sides[0]), sides[0]
    joined = run.joins.get("+".join(sides))
    if joined is None:
        return shared, Meeting(base=shared[-1], commits=sides)
    return (*shared, joined), joined


def _common_prefix(histories: list[tuple[str, ...]]) -> tuple[str, ...]:
    length = 0
    for commits in zip(*histories, strict=False):
        if len(set(commits)) > 1:
            break
        length += 1
    return histories[0][:length]


def _result(run: RunState, stage: Stage, start: str) -> str | None:
    job = run.latest(stage.name)
    if job is None or job.verdict != "pass" or not is_current(run, job, start):
        return None
    commit = commit_of(job)
    if needs_red_check(run.pipeline, stage):
        check = red_check_of(run, commit)
        if check is None or check.verdict != "pass":
            return None
    return commit


def is_given(run: RunState, stage: Stage) -> bool:
    """Return whether a person gave what the stage would make."""
    return stage.role == "spec" and run.intent.spec_commit is not None


def is_current(run: RunState, job: JobState, start: str) -> bool:
    """Return whether `job` began at `start`: itself, or the first of the rounds it continues."""
    rounds = sorted((one for one in run.jobs.values() if one.stage == job.stage), key=lambda one: one.round)
    begun = job.base_commit
    for earlier in reversed([one for one in rounds if one.round < job.round]):
        if begun == start:
            return True
        if earlier.verdict == "pass" and commit_of(earlier) == begun:
            begun = earlier.base_commit
    return begun == start


def commit_of(job: JobState) -> str:
    """Return the commit a judged job ended with: its own, or the one it started from if it changed nothing."""
    return job.commit or job.base_commit


def needs_red_check(pipeline: Pipeline, stage: Stage) -> bool:
    """Return whether the stage's tests have to be red on stubs: it writes tests after an interface and before any implementation."""
    if stage.role != "test":
        return False
    before = {one.role for one in pipeline.stages if one.name in ancestors(pipeline, stage.name)}
    return "interface" in before and "implement" not in before


def red_check_of(run: RunState, commit: str) -> JobState | None:
    """Return the red-check of a test commit, None if there is none yet."""
    checks = [job for job in run.jobs.values() if job.stage == RED_CHECK and job.base_commit == commit]
    return max(checks, key=lambda job: job.round, default=None)


def rework_target(pipeline: Pipeline, validate: str) -> Stage | None:
    """Return the stage a red validate sends back to work: the last `implement` before it; None if there is none."""
    before = ancestors(pipeline, validate)
    return next((stage for stage in reversed(in_order(pipeline)) if stage.name in before and stage.role == "implement"), None)


def stage_of(pipeline: Pipeline, name: str) -> Stage | None:
    """Return the stage whose limits a job has: its own, for `baseline` and `red-check` the first validate stage's."""
    own = next((stage for stage in pipeline.stages if stage.name == name), None)
    return own or next((stage for stage in pipeline.stages if stage.role == "validate"), None)
