"""A whole line without containers: real machine, dispatcher, briefs, gates and mirrors; agents are edits, checks are real pytest.

The player of a test says what each agent writes; everything that judges is the real thing.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.contract.blob import BlobRef
from sandbox.contract.ids import attempt_path, trace_id
from sandbox.contract.job import CheckExit, JobSpec, Submission
from sandbox.contract.result import AttemptResult, CheckReport, Outcome
from sandbox.contract.task_bundle import TaskBundle
from sandbox.contract.tree import Tree
from sandbox.git import ANDON
from sandbox.mirror import Mirror
from supervisor.briefing import Bundler
from supervisor.delivery import snapshot
from supervisor.dispatch import Dispatcher
from supervisor.integrate import Integrator
from supervisor.pipeline import events as ev
from supervisor.pipeline.commands import Append, Command, Deliver, Dispatch, Join, Judge, Land, Publish
from supervisor.pipeline.definition import Pipeline
from supervisor.pipeline.load import default_pipeline
from supervisor.pipeline.machine import apply, pending
from supervisor.pipeline.run import JobState, RunState
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink, MemorySupervisorLink
from tests.fakes.real_checks import run_import, run_pytest
from tests.fakes.repositories import run_git, write_files

RUN = "01jd8m6w2x"
STEPS_MAX = 200


@dataclass(frozen=True)
class Work:
    """What an agent leaves: edits by path (None deletes) and its words."""

    edits: Mapping[str, str | None] = field(default_factory=dict)
    summary: str = "Done as the task says."
    outcome: Outcome = Outcome.SUBMITTED


Player = Callable[[JobSpec, Mapping[str, str]], Work]
"""Given the job and the files of its task bundle."""


@dataclass
class PaperLine:
    """One run on paper; `run` is its state, `log` its events, `bundles` what each agent was given."""

    mirror: Mirror
    executor_mirror: Mirror
    link: MemorySupervisorLink
    executor: MemoryExecutorLink
    integrator: Integrator
    dispatcher: Dispatcher
    run: RunState
    directory: Path
    log: list[ev.AnyEvent] = field(default_factory=list)
    bundles: dict[str, Mapping[str, str]] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)

    def append(self, event: ev.AnyEvent) -> None:
        """Add one event to the run."""
        stored = event.model_copy(update={"run_id": RUN, "at": 1_700_000_000.0 + len(self.log), "seq": len(self.log) + 2})
        self.log.append(stored)
        self.run = apply(self.run, stored)

    async def play(self, player: Player) -> RunState:
        """Do what the machine wants until the run landed or ended."""
        for _ in range(STEPS_MAX):
            wanted = [command for command in pending(self.run) if not isinstance(command, Deliver)]
            if not wanted:
                return self.run
            await self.do(wanted[0], player)
        raise AssertionError(f"the line does not end; it wants {pending(self.run)}")

    async def do(self, command: Command, player: Player) -> None:
        """Do one command."""
        match command:
            case Append():
                self.append(command.event)
            case Dispatch():
                self.append(await self.dispatcher.prepare(self.run, command))
            case Publish():
                await self.attempt(command.job_id, player)
            case Judge():
                self.append(await self.integrator.judge(self.run, self.run.jobs[command.job_id]))
            case Join():
                self.append(await self.integrator.join(self.run, command))
            case Land():
                self.append(await self.integrator.land(self.run, command.commit))
            case _:
                raise AssertionError(f"no step for {command}")

    async def attempt(self, job_id: str, player: Player) -> None:
        """Let the executor do one attempt at a job."""
        spec = JobSpec.model_validate_json(await self.link.get_blob(self.run.jobs[job_id].spec))
        number = len(self.run.jobs[job_id].attempts) + 1
        self.append(
            ev.AttemptStarted(run_id=RUN, at=0, job_id=job_id, attempt=number, executor="paper", token_sha256="0" * 64, ack_subject="x")
        )
        result = await (self._agent(spec, number, player) if spec.kind == "agent" else self._checks(spec, number))
        await self.end(self.run.jobs[job_id], result)

    async def end(self, job: JobState, result: AttemptResult) -> None:
        """Take a result in, as the orchestrator does."""
        data = result.model_dump_json().encode()
        stored = await self.link.put_blob(f"{RUN}/{result.job_id}/{result.attempt}/result", data)
        self.append(
            ev.AttemptEnded(
                run_id=RUN,
                at=0,
                job_id=result.job_id,
                attempt=result.attempt,
                executor="paper",
                outcome=result.outcome,
                submission=result.submission,
                result=stored,
                salvage_ref=await self.integrator.salvage(self.run, job, result),
                started_at=1.0,
                ended_at=2.0,
            )
        )

    async def seal(self, spec: JobSpec, edits: Mapping[str, str | None]) -> str:
        """Return the executor's own commit of some edits."""
        await self.executor_mirror.import_base(spec.base_commit, await self.link.get_blob(spec.input_pack))
        files = {path: None if text is None else text.encode() for path, text in edits.items()}
        return await self.executor_mirror.commit_files(spec.base_commit, files, message="transport", author=ANDON, committer=ANDON, at=3)

    async def put(self, spec: JobSpec, number: int, what: str, data: bytes) -> BlobRef:
        """Store an object the way an executor does."""
        path = attempt_path(spec.run_id, spec.stage, spec.round, number)
        return await self.executor.put_blob(f"{path}/{what}-{hashlib.sha256(data).hexdigest()}", data)

    async def _agent(self, spec: JobSpec, number: int, player: Player) -> AttemptResult:
        assert spec.task_bundle is not None
        assert spec.agent is not None
        bundle = TaskBundle.decode(await self.link.get_blob(spec.task_bundle)).files
        self.bundles[spec.job_id], self.prompts[spec.job_id] = bundle, spec.agent.prompt
        work = player(spec, bundle)
        commit, ref = None, None
        if work.edits:
            commit = await self.seal(spec, work.edits)
            ref = await self.put(spec, number, "work.bundle", await self.executor_mirror.bundle_of(commit, spec.base_commit))
        submission = Submission(status="done", summary=work.summary)
        return a_result(spec, number, outcome=work.outcome, commit=commit, git_bundle=ref, submission=submission)

    async def _checks(self, spec: JobSpec, number: int) -> AttemptResult:
        files = await self.mirror.inspect([spec.base_commit], _texts)
        reports = []
        for check in spec.checks:
            place = self.directory / f"{spec.job_id}-{number}"
            ended, report = run_import(place / check.name, files, check) if check.to_import is not None else run_pytest(place, files)
            ref = None if report is None else await self.put(spec, number, f"report-{check.name}", report)
            reports.append(CheckReport(name=check.name, exit=ended.model_copy(update={"name": check.name}), report=ref))
        return a_result(spec, number, reports=tuple(reports), submission=Submission(status="checked", exits=()))


def a_result(spec: JobSpec, number: int, **more: object) -> AttemptResult:
    """Return the end of an attempt."""
    about = {"job_id": spec.job_id, "run_id": spec.run_id, "stage": spec.stage, "round": spec.round, "attempt": number}
    ends = {"token": "", "executor": "paper", "outcome": Outcome.SUBMITTED, "started_at": 1.0, "ended_at": 2.0}
    return AttemptResult.model_validate(about | ends | more)


def red_exit(name: str = "tests") -> CheckExit:
    """Return how a failing command ended."""
    return CheckExit(name=name, exit_code=1, duration_s=1)


@asynccontextmanager
async def paper_line(
    directory: Path,
    files: Mapping[str, str | bytes],
    pipeline: Pipeline | None = None,
    *,
    request: str = "Add limits",
    baseline: bool = True,
) -> AsyncIterator[PaperLine]:
    """Open a run on a new git repository of `files`."""
    repository = directory / "user"
    repository.mkdir()
    run_git(repository, "init", "--quiet")
    write_files(repository, {name: data if isinstance(data, bytes) else data.encode() for name, data in files.items()})
    run_git(repository, "add", "-A")
    run_git(repository, "commit", "--quiet", "-m", "base")
    base = await snapshot(repository, None, home=directory)
    mirror, executor_mirror = await Mirror.open(directory / "mirror.git"), await Mirror.open(directory / "executor.git")
    await mirror.import_base(base.commit, base.pack)
    broker = MemoryBroker()
    async with MemorySupervisorLink.connect(broker) as link, MemoryExecutorLink.connect(broker, "paper", ("default",)) as executor:
        pack = await link.put_blob(f"{RUN}/base", base.pack)
        intent = ev.Intent(
            request=request,
            feature="limits",
            repository=str(repository),
            base_name="main",
            base_commit=base.commit,
            base_pack=pack,
            branch="andon/limits",
            author_name="Ada",
            author_email="ada@example.org",
            baseline=baseline,
            budget_nano_usd=10**10,
            warn_nano_usd=10**10,
        )
        opened = ev.RunAccepted(
            run_id=RUN, at=1_700_000_000.0, seq=1, intent=intent, pipeline=pipeline or default_pipeline(), trace_id=trace_id(RUN)
        )
        dispatcher = Dispatcher(mirror, link, Bundler(mirror, link))
        yield PaperLine(
            mirror, executor_mirror, link, executor, Integrator(mirror, link), dispatcher, apply(None, opened), directory / "checks"
        )


def _texts(tree: Tree) -> dict[str, str]:
    return {path: tree.read(path).decode() for path in tree.entries()}
