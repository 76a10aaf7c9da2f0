"""Work that did not land: what the supervisor's mirror keeps of it, and its way into a person's repository as a branch.

A salvage ref holds the tree an attempt left, on top of what the attempt was given. A person's repository has only the run's base
commit, so the branch is one commit on that: everything the attempt saw and wrote, byte for byte. Not who salvages (`integrate`).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandbox.contract.errors import ConflictError, GitError, UsageError
from sandbox.contract.model import Frozen
from sandbox.git import ANDON, Git, in_thread
from sandbox.mirror import Mirror
from supervisor import delivery
from supervisor.api.run_files import files_of
from supervisor.api.views import resolve_run_id
from supervisor.config import StateDirectory
from supervisor.errors import AndonError
from supervisor.pipeline.run import AttemptState, RunState

REFS: Final = "refs/andon/salvage"
_REF = re.compile(
    rf"{REFS}/(?P<run_id>[0-9a-z]{{10}})/(?P<stage>[a-z][a-z0-9_-]{{0,31}})-(?P<round>[0-9]{{1,3}})-(?P<attempt>[0-9]{{1,3}})"
)
_STAT = re.compile(rb"(\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?")


class Salvaged(Frozen):
    """One attempt's work."""

    name: str
    """What `restore` takes: RUN/STAGE-ROUND-ATTEMPT."""
    run_id: str
    stage: str
    round: int
    attempt: int
    ref: str
    commit: str
    feature: str = ""
    """Empty: the run's files are gone; so for what follows, but the size."""
    repository: str = ""
    run_state: str = ""
    outcome: str = ""
    """How the attempt ended."""
    reason: str = ""
    executor: str = ""
    ended_at: float | None = None
    """Unix seconds."""
    files: int
    """Changed against what the attempt was given."""
    insertions: int
    deletions: int


@dataclass(frozen=True)
class Restored:
    """Where the work is now."""

    repository: Path
    branch: str
    commit: str


async def salvaged(state: StateDirectory, run: str | None = None) -> list[Salvaged]:
    """Return what is salvaged here, newest run first; of one run (an id or its beginning) if it is named.

    Raises:
        UnknownRun: No run with salvaged work begins so, or several do.
        GitError: The mirror cannot be read.
    """
    if not state.mirror.is_dir():
        return []
    refs = await Mirror(state.mirror).list_refs(REFS)
    known = {found["run_id"] for found in map(_REF.fullmatch, refs) if found}
    wanted = {resolve_run_id(run, known | set(state.run_ids()))} if run is not None else known
    return await in_thread(_described, state, {ref: sha for ref, sha in refs.items() if ref.split("/")[3] in wanted})


async def restore(state: StateDirectory, name: str, repository: Path | None, branch: str | None) -> Restored:
    """Make a branch of one attempt's work; if it is there already, do nothing.

    Args:
        state: Whose mirror holds it.
        name: RUN/STAGE-ROUND-ATTEMPT; of the run's id the beginning is enough.
        repository: Where the branch is made; None: the repository the run worked for.
        branch: Its name; None: `andon/salvage/RUN/STAGE-ROUND-ATTEMPT`.

    Raises:
        UsageError: Nothing of that name is salvaged here, or no repository is known.
        ConflictError: The branch is taken, or the run's base commit is not in the repository.
        GitError: Git failed.
    """
    work = await _named(state, name)
    target = repository or (Path(work.repository) if work.repository else None)
    if target is None:
        raise UsageError(f"the files of run {work.run_id} are gone, so its repository is not known; name it with --repo")
    mirror = Mirror(state.mirror)
    wanted = branch or f"andon/salvage/{work.name}"
    try:
        await mirror.read_ref(f"refs/heads/{wanted}")
    except GitError:
        raise UsageError(f"{wanted!r} is no name for a branch that git and we agree on") from None
    base, at = await in_thread(_origin, mirror.git, work.commit)
    message = f"andon: salvaged work of {work.stage}, round {work.round}, attempt {work.attempt}\n\nAndon-Run: {work.run_id}\n"
    commit = await mirror.commit_like(work.commit, base, message=message, author=ANDON, committer=ANDON, at=at)
    await delivery.deliver(target, wanted, commit, base, await mirror.bundle_of(commit, base))
    return Restored(target, wanted, commit)


async def _named(state: StateDirectory, name: str) -> Salvaged:
    run, _, attempt = name.removeprefix(f"{REFS}/").partition("/")
    for work in await salvaged(state, run):
        if f"{work.stage}-{work.round}-{work.attempt}" == attempt:
            return work
    raise UsageError(f"nothing is salvaged here as {name!r}; `andon salvage list` shows what is")


def _described(state: StateDirectory, refs: dict[str, str]) -> list[Salvaged]:
    git = Git(state.mirror)
    runs = {run_id: _run(state, run_id) for run_id in {ref.split("/")[3] for ref in refs}}
    found = []
    for ref, commit in refs.items():
        parts = _REF.fullmatch(ref)
        if parts is None:
            continue
        files, insertions, deletions = _size(git, commit)
        own = {"stage": parts["stage"], "round": int(parts["round"]), "attempt": int(parts["attempt"])}
        told = _told(runs[parts["run_id"]], f"{parts['run_id']}-{parts['stage']}-{parts['round']}", int(parts["attempt"]))
        size = {"files": files, "insertions": insertions, "deletions": deletions}
        name = ref.removeprefix(f"{REFS}/")
        found.append(Salvaged.model_validate({"name": name, "run_id": parts["run_id"], "ref": ref, "commit": commit} | own | size | told))
    return sorted(found, key=lambda work: (work.run_id, work.ended_at or 0.0, work.name), reverse=True)


def _run(state: StateDirectory, run_id: str) -> RunState | None:
    try:
        return files_of(state, run_id).run()
    except AndonError:
        return None


def _told(run: RunState | None, job_id: str, attempt: int) -> dict[str, object]:
    if run is None:
        return {}
    told: dict[str, object] = {"feature": run.intent.feature, "repository": run.intent.repository, "run_state": run.state}
    job = run.jobs.get(job_id)
    tries: tuple[AttemptState, ...] = job.attempts if job is not None else ()
    ended = next((each.ended for each in tries if each.attempt == attempt and each.ended is not None), None)
    if ended is not None:
        told |= {"outcome": ended.outcome.value, "reason": ended.reason, "executor": ended.executor, "ended_at": ended.ended_at}
    return told


def _size(git: Git, commit: str) -> tuple[int, int, int]:
    """Return files, inserted and deleted lines of a commit against its parent."""
    options = ("--shortstat", "-r", "--no-commit-id", "--no-renames", "--no-ext-diff", "--no-textconv")
    found = _STAT.search(git.run("diff-tree", *options, "--end-of-options", f"{commit}^", commit, output_bytes_max=1_000, truncate=True))
    return (int(found[1]), int(found[2] or 0), int(found[3] or 0)) if found else (0, 0, 0)


def _origin(git: Git, commit: str) -> tuple[str, int]:
    """Return the run's base commit, which has no history here, and when `commit` was made."""
    line = git.text("rev-list", "--first-parent", "--timestamp", "--end-of-options", commit).splitlines()
    if len(line) < 2:
        raise ConflictError(f"{commit} stands on nothing")
    return line[-1].split()[1], int(line[0].split()[0])
