"""The lifetimes an attempt composes around its container: gateway session, sandbox, lease; each cleans up after itself."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from sandbox.contract.cassette import Cassette
from sandbox.contract.errors import InfrastructureError
from sandbox.contract.job import Assignment, JobSpec, Limits
from sandbox.contract.wire import RATE_WAIT_MAX_S, ClaimReply, ClaimRequest, Delivery
from sandbox.executor import packages
from sandbox.executor.account import Account
from sandbox.executor.config import Host
from sandbox.executor.lease import Lease
from sandbox.executor.slots import Slot
from sandbox.gateway.cassette import Replay
from sandbox.gateway.policy import Policy
from sandbox.gateway.reservation import BudgetLedger
from sandbox.gateway.session import Session
from sandbox.gateway.upstream import Upstream
from sandbox.runtime.container_spec import Sandbox, SlotSpec

REMOVE_S = 30.0
SELF_DESTRUCT_S = 60
"""How long after the stage's wall clock a container ends itself, for when nobody is left to do it."""
CONTAINER_GRACE_S = 120.0
"""How long after the stage's wall clock a container's own deadline lies."""


def assignment_for(host: Host, job: JobSpec, grant: ClaimReply, traceparent: str, tool_env: Mapping[str, str]) -> Assignment:
    """Return what the program in the container is told; the executor ends it at its wall clock, whatever the program thinks."""
    wall_s = int(grant.wall_left_s) + excused_s_max(job)
    return Assignment(
        job_id=job.job_id,
        stage=job.stage,
        round=job.round,
        attempt=grant.attempt,
        kind=job.kind,
        agent=job.agent,
        checks=job.checks,
        tool_env={**host.tool_environment, **tool_env},
        network=job.network,
        packages_port=packages.PORT,
        traceparent=traceparent,
        wall_s=wall_s + 1,
        self_destruct_s=wall_s + SELF_DESTRUCT_S,
    )


def excused_s_max(job: JobSpec) -> int:
    """Return how long a job may wait for the provider's rate limit without being charged for it; a checks job asks no provider."""
    return int(RATE_WAIT_MAX_S) if job.agent else 0


@asynccontextmanager
async def gateway(host: Host, job: JobSpec, grant: ClaimReply, slot: Slot, account: Account, image: str) -> AsyncIterator[Session]:
    """Open the attempt's only way out; a checks job gets no model route."""
    account.showed(await host.shown(job.runtime, image, slot))
    uid = os.geteuid() if account.is_relayed else slot.owner[0]
    session = Session(
        slot.sockets,
        Policy.of(job.agent) if job.agent else None,
        BudgetLedger(host.link, executor=host.config.name, run_id=job.run_id, job_id=job.job_id, attempt=grant.attempt, token=grant.token),
        await _model(host, job),
        stage=job.stage,
        round_=job.round,
        peer_uid=uid,
        headers={
            "x-andon-run": job.run_id,
            "x-andon-stage": job.stage,
            "x-andon-round": str(job.round),
            "x-andon-attempt": str(grant.attempt),
            "x-andon-job": job.job_id,
        },
        record=job.record,
        on_call=account.trace.on_call,
        capture=host.capture,
        on_traces=account.trace.on_traces,
        registries=packages.routes_for(host.packages, job, account.trace.on_fetch),
    )
    async with session:
        yield session


async def _model(host: Host, job: JobSpec) -> Upstream | Replay | None:
    if job.agent is None:
        return None
    if job.mode == "live":
        if host.upstream is None:
            raise InfrastructureError(f"executor {host.config.name} has no model key; set ANTHROPIC_API_KEY where it runs")
        return host.upstream
    if job.cassette is None:
        raise InfrastructureError(f"job {job.job_id} is a replay without a cassette")
    return Replay(Cassette.load(await host.link.get_blob(job.cassette)), job.stage, job.round)


def spec_of(slot: Slot, instance: str, limits: Limits, *, runtime: str, deadline: float) -> SlotSpec:
    """Return what a sandbox in a slot is asked for; a job's and the proof's (`prove`) come from here, and from nowhere else."""
    uid, gid = slot.owner
    return SlotSpec(
        instance=instance,
        slot=slot.number,
        uid=uid,
        gid=gid,
        workspace=slot.workspace,
        task=slot.task,
        gateway=slot.sockets,
        out=slot.out,
        limits=limits,
        deadline=deadline,
        runtime=runtime,
    )


@asynccontextmanager
async def running_sandbox(host: Host, job: JobSpec, slot: Slot, image: str, account: Account) -> AsyncIterator[Sandbox]:
    """Start the container; at the end it is dead and removed, whatever happened."""
    deadline = account.started_at + job.limits.wall_s + excused_s_max(job) + CONTAINER_GRACE_S
    spec = spec_of(slot, host.instance, job.limits, runtime=job.runtime, deadline=deadline)
    async with _reachable(host, spec, image, account) as reachable:
        with account.trace.starting(image) as on_step:
            box = await host.runtime.stand_by(reachable, image, on_step)
        try:
            await box.assign(job.limits)
            yield box
        finally:
            # Shielded and bounded: a cancelled attempt must not leave its container behind.
            with account.trace.removing(box):
                await asyncio.wait_for(asyncio.shield(box.remove()), REMOVE_S)


def _reachable(host: Host, spec: SlotSpec, image: str, account: Account) -> AbstractAsyncContextManager[SlotSpec]:
    """Return what the sandbox is asked for, with the gateway's socket carried into it where the engine does not."""
    if host.relay is None or not account.is_relayed:
        return nullcontext(spec)
    return account.trace.timed("gateway relay start", host.relay(spec, image), "gateway relay remove")


@asynccontextmanager
async def held_lease(
    host: Host, delivery: Delivery, grant: ClaimReply, box: Sandbox, session: Session, account: Account
) -> AsyncIterator[Lease]:
    """Keep the claim alive; in doubt, container and gateway stand still (DECISIONS D2)."""

    async def pause() -> None:
        session.suspend()
        await box.pause()
        account.paused()

    async def resume() -> None:
        await box.unpause()
        session.resume()
        account.resumed()

    about = {"executor": host.config.name, "job_id": delivery.job.job_id, "ack_subject": delivery.ack_subject}
    request = ClaimRequest(**about, token=grant.token, goes_on=True)
    pace = host.config.pace
    mine = Lease(host.link, request, pause=pause, resume=resume, every_s=pace.renew_s, doubt_s=pace.doubt_s)
    async with mine.held() as lease:
        yield lease
