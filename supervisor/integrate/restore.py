"""Fills the mirror with a run's commits where another supervisor made them: from the log and the object store, with the same ids.

Commits are made from the same bytes, parents and times, so doing it again gives the same commits; one that does not is an error, never
a substitute. Salvage refs of earlier attempts are not made again: their git bundles stay in the object store as long as it keeps them.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from sandbox.contract.errors import InfrastructureError
from sandbox.contract.wire import SupervisorLink
from sandbox.git import ANDON, in_thread, sizes
from sandbox.log import Log
from sandbox.mirror import Mirror
from supervisor.gates.given import given_files, given_message
from supervisor.gates.spec import parse_spec
from supervisor.integrate.integrator import Integrator
from supervisor.pipeline.commands import Join, Land
from supervisor.pipeline.events import AnyEvent, JobJudged, Joined, RunAccepted, RunLanded
from supervisor.pipeline.machine import apply, pending
from supervisor.pipeline.run import RunState

log = Log(__name__)

KNOWN_MAX = 10_000

Read = Callable[[str], Awaitable[list[AnyEvent]]]


class Restorer:
    """Makes a mirror whole, one run at a time, before the first thing is done with it here."""

    def __init__(self, mirror: Mirror, link: SupervisorLink, integrator: Integrator, read: Read) -> None:
        """Take the mirror, where objects are, who makes commits, and how to read a run's events."""
        self._mirror = mirror
        self._link = link
        self._integrator = integrator
        self._read = read
        self._whole: OrderedDict[str, None] = OrderedDict()

    async def ensure(self, run: RunState) -> None:
        """Bring every commit the run rests on into the mirror; looked for once a run, since from then on we make them ourselves.

        Raises:
            InfrastructureError: An object is gone from the store, or git failed.
        """
        if run.run_id in self._whole:
            return
        missing = await self._missing(run)
        if missing:
            log.info("run.restored", "its commits are made again", run_id=run.run_id, commits=len(missing))
            await self._restore(await self._read(run.run_id), missing)
        self._whole[run.run_id] = None
        if len(self._whole) > KNOWN_MAX:
            self._whole.popitem(last=False)

    async def _missing(self, run: RunState) -> set[str]:
        wanted = {run.intent.base_commit, run.intent.spec_commit, run.landed_commit, *run.joins.values()}
        wanted |= {job.commit for job in run.jobs.values()} | {job.base_commit for job in run.jobs.values()}
        commits = sorted(commit for commit in wanted if commit is not None)
        found = await in_thread(sizes, self._mirror.git, commits)
        return {commit for commit in commits if found.get(commit, ("", 0))[0] != "commit"}

    async def _restore(self, events: list[AnyEvent], missing: set[str]) -> None:
        """Go through the log and do the git of each event again, as far as its commit is missing."""
        run: RunState | None = None
        for event in events:
            if isinstance(event, RunAccepted):
                await self._accepted(event, missing)
            elif run is not None and isinstance(event, JobJudged) and event.commit in missing:
                _check(event.commit, await self._integrator.remake(run, run.jobs[event.job_id]))
                missing.discard(event.commit)
            elif run is not None and isinstance(event, Joined) and event.commit in missing:
                await self._joined(run, event)
                missing.discard(event.commit)
            elif run is not None and isinstance(event, RunLanded) and event.commit in missing:
                await self._landed(run, event)
                missing.discard(event.commit)
            run = apply(run, event)

    async def _accepted(self, event: RunAccepted, missing: set[str]) -> None:
        intent = event.intent
        if intent.base_commit in missing:
            await self._mirror.import_base(intent.base_commit, await self._link.get_blob(intent.base_pack))
        if intent.spec_commit in missing and intent.given_spec is not None:
            files = given_files(parse_spec(intent.given_spec, "--spec"), event.pipeline, intent.feature)
            message, at = given_message(intent.feature), int(event.at)
            made = await self._mirror.commit_files(intent.base_commit, files, message=message, author=ANDON, committer=ANDON, at=at)
            _check(intent.spec_commit, made)

    async def _joined(self, run: RunState, event: Joined) -> None:
        wanted = [each for each in pending(run) if isinstance(each, Join) and each.commits == event.parents]
        if not wanted:
            raise InfrastructureError(f"run {run.run_id}: nothing is known of the join that gave {event.commit}")
        _check(event.commit, (await self._integrator.join(run, wanted[0])).commit)

    async def _landed(self, run: RunState, event: RunLanded) -> None:
        wanted = [each for each in pending(run) if isinstance(each, Land)]
        if not wanted:
            raise InfrastructureError(f"run {run.run_id}: nothing is known of what landed as {event.commit}")
        _check(event.commit, await self._integrator.landing_commit(run, wanted[0].commit))


def _check(expected: str | None, made: str) -> None:
    if made != expected:
        raise InfrastructureError(f"commit {expected} cannot be made again here: the same work gives {made}; is git another one?")
