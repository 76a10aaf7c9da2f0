"""The executor: pulls jobs into free slots, runs them, gives results back, until it is told to drain; not one attempt (`attempt`).

The rule of NATS.md §0.3: claim, work with confirmed renewals, store the result, then ack. Never an ack before the result.
"""

import asyncio
import logging
import time

from sandbox.contract.errors import AndonError, BrokerError
from sandbox.contract.result import AttemptResult
from sandbox.contract.wire import ClaimReply, ClaimRequest, Control, Delivery, Heartbeat
from sandbox.executor.attempt import run_attempt
from sandbox.executor.config import Host
from sandbox.executor.ending import Cancel
from sandbox.executor.janitor import clean, remove_containers
from sandbox.executor.outbox import Outbox
from sandbox.executor.rescue import SlotLease, left_in, rescued
from sandbox.executor.slots import Slot

log = logging.getLogger(__name__)

FETCH_S = 15.0
HEARTBEAT_EVERY_S = 5.0
BROKER_BACKOFF_S = 1.0
CLAIM_RETRY_S = 2.0
CLAIM_TRIES_MAX = 20
STOP_DELIVERY_S = 5.0
"""How long an executor that is stopped at once tries to deliver what it has."""


class Daemon:
    """One executor process's work."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._outbox = Outbox(host.config.state / "results")
        self._running: dict[str, Cancel] = {}
        self._draining = asyncio.Event()
        self._stops_at: float | None = None

    def drain(self) -> None:
        """Take no new job; `run` returns when the running ones are done."""
        self._draining.set()

    def cancel_all(self, reason: str) -> None:
        """End every running attempt soon; their work is sealed and reported, or left on disk for the next process."""
        self._stops_at = time.monotonic() + STOP_DELIVERY_S
        self.drain()
        for cancel in self._running.values():
            cancel.ask(reason)

    async def run(self) -> None:
        """Work until drained."""
        await self._put_in_order()
        async with asyncio.TaskGroup() as background:
            aside = [background.create_task(self._beat()), background.create_task(self._listen())]
            async with asyncio.TaskGroup() as workers:
                for _ in self._host.slots.slots:
                    workers.create_task(self._work())
            for task in aside:
                task.cancel()

    async def _put_in_order(self) -> None:
        """Remove what a process before this one left behind, its work not before it is stored, and deliver its results."""
        removed = await remove_containers(self._host)
        over: list[str] = []
        for slot in (*self._host.slots.slots, *self._host.slots.left_over):
            lease = left_in(slot)
            if lease is not None and await self._rescue(slot, lease):
                over.append(lease.delivery.ack_subject)
            removed += await clean(slot)
        for line in removed:
            log.info("janitor.removed", extra={"what": line})
        for result in await self._outbox.left():
            await self._deliver(result)
        for ack_subject in over:
            await self._acknowledge(ack_subject)

    async def _rescue(self, slot: Slot, lease: SlotLease) -> bool:
        """Keep the result of an attempt that was cut off; return whether there is one."""
        try:
            await self._outbox.keep(await rescued(self._host, slot, lease))
        except BrokerError:  # the slot is not cleaned, so that the next start finds the work
            raise
        except AndonError as error:  # it can never be sealed: a slot that is stuck for ever would help nobody
            log.warning("work.not_salvaged", extra={"job_id": lease.delivery.job.job_id, "reason": str(error)})
            return False
        return True

    async def _work(self) -> None:
        async with self._host.slots.take() as slot:
            while not self._draining.is_set():
                delivery = await self._next()
                if delivery is not None:
                    await self._take(slot, delivery)

    async def _next(self) -> Delivery | None:
        """Pull a job unless told to drain; an error waits a second, so that a broken broker is not hammered."""
        pulling = asyncio.create_task(self._host.link.next_job(FETCH_S))
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait({pulling, draining}, return_when=asyncio.FIRST_COMPLETED)
            return pulling.result() if pulling.done() else None
        except BrokerError:
            await asyncio.sleep(BROKER_BACKOFF_S)
            return None
        finally:
            for task in (pulling, draining):
                task.cancel()
            await asyncio.gather(pulling, draining, return_exceptions=True)

    async def _take(self, slot: Slot, delivery: Delivery) -> None:
        job_id = delivery.job.job_id
        if job_id in self._running:
            # Our own job again, after a cut longer than its lease: a claim would void the attempt that is running here.
            await asyncio.sleep(BROKER_BACKOFF_S)
            return
        grant = await self._claim(delivery)
        if grant is None or grant.decision in {"busy", "refused"}:
            log.warning("job.not_taken", extra={"job_id": job_id, "reason": grant.reason if grant else "no answer to the claim"})
            await asyncio.sleep(BROKER_BACKOFF_S)
            return
        if grant.decision in {"done", "gone"}:
            await self._acknowledge(delivery.ack_subject)
            return
        cancel = self._running[job_id] = Cancel()
        log.info("attempt.started", extra={"job_id": job_id, "attempt": grant.attempt, "slot": slot.number})
        try:
            result = await run_attempt(self._host, slot, delivery, grant, cancel)
        finally:
            del self._running[job_id]
        log.info("attempt.ended", extra={"job_id": job_id, "attempt": grant.attempt, "outcome": result.outcome.value})
        await self._outbox.keep(result)
        await self._deliver(result)
        # Ack after the result is stored: a crash in between costs a duplicate attempt, the other order costs the result.
        await self._acknowledge(delivery.ack_subject)

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

    async def _deliver(self, result: AttemptResult) -> None:
        """Publish until it is stored; a broker that is away is waited for, unless we are told to stop: the file outlives us."""
        while True:
            try:
                await self._host.link.publish_result(result)
                break
            except BrokerError:
                if self._stops_at is not None and time.monotonic() > self._stops_at:
                    return
                await asyncio.sleep(BROKER_BACKOFF_S)
        await self._outbox.drop(result)

    async def _acknowledge(self, ack_subject: str) -> None:
        try:
            await self._host.link.ack(ack_subject)
        except BrokerError:  # harmless: the job comes again and its claim says done
            log.info("ack.unconfirmed")

    async def _beat(self) -> None:
        config = self._host.config
        while True:
            beat = Heartbeat(
                executor=config.name,
                release=config.release,
                pools=config.pools,
                labels=config.labels,
                slots=config.slots,
                busy=len(self._running),
                model="live" if self._host.upstream else "none",
                missing=self._host.missing,
            )
            started = time.monotonic()
            try:
                await self._host.link.heartbeat(beat)
            except BrokerError:  # the next one tries again
                log.info("heartbeat.unsent")
            await asyncio.sleep(max(0.0, HEARTBEAT_EVERY_S - (time.monotonic() - started)))

    async def _listen(self) -> None:
        async for control in self._host.link.controls():
            self._obey(control)

    def _obey(self, control: Control) -> None:
        if control.verb == "drain":
            self.drain()
        elif control.job_id in self._running:
            self._running[control.job_id].ask(control.reason or "asked by the supervisor")
