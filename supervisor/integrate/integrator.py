"""What comes back becomes commits and verdicts: quarantine, own commit, gates, join, land; not when each is due (`pipeline/machine.py`).

The executor's commit is transport (DECISIONS D17): its tree is taken, and recorded anew on the known parent by us. Every method
may be repeated after a crash and does the same: commits are made from the same bytes and times, so they have the same ids.
"""

import asyncio
import hashlib
from functools import partial

from sandbox.contract.blob import BlobRef, output_bucket
from sandbox.contract.errors import ConfigError, ConflictError, InfrastructureError, Rejected
from sandbox.contract.ids import attempt_path
from sandbox.contract.interface_lock import InterfaceLock
from sandbox.contract.job import JobSpec
from sandbox.contract.result import AttemptResult, Finding
from sandbox.contract.tree import Change, Tree
from sandbox.contract.tree_rules import TreeLimits
from sandbox.contract.wire import SupervisorLink
from sandbox.git import ANDON, Identity
from sandbox.mirror import Mirror
from supervisor.gates.baseline import judge_baseline
from supervisor.gates.checks import judge_red, judge_validate
from supervisor.gates.evidence import Evidence, read_evidence
from supervisor.gates.implement import judge_implement
from supervisor.gates.interface import judge_interface, lock_of
from supervisor.gates.junit import REPORT_BYTES_MAX
from supervisor.gates.nothing import judge_empty
from supervisor.gates.scope import judge_scope
from supervisor.gates.signatures import with_signatures, with_stubs
from supervisor.gates.spec import Criterion, criteria_of, judge_spec, read_spec
from supervisor.gates.tests import judge_tests
from supervisor.gates.verdict import Judgement, finding, judgement
from supervisor.gates.whole import with_whole
from supervisor.integrate.landing import landing_message
from supervisor.pipeline.commands import Join
from supervisor.pipeline.events import JobJudged, Joined, RunLanded
from supervisor.pipeline.load import BASELINE, RED_CHECK
from supervisor.pipeline.run import JobState, RunState
from supervisor.pipeline.survey import needs_red_check, stage_of
from supervisor.stages.contract import spec_path
from supervisor.stages.lineage import has_role, interfaces_before, origin_of
from supervisor.stages.quality import signatures_python

BUNDLE_BYTES_MAX = 512 << 20
"""One git bundle of a result, as it crosses the bus."""
REMAINS_BYTES_MAX = 512 << 20
"""One archive of a refused tree: contents are bounded by the executor, each of its 250,000 entries adds up to 1.5 KiB."""
REMAINS = ".andon/remains.tar"
"""Where such an archive is in the commit of its salvage ref."""


class Integrator:
    """Judges, joins and lands over one mirror; `link` reads what executors left and keeps evidence."""

    def __init__(self, mirror: Mirror, link: SupervisorLink, limits: TreeLimits | None = None) -> None:
        self._mirror = mirror
        self._link = link
        self._limits = limits or TreeLimits()

    async def judge(self, run: RunState, job: JobState) -> JobJudged:
        """Return the gates' verdict on a job's last attempt, with our own commit of its work.

        Raises:
            InfrastructureError: An object or git is out of reach; the verdict is still to be made.
        """
        ended = job.attempts[-1].ended
        if ended is None or ended.result is None:
            raise ValueError(f"job {job.job_id} has no result to judge")
        spec = JobSpec.model_validate_json(await self._link.get_blob(job.spec))
        result = AttemptResult.model_validate_json(await self._link.get_blob(ended.result))
        if job.kind == "checks":
            return await self._judged(run, job, await self._judge_checks(run, job, spec, result), job.base_commit)
        said, commit = await self._judge_work(run, job, spec, result)
        return await self._judged(run, job, said, commit)

    async def join(self, run: RunState, command: Join) -> Joined:
        """Return the union of the command's commits as one commit on its base.

        Raises:
            ConflictError: Two of them change the same path.
        """
        commit = await self._mirror.join(command.base, command.commits, at=int(run.accepted_at))
        return Joined(run_id=run.run_id, at=0, stage=command.stage, round=command.round, commit=commit, parents=command.commits)

    async def land(self, run: RunState, commit: str) -> RunLanded:
        """Make the one commit of `commit`'s tree on the base and keep it as what the run landed; doing it again changes nothing.

        Raises:
            ConflictError: The run landed another commit before.
        """
        base, landed = run.intent.base_commit, await self.landing_commit(run, commit)
        # One ref a run: the mirror serves many repositories, whose branches may have equal names; intake keeps open runs of one
        # repository apart, and delivery's own compare-and-swap guards the branch.
        ref = f"refs/andon/landed/{run.run_id}"
        try:
            await self._mirror.update_ref(ref, landed, None)
        except ConflictError as error:
            if await self._mirror.read_ref(ref) != landed:
                raise ConflictError(f"run {run.run_id} landed another commit already; nothing landed now") from error
        changes = await self._mirror.changes(base, landed)
        return RunLanded(
            run_id=run.run_id,
            at=0,
            branch=run.branch,
            commit=landed,
            files_created=tuple(change.path for change in changes if change.old is None),
            files_modified=tuple(change.path for change in changes if change.old is not None and change.new is not None),
            files_deleted=tuple(change.path for change in changes if change.new is None),
            bundle=await self._bundled(run, landed),
        )

    async def landing_commit(self, run: RunState, commit: str) -> str:
        """Make the one commit of `commit`'s tree on the base, the same each time."""
        return await self._mirror.commit_like(
            commit,
            run.intent.base_commit,
            message=await self._mirror.inspect([commit], lambda tree: landing_message(run, tree)),
            author=Identity(name=run.intent.author_name, email=run.intent.author_email),
            committer=ANDON,
            at=int(max((job.judged_at or 0 for job in run.jobs.values()), default=0) or run.accepted_at),
        )

    async def _bundled(self, run: RunState, landed: str) -> BlobRef:
        """Store what landed for whoever delivers it, from wherever they are."""
        data = await self._mirror.bundle_of(landed, run.intent.base_commit)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        return await self._link.put_blob(f"{run.run_id}/landed-{digest}", data)

    async def remake(self, run: RunState, job: JobState) -> str:
        """Return our own commit of what a judged job's last attempt wrote, made again as `judge` made it."""
        ended = job.attempts[-1].ended
        if ended is None or ended.result is None:
            raise InfrastructureError(f"job {job.job_id} has a commit but no result it was made of")
        spec = JobSpec.model_validate_json(await self._link.get_blob(job.spec))
        result = AttemptResult.model_validate_json(await self._link.get_blob(ended.result))
        return (await self._judge_work(run, job, spec, result))[1]

    async def salvage(self, run: RunState, job: JobState, result: AttemptResult) -> str | None:
        """Keep what an attempt wrote under a ref of the mirror and return it; None if it left nothing.

        A tree that was refused cannot be a commit: what is left of it is kept as one archive, `REMAINS`, on top of what it was given.

        Raises:
            Rejected: The git bundle is not acceptable.
        """
        if result.git_bundle is not None:
            commit = await self._taken_in(run, job, result, result.git_bundle)
        elif result.remains is not None:
            commit = await self._archived(run, job, result, result.remains)
        else:
            return None
        ref = f"refs/andon/salvage/{run.run_id}/{result.stage}-{result.round}-{result.attempt}"
        if await self._mirror.read_ref(ref) != commit:
            await self._mirror.update_ref(ref, commit, None)
        return ref

    async def _judged(self, run: RunState, job: JobState, said: Judgement, commit: str) -> JobJudged:
        evidence = await self._kept(job, run, said.evidence) if said.evidence is not None else None
        return JobJudged(
            run_id=run.run_id,
            at=0,
            job_id=job.job_id,
            verdict=said.verdict,
            findings=said.findings,
            commit=commit,
            tests=said.tests,
            evidence=evidence,
            notes=said.notes,
            assurance=said.assurance,
            usage_error=said.usage_error,
        )

    async def _kept(self, job: JobState, run: RunState, data: bytes) -> BlobRef:
        name = f"{attempt_path(run.run_id, job.stage, job.round, job.attempts[-1].attempt)}/evidence-{hashlib.sha256(data).hexdigest()}"
        return await self._link.put_blob(name, data)

    # What an agent wrote

    async def _judge_work(self, run: RunState, job: JobState, spec: JobSpec, result: AttemptResult) -> tuple[Judgement, str]:
        refused = [each for each in result.findings if each.check == "tree"]
        if refused:  # the executor would not seal it, so there is nothing we could judge better
            return judgement(refused), job.base_commit
        if result.git_bundle is None:
            return judge_empty(job.role, job.stage, result.submission, _wanted(run, job)), job.base_commit
        try:
            commit = await self._taken_in(run, job, result, result.git_bundle)
        except Rejected as error:
            return judgement([finding("git-bundle", f"the result of {job.job_id} was refused: {error}")]), job.base_commit
        changes = await self._mirror.changes(job.base_commit, commit)
        if not changes:
            return judge_empty(job.role, job.stage, result.submission, _wanted(run, job)), job.base_commit
        stage = stage_of(run.pipeline, job.stage)
        outside = judge_scope(changes, spec.scope, stage) if stage is not None else [_no_stage(job)]
        said, commit = await self._judge_role(run, job, commit, changes)
        merged = judgement([*outside, *said.findings], said.notes, tests=said.tests, evidence=said.evidence)
        return merged, commit

    async def _judge_role(self, run: RunState, job: JobState, commit: str, changes: list[Change]) -> tuple[Judgement, str]:
        match job.role:
            case "spec":
                return await self._judge_spec(run, job, commit)
            case "interface":
                return await self._mirror.inspect([job.base_commit, commit], lambda old, new: judge_interface(old, new, changes)), commit
            case "implement":
                locks = await self._locks(run, job.stage)
                whole = await self._mirror.changes(origin_of(run, job.stage, job.base_commit), commit)
                return await self._mirror.inspect([commit], lambda tree: judge_implement(tree, whole, locks)), commit
            case "test":
                return await self._judge_test(run, job, commit), commit
            case _:
                return judgement([], [f"{len(changes)} files changed"]), commit

    async def _judge_spec(self, run: RunState, job: JobState, commit: str) -> tuple[Judgement, str]:
        path, feature = spec_path(run.pipeline, run.intent.feature), run.intent.feature
        said, data = await self._mirror.inspect([commit], lambda tree: judge_spec(tree, path, feature))
        if data is None:
            return said, commit
        at = int(job.dispatched_at)
        written = await self._mirror.commit_files(commit, {path: data}, message="spec", author=ANDON, committer=ANDON, at=at)
        return said, await self._own(job, written)

    async def _judge_test(self, run: RunState, job: JobState, commit: str) -> Judgement:
        origin = origin_of(run, job.stage, job.base_commit)
        whole = await self._mirror.changes(origin, commit)
        criteria = await self._criteria(run, job.base_commit)
        said = await self._mirror.inspect([origin, commit], lambda old, new: judge_tests(old, new, whole, criteria))
        stage = stage_of(run.pipeline, job.stage)
        if stage is None or not needs_red_check(run.pipeline, stage):
            return said
        # The red-check runs them and says the same better, and its verdict is one that tests can be reworked after.
        return judgement([], [*(each.message for each in said.findings), *said.notes])

    async def _taken_in(self, run: RunState, job: JobState, result: AttemptResult, bundle: BlobRef) -> str:
        """Return our own commit of what an attempt wrote."""
        _check_origin(bundle, run, result, BUNDLE_BYTES_MAX)
        received = await self._mirror.receive(await self._link.get_blob(bundle), job.base_commit, self._limits)
        return await self._own(job, received)

    async def _archived(self, run: RunState, job: JobState, result: AttemptResult, remains: BlobRef) -> str:
        """Return a commit that holds the remains of a refused tree, unopened."""
        _check_origin(remains, run, result, REMAINS_BYTES_MAX)
        files = {REMAINS: await self._link.get_blob(remains)}
        message = f"andon: what is left of {job.stage}, round {job.round}\n"
        at = int(job.dispatched_at)
        return await self._mirror.commit_files(job.base_commit, files, message=message, author=ANDON, committer=ANDON, at=at)

    async def _own(self, job: JobState, tree_of: str) -> str:
        message = f"andon: {job.stage}, round {job.round}\n"
        at = int(job.dispatched_at)
        return await self._mirror.commit_like(tree_of, job.base_commit, message=message, author=ANDON, committer=ANDON, at=at)

    async def _locks(self, run: RunState, stage: str) -> list[InterfaceLock]:
        """Return the locks of the interfaces before a stage, made anew from our own commits."""
        locks = []
        for job in interfaces_before(run, stage):
            commit = job.commit or job.base_commit
            changes = await self._mirror.changes(job.base_commit, commit)
            lock, _ = await self._mirror.inspect([job.base_commit, commit], partial(lock_of, changes=changes))
            locks.append(lock)
        return locks

    async def _criteria(self, run: RunState, commit: str) -> list[Criterion]:
        """Return what the specification demands; nothing if the line has none."""
        path = spec_path(run.pipeline, run.intent.feature)
        if not has_role(run, "spec") and run.intent.spec_commit is None:
            return []

        def read(tree: Tree) -> list[Criterion]:
            return criteria_of(read_spec(tree, path))

        return await self._mirror.inspect([commit], read)

    # What checks left

    async def _judge_checks(self, run: RunState, job: JobState, spec: JobSpec, result: AttemptResult) -> Judgement:
        blobs: dict[str, bytes] = {}
        refused: dict[str, str] = {}
        for report in result.reports:
            if report.report is None:
                continue
            try:
                _check_origin(report.report, run, result, REPORT_BYTES_MAX)
            except Rejected as error:
                refused[report.name] = str(error)
            else:
                blobs[report.name] = await self._link.get_blob(report.report)
        reports = [each.model_copy(update={"problem": refused.get(each.name, each.problem)}) for each in result.reports]
        evidence = read_evidence(spec.checks, reports, blobs)
        if job.stage == BASELINE:
            return await self._mirror.inspect([job.base_commit], lambda tree: judge_baseline(evidence, tree))
        baseline = await self._evidence(run.latest(BASELINE))
        try:
            criteria = await self._criteria(run, job.base_commit)
        except ConfigError as error:
            return judgement([finding("spec", str(error))])
        if job.stage == RED_CHECK:
            stage = stage_of(run.pipeline, RED_CHECK)
            return with_stubs(judge_red(evidence, baseline, criteria), evidence, await self._locks(run, stage.name) if stage else [])
        on_stubs = await self._evidence(_passed_red_check(run))
        said = judge_validate(evidence, baseline, on_stubs, criteria if has_role(run, "test") else [])
        said = await self._with_signatures(run, job, said, evidence, on_stubs)
        return await self._with_whole(run, job, said)

    async def _with_signatures(
        self, run: RunState, job: JobState, said: Judgement, evidence: Evidence, on_stubs: Evidence | None
    ) -> Judgement:
        """Add what the import of the locked modules shows."""
        stage, locks = stage_of(run.pipeline, job.stage), await self._locks(run, job.stage)
        if stage is None or not locks:
            return said
        is_wanted = await self._mirror.inspect([run.intent.base_commit], lambda tree: signatures_python(tree, stage) is not None)
        return with_signatures(said, evidence, on_stubs, locks, is_wanted=is_wanted)

    async def _with_whole(self, run: RunState, job: JobState, said: Judgement) -> Judgement:
        """Add what the judged tree itself says: whose tests they are, what is silenced, which protected paths changed."""
        base = run.intent.base_commit
        changes = await self._mirror.changes(base, job.base_commit)
        of_tests = {each.commit for each in run.jobs.values() if each.role == "test" and each.verdict == "pass" and each.commit}
        commits = [base, job.base_commit, *sorted(of_tests)]
        return await self._mirror.inspect(commits, lambda *trees: with_whole(said, trees, changes))

    async def _evidence(self, job: JobState | None) -> Evidence | None:
        if job is None or job.evidence is None:
            return None
        return Evidence.model_validate_json(await self._link.get_blob(job.evidence))


class _NotTheirs(Rejected):
    """An object is not where this attempt stores, or is larger than it may be."""


def _check_origin(ref: BlobRef, run: RunState, result: AttemptResult, bytes_max: int) -> None:
    """Refuse an object that another attempt stored: a green report, or another run's work, must not count here."""
    prefix = f"{attempt_path(run.run_id, result.stage, result.round, result.attempt)}/"
    if ref.bucket != output_bucket(result.executor) or not ref.name.startswith(prefix):
        raise _NotTheirs(f"object {ref.name!r} was not stored by this attempt")
    if ref.size_bytes > bytes_max:
        raise _NotTheirs(f"object {ref.name!r} has {ref.size_bytes} bytes; at most {bytes_max}")


def _wanted(run: RunState, job: JobState) -> str:
    """Return what a rework was to put right, in one line; nothing for a first round."""
    red = [each for each in run.jobs.values() if each.verdict == "fail" and each.findings and each.kind == "checks"]
    last = max(red, key=lambda each: each.judged_seq, default=None) if job.round > 1 else None
    return f"{last.stage}, round {last.round}, was red: {last.findings[0].told[:2_000]}" if last is not None else ""


def _passed_red_check(run: RunState) -> JobState | None:
    passed = [job for job in run.jobs.values() if job.stage == RED_CHECK and job.verdict == "pass"]
    return max(passed, key=lambda job: job.round, default=None)


def _no_stage(job: JobState) -> Finding:
    return finding("write-scope", f"stage {job.stage} is not in the pipeline")
