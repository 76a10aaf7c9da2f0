"""One executor's collaborators around a real engine, mirror and slot, and a bus in memory: what the benchmarks run attempts on."""

import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sandbox.contract.blob import BlobRef, input_bucket
from sandbox.contract.ids import attempt_path, job_id, run_id, span_id, trace_id
from sandbox.contract.job import Check, JobSpec
from sandbox.contract.result import AttemptResult
from sandbox.contract.task_bundle import TaskBundle
from sandbox.contract.wire import ClaimReply, Delivery, new_token
from sandbox.executor.attempt import run_attempt
from sandbox.executor.config import ExecutorConfig, Host
from sandbox.executor.ending import Cancel
from sandbox.executor.images_of import ImageResolver
from sandbox.executor.inputs import directories
from sandbox.executor.sandboxed import spec_of
from sandbox.executor.slots import SlotPool
from sandbox.mirror import Mirror
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.image_build import DIRECT
from sandbox.telemetry import Spans
from supervisor.delivery import snapshot
from supervisor.demo import create_sample_repository
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink, MemorySupervisorLink

_NAME = "bench"


class AnExecutor:
    """Runs attempts at the sample repository."""

    def __init__(self, host: Host, job: JobSpec) -> None:
        self._host = host
        self._job = job

    async def attempt(self) -> AttemptResult:
        """Run one attempt of the job, from its claim to its result."""
        fields = self._job.model_dump() | {"run_id": (run := run_id(time.time_ns() // 1_000_000, os.urandom(2)))}
        job = JobSpec.model_validate(fields | {"job_id": job_id(run, self._job.stage, 1)})
        parent = span_id(attempt_path(run, job.stage, 1, 1))
        context = f"00-{trace_id(run)}-{parent}-01"
        grant = ClaimReply(decision="granted", attempt=1, token=new_token(), traceparent=context, wall_left_s=job.limits.wall_s)
        delivery = Delivery(job=job, ack_subject="$JS.ACK.JOBS.default.1.1.1.1.0", published_at=time.time())
        async with self._host.slots.take() as slot:
            return await run_attempt(self._host, slot, delivery, grant, Cancel())

    async def sandbox(self, image: str) -> None:
        """Make a sandbox with every wall and directory of a job, in which `true` runs; wait for its end and remove it."""
        limits, host = self._job.limits, self._host
        async with host.slots.take() as slot, directories(slot, TaskBundle(), limits, host.config.no_quota):
            spec = spec_of(slot, host.instance, limits, runtime="runc", deadline=time.time() + limits.wall_s)
            box = await host.runtime.stand_by(spec.model_copy(update={"command": ("true",)}), image)
            try:
                ended = await box.wait()
            finally:
                await box.remove()
        if ended.code != 0:
            raise RuntimeError(f"`true` ended with {ended.code}: {(await box.log()).decode()[-400:]}")


@asynccontextmanager
async def an_executor(docker_url: str, slots: int = 1) -> AsyncIterator[AnExecutor]:
    """Set one up on an engine that has the agent image, at work on the sample repository, `slots` attempts at once."""
    # Short: a socket's path has at most 60 bytes here.
    with tempfile.TemporaryDirectory(prefix="andon-bench-", dir="/tmp") as scratch:
        top, broker = Path(scratch), MemoryBroker()
        await create_sample_repository(top / "notes")
        taken = await snapshot(top / "notes", None)
        config = ExecutorConfig(
            name=_NAME, state=top / "state", sockets=top / "s", uid_locks=Path("/run/lock/andon") if os.getuid() == 0 else None, slots=slots
        )
        config.sockets.mkdir(mode=0o711)
        runtime = await DockerRuntime.connect(docker_url)
        pool = SlotPool.lease(slots, state=config.state, sockets=config.sockets, locks=config.uid_locks)
        try:
            async with MemorySupervisorLink.connect(broker) as supervisor, MemoryExecutorLink.connect(broker, _NAME) as link:
                mirror = await Mirror.open(config.state / "mirror.git")
                pack = await supervisor.put_blob("base", taken.pack, input_bucket("default"))
                yield AnExecutor(_host(config, link, mirror, runtime, pool), _job(taken.commit, pack))
        finally:
            pool.close()
            runtime.close()


def _host(config: ExecutorConfig, link: MemoryExecutorLink, mirror: Mirror, runtime: DockerRuntime, slots: SlotPool) -> Host:
    return Host(
        config=config,
        link=link,
        mirror=mirror,
        runtime=runtime,
        upstream=None,
        slots=slots,
        image_of=ImageResolver(runtime.engine, mirror, link, config.state, DIRECT).of,
        exec_spans=Spans("andon-exec", "bench"),
        gateway_spans=Spans("andon-gw", "bench"),
        agent_spans=Spans("andon-agent", "bench"),
        user_spans=Spans("andon-user", "bench"),
        instance=f"bench-{os.getpid()}",
        missing=(),
        tool_environment={},
    )


def _job(commit: str, pack: BlobRef) -> JobSpec:
    run = "0000000000"
    return JobSpec(
        job_id=job_id(run, "validate", 1),
        run_id=run,
        feature="bench",
        stage="validate",
        role="validate",
        round=1,
        kind="checks",
        base_commit=commit,
        input_pack=pack,
        checks=(Check(name="nothing", argv=("true",)),),
    )
