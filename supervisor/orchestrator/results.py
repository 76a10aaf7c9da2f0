"""Takes finished attempts from the bus into their runs: checks the token, keeps the result, salvages the work; judges nothing."""

import asyncio
from collections.abc import Awaitable, Callable

from sandbox.contract.errors import AndonError, InfrastructureError
from sandbox.contract.ids import attempt_path
from sandbox.contract.result import AttemptResult
from sandbox.contract.wire import StoredResult
from sandbox.log import Log, about, of_attempt
from supervisor.orchestrator.actor import RunActor
from supervisor.orchestrator.claims import Find, sha256_of
from supervisor.orchestrator.ports import Ports
from supervisor.pipeline.events import AnyEvent, AttemptEnded
from supervisor.pipeline.run import JobState, RunState

log = Log(__name__)

AT_ONCE_MAX = 8
"""Results that are taken in at the same time; the others stay on the bus."""


class Results:
    """The consumer of the stream of results; `find` gives open runs, `load` any run from the log."""

    def __init__(self, ports: Ports, find: Find, load: Callable[[str], Awaitable[RunState | None]]) -> None:
        self._ports = ports
        self._find = find
        self._load = load
        self._room = asyncio.Semaphore(AT_ONCE_MAX)

    async def consume(self) -> None:
        """Take results until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            async for stored in self._ports.link.results():
                await self._room.acquire()
                tasks.create_task(self._take_one(stored))

    async def _take_one(self, stored: StoredResult) -> None:
        with about(**of_attempt(stored.result.job_id, stored.result.attempt, is_executors=False)):
            await self._take_in(stored)

    async def _take_in(self, stored: StoredResult) -> None:
        try:
            await self._take(stored.result)
            # Confirmed after its event is in the log: a crash in between takes it twice, the other order loses it.
            await stored.confirm()
            self._ports.queue.kick()
        except InfrastructureError as error:
            # Not confirmed, so the bus delivers it again.
            log.warning("result.put_back", "the result is taken again later", error=error)
        except Exception:  # our bug on one result: the others go on; it comes again, and the watch ends its attempt in time
            log.exception("result.broke", "a result could not be taken")
        finally:
            self._room.release()

    async def _take(self, result: AttemptResult) -> None:
        actor = self._find(result.run_id)
        run = actor.state if actor is not None else await self._load(result.run_id)
        job = run.jobs.get(result.job_id) if run is not None else None
        if run is None or job is None or not _counts(job, result):
            log.warning("result.ignored", "a result of an attempt that does not count", executor=result.executor)
            return
        is_current = job.current is not None and job.current.attempt == result.attempt
        if any(one.attempt == result.attempt and one.ended is not None and one.ended.result is not None for one in job.attempts):
            return  # a second delivery of what is in the log
        salvage_ref = await self._salvage(run, job, result)
        if actor is not None and is_current:
            await self._end(actor, result, salvage_ref)

    async def _salvage(self, run: RunState, job: JobState, result: AttemptResult) -> str | None:
        """Keep what the attempt wrote, whatever becomes of the run: also of one declared dead, also of one that failed."""
        if result.git_bundle is None and result.remains is None:
            return None
        try:
            await self._ports.restore(run)
            return await self._ports.integrator.salvage(run, job, result)
        except InfrastructureError:
            raise
        except AndonError as error:  # it is not acceptable as git: the gate says so again, as a finding
            log.warning("result.unsalvaged", "what the attempt left is not acceptable", error=error)
            return None

    async def _end(self, actor: RunActor, result: AttemptResult, salvage_ref: str | None) -> None:
        name = f"{attempt_path(result.run_id, result.stage, result.round, result.attempt)}/result"
        data = result.model_copy(update={"token": ""}).model_dump_json().encode()
        ref = await self._ports.link.put_blob(f"{name}-{sha256_of(data.decode())}", data)

        def build(run: RunState) -> AnyEvent | None:
            job = run.jobs[result.job_id]
            if job.current is None or job.current.attempt != result.attempt:
                return None
            same = result.model_dump(include=_SAME)
            own = {"run_id": run.run_id, "at": self._ports.clock(), "result": ref, "salvage_ref": salvage_ref}
            box = {"container_id": result.sandbox.container_id, "missing": result.sandbox.missing}
            return AttemptEnded.model_validate(same | own | box)

        await actor.record(build)


_SAME = {
    "job_id",
    "attempt",
    "executor",
    "outcome",
    "reason",
    "cause",
    "submission",
    "divergences",
    "dropped",
    "fetched",
    "recording",
    "log",
    "started_at",
    "first_instruction_at",
    "ended_at",
}


def _counts(job: JobState, result: AttemptResult) -> bool:
    """Return whether the result carries the token its attempt was given, and speaks of its own job."""
    attempt = next((one for one in job.attempts if one.attempt == result.attempt), None)
    if attempt is None or attempt.executor != result.executor or attempt.token_sha256 != sha256_of(result.token):
        return False
    return (result.stage, result.round) == (job.stage, job.round)
