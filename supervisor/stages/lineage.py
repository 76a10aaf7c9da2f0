"""Where a job's work began, and which interfaces stand before a stage, read from a run's state; pure. What comes next is `pipeline`'s."""

from supervisor.pipeline.graph import ancestors
from supervisor.pipeline.run import JobState, RunState
from supervisor.pipeline.survey import commit_of


def origin_of(run: RunState, stage: str, base_commit: str) -> str:
    """Return the commit a stage's work grew from: the base of the first of the rounds that `base_commit` continues."""
    rounds = sorted((job for job in run.jobs.values() if job.stage == stage), key=lambda job: job.round, reverse=True)
    begun = base_commit
    for earlier in rounds:
        if earlier.is_done and earlier.base_commit != begun and commit_of(earlier) == begun:
            begun = earlier.base_commit
    return begun


def interfaces_before(run: RunState, stage: str) -> list[JobState]:
    """Return the newest passed interface jobs of the stages `stage` depends on, in the order of the pipeline file."""
    before = ancestors(run.pipeline, stage) if any(one.name == stage for one in run.pipeline.stages) else frozenset()
    jobs = [run.latest(one.name) for one in run.pipeline.stages if one.name in before and one.role == "interface"]
    return [job for job in jobs if job is not None and job.verdict == "pass"]


def has_role(run: RunState, role: str) -> bool:
    """Return whether the run's pipeline has a stage of a role."""
    return any(stage.role == role for stage in run.pipeline.stages)
