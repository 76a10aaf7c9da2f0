"""The executor: pulls jobs into free slots, runs them, gives results back, until it is told to drain; not one attempt (`attempt`).

The rule of NATS.md §0.3: claim, work with confirmed renewals, store the result, then ack. Never an ack before the result.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from sandbox.contract.errors import AndonError, BrokerError, InfrastructureError, UsageError
from sandbox.contract.result import AttemptResult, Outcome
from sandbox.contract.wire import ClaimReply, ClaimRequest, Control, Delivery
from sandbox.executor.attempt import run_attempt
from sandbox.executor.config import Host
from sandbox.executor.disk import DiskWatch
from sandbox.executor.ending import Cancel
from sandbox.executor.janitor import Janitor
from sandbox.executor.life_sign import LifeSign
from sandbox.executor.membership import Membership
from sandbox.executor.post import Letter, Post
from sandbox.executor.readiness import Readiness
from sandbox.executor.rescue import KILLED, promised
from sandbox.executor.slots import Slot
from sandbox.log import Log, about, of_attempt, of_job

log = Log(__name__)

FETCH_S = 15.0
BROKER_BACKOFF_S = 1.0
CLAIM_RETRY_S = 2.0
CLAIM_TRIES_MAX = 20
SLOT_RETRY_S = 5.0
"""How soon a slot whose work could not be salvaged is tried again; it takes no job until then."""


class Daemon:
    """One executor process's work."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._running: dict[str, Cancel] = {}
        self._ready = Readiness()
        self._post = Post(host.link, host.outbox, host.config.pace)
        self._membership = Membership(host.config, host.link, self._ready)
        self._slots = {slot.number: asyncio.Lock() for slot in (*host.slots.slots, *host.slots.left_over)}
        self._janitor = Janitor(
            host, is_busy=lambda number: number in self._slots and self._slots[number].locked(), salvage=self._post.later
        )
        self._refusal = ""

    def drain(self, why: str = "draining") -> None:
        """Take no new job; `run` returns when the running ones are done."""
        if not self._ready.has_ended:
            log.info("executor.draining", f"{why}: no new job is taken", running=len(self._running))
            self._ready.end(why)

    def cancel_all(self, reason: str) -> None:
        """End every running attempt soon; their work is sealed and reported, or left on disk for the next process."""
        self._post.stop_soon()
        self.drain()
        for cancel in self._running.values():
            cancel.ask(reason)

    async def run(self) -> None:
        """Work until drained.

        Raises:
            UsageError: The supervisor refuses this executor; what ran has ended.
        """
        life = LifeSign(self._host, self._ready, self._membership, lambda: len(self._running))
        config = self._host.config
        disk = DiskWatch(config.state, config.disk_floor_mib, self._ready, config.pace.look_s)
        disk.look()
        self._ready.hold("start", "putting in order what an earlier process left")
        async with asyncio.TaskGroup() as group:
            beside: list[Coroutine[Any, Any, None]] = [life.beat(), disk.watch(), self._listen(), self._belong(), self._post.serve()]
            aside = [group.create_task(work) for work in beside]
            await self._put_in_order()
            aside.append(group.create_task(self._sweep()))
            async with asyncio.TaskGroup() as workers:
                for slot in self._host.slots.slots:
                    workers.create_task(self._work(slot))
            await self._post.wait_empty()
            for task in aside:
                task.cancel()
        if self._refusal:
            raise UsageError(self._refusal)

    async def _put_in_order(self) -> None:
        """Remove what a process before this one left behind, its work not before it is kept, and deliver its results."""
        kept = await self._host.outbox.left()
        await self._janitor.sweep()
        for slot in self._host.slots.slots:
            await self._is_in_order(slot)
        for result in kept:
            await self._post.deliver(Letter(result))
        await self._post.wait_empty()
        self._ready.free("start")

    async def _belong(self) -> None:
        self._refusal = await self._membership.wait_refused()
        self.drain("refused by the supervisor")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._host.config.pace.sweep_s)
            await self._janitor.sweep()

    async def _work(self, slot: Slot) -> None:
        while not self._ready.has_ended:
            if not await self._is_in_order(slot):
                await asyncio.sleep(SLOT_RETRY_S)
                continue
            await self._ready.wait_free()
            delivery = await self._next()
            if delivery is not None:
                await self._take(slot, delivery)

    async def _is_in_order(self, slot: Slot, why: str = KILLED) -> bool:
        """Salvage and empty a slot; return whether a job may go there."""
        async with self._slots[slot.number]:
            try:
                await self._janitor.put_in_order(slot, why)
            except (AndonError, OSError) as error:
                log.warning(
                    "slot.unusable", "a slot takes no job until its work is salvaged", error=error, slot=slot.number, directory=slot.home
                )
                return False
            return True

    async def _next(self) -> Delivery | None:
        """Pull a job unless there is a reason not to; an error waits a second, so that a broken broker is not hammered."""
        pulling = asyncio.create_task(self._host.link.next_job(FETCH_S))
        held = asyncio.create_task(self._ready.wait_held())
        try:
            await asyncio.wait({pulling, held}, return_when=asyncio.FIRST_COMPLETED)
            return pulling.result() if pulling.done() else None
        except BrokerError:
            await asyncio.sleep(BROKER_BACKOFF_S)
            return None
        finally:
            for task in (pulling, held):
                task.cancel()
            await asyncio.gather(pulling, held, return_exceptions=True)

    async def _take(self, slot: Slot, delivery: Delivery) -> None:
        with about(**of_job(delivery.job.job_id), delivery=delivery.deliveries):
            await self._take_one(slot, delivery)

    async def _take_one(self, slot: Slot, delivery: Delivery) -> None:
        job_id = delivery.job.job_id
        log.info("job.received")
        if job_id in self._running:
            # Our own job again, after a cut longer than its lease: a claim would void the attempt that is running here.
            await asyncio.sleep(BROKER_BACKOFF_S)
            return
        grant = await self._claim(delivery)
        if grant is None or grant.decision in {"busy", "refused"}:
            log.warning("job.refused", "the job may not be worked on here now", reason=grant.reason if grant else "no answer to the claim")
            if grant is not None and grant.decision == "refused":
                self._membership.renew()  # it says whether this executor is refused, or only this job
            await asyncio.sleep(BROKER_BACKOFF_S)
            return
        if grant.decision in {"done", "gone"}:
            await self._post.acknowledge(delivery.ack_subject)
            return
        with about(**of_attempt(job_id, grant.attempt, grant.traceparent[-2:])):
            await self._attempt(slot, delivery, grant)

    async def _attempt(self, slot: Slot, delivery: Delivery, grant: ClaimReply) -> None:
        """Run one granted attempt and deliver its result; work it could not keep is salvaged from its slot."""
        job_id = delivery.job.job_id
        cancel = self._running[job_id] = Cancel()
        log.info("attempt.started", slot=slot.number)
        async with promised(slot, delivery, grant):
            try:
                async with self._slots[slot.number]:
                    result = await run_attempt(self._host, slot, delivery, grant, cancel)
            finally:
                del self._running[job_id]
            _say_ended(result)
            if slot.lease_file.exists():
                await self._is_in_order(slot, result.reason)
                return
            try:
                await self._host.outbox.keep(result)
            except InfrastructureError as error:  # what it says is on disk already, but for its last second
                log.warning("result.unkept", "the result's last second is not on disk", error=error)
        await self._post.deliver(Letter(result, delivery.ack_subject))

    async def _claim(self, delivery: Delivery) -> ClaimReply | None:
        """Ask for the attempt, keeping the delivery alive while the supervisor is away; None when it stays away."""
        request = ClaimRequest(executor=self._host.config.name, job_id=delivery.job.job_id, ack_subject=delivery.ack_subject)
        for _ in range(CLAIM_TRIES_MAX):
            try:
                return await self._host.link.claim(request)
            except BrokerError:
                await asyncio.sleep(CLAIM_RETRY_S)
            try:
                await self._host.link.in_progress(delivery.ack_subject)
            except BrokerError:
                continue
        return None

    async def _listen(self) -> None:
        while True:
            try:
                async for control in self._host.link.controls():
                    self._obey(control)
            except BrokerError:  # whether it is gone for good is seen elsewhere (`wait_lost`)
                log.info("controls.interrupted", "not listening to the supervisor now")
            await asyncio.sleep(BROKER_BACKOFF_S)

    def _obey(self, control: Control) -> None:
        if control.verb == "drain":
            self.drain()
        elif control.job_id in self._running:
            self._running[control.job_id].ask(control.reason or "asked by the supervisor")


def _say_ended(result: AttemptResult) -> None:
    outcome, duration_ms = result.outcome.value, round((result.ended_at - result.started_at) * 1000)
    if result.outcome is Outcome.SUBMITTED:
        log.info("attempt.ended", outcome=outcome, duration_ms=duration_ms, cost_nano_usd=result.cost_nano_usd)
        return
    # With a submission the reason is in the agent's own words, which are in the result and not for a log.
    why = {"error.type": result.cause or outcome, "error.message": result.reason if result.submission is None else ""}
    log.warning("attempt.ended", "", why, outcome=outcome, duration_ms=duration_ms, cost_nano_usd=result.cost_nano_usd)
