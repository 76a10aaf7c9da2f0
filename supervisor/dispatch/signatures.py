"""The check that imports what is locked, made for one checks job; not what it has to show (`gates/signatures`)."""

from collections.abc import Sequence

from sandbox.contract.job import Check
from sandbox.contract.signatures import PATHS_MAX, ToImport
from sandbox.mirror import Mirror
from supervisor.pipeline.definition import Stage
from supervisor.pipeline.run import RunState
from supervisor.pipeline.survey import commit_of
from supervisor.stages.importable import importable
from supervisor.stages.lineage import interfaces_before
from supervisor.stages.quality import SIGNATURES, signatures_python

IMPORT_S_MAX = 120
"""For both processes of one check."""


async def signature_check(mirror: Mirror, run: RunState, stage: Stage, commit: str, checks: Sequence[Check]) -> Check | None:
    """Return the check that imports the locked modules of a tree; None if no Python module is locked, or the base commit wants none.

    Args:
        mirror: Holds every commit of the run.
        run: Whose interfaces are locked.
        stage: The validate stage.
        commit: Of the tree.
        checks: The other checks of the job: if their tests are sealed, so is this.

    Raises:
        ConfigError: `quality.toml` of the base commit is wrong.
    """
    locked: list[str] = []
    others: list[str] = []
    for job in interfaces_before(run, stage.name):
        locked += [change.path for change in await mirror.changes(job.base_commit, commit_of(job)) if change.new is not None]
        others += [change.path for change in await mirror.changes(commit_of(job), commit) if change.new is not None]
    modules = importable(locked)
    python = await mirror.inspect([run.intent.base_commit], lambda tree: signatures_python(tree, stage))
    if not modules or python is None:
        return None
    of_tests = [check for check in checks if check.is_tests]
    return Check(
        name=SIGNATURES,
        argv=python,
        report="signatures",
        tests_scope=of_tests[0].tests_scope if of_tests and all(check.tests_scope for check in of_tests) else None,
        to_import=ToImport(locked=tuple(modules[:PATHS_MAX]), others=tuple(importable(set(others) - set(modules))[:PATHS_MAX])),
        timeout_s=min(IMPORT_S_MAX, max(1, stage.limits.wall_s * 9 // 10)),
    )
