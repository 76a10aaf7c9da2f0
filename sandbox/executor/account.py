"""What is told of one attempt while it runs and when it ends: progress, the result; it decides nothing. Its spans: `attempt_trace`."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal, TypeVar

from sandbox.contract.errors import BrokerError
from sandbox.contract.packages import Fetched
from sandbox.contract.result import AttemptResult, SandboxRecord, Usage
from sandbox.contract.wire import ClaimReply, Delivery, Progress
from sandbox.executor.attempt_trace import AttemptTrace
from sandbox.executor.beside import beside
from sandbox.executor.config import Host
from sandbox.executor.ending import Ending
from sandbox.executor.last_words import retell
from sandbox.executor.outputs import Outputs
from sandbox.executor.protections import check_strict
from sandbox.executor.slots import NO_UID_OF_ITS_OWN, Slot
from sandbox.gateway.session import Session
from sandbox.log import ID_CHARS, Log, note
from sandbox.runtime.container_spec import Exit, LastWords, Sandbox
from sandbox.runtime.relay import RELAYED

log = Log(__name__)

PROGRESS_EVERY_S = 0.5
UNSENT_PAYLOADS_MAX = 256
"""Of spans, each at most one message of the bus; the oldest go first."""

_T = TypeVar("_T")

Phase = Literal["preparing", "starting", "running", "throttled", "paused", "sealing"]


class Account:
    """The record of one attempt."""

    def __init__(self, host: Host, delivery: Delivery, grant: ClaimReply, slot: Slot) -> None:
        """Begin the record at the claim."""
        self._host = host
        self._delivery = delivery
        self._job = delivery.job
        self._grant = grant
        self._phase: Phase = "preparing"
        self._session: Session | None = None
        self._shown: tuple[str, ...] = ()
        self._lowered = delivery.job.agent.driver.lowers if delivery.job.agent else ()
        self._sandbox = SandboxRecord(uid=slot.uid, missing=() if slot.uid is not None else (NO_UID_OF_ITS_OWN,))
        self.started_at = time.time()
        self._unsent: list[bytes] = []
        """Payloads of spans, each removed when the broker has it."""
        self.trace = AttemptTrace(host, delivery, grant, self.started_at)

    def showed(self, missing: tuple[str, ...]) -> None:
        """Note what the runtime does without, as its first container showed."""
        self._shown = missing

    @property
    def is_relayed(self) -> bool:
        """Return whether the engine carries no sockets, so that the gateway sees one caller, the relay's end."""
        return RELAYED in self._shown

    def started(self, box: Sandbox, image: str, missing: tuple[str, ...]) -> None:
        """Note what the sandbox is, and refuse it if the job is strict and it lacks anything.

        Raises:
            ProtectionMissing: It is strict; nothing was assigned yet.
        """
        self._phase = "running"
        self._sandbox = SandboxRecord(
            container_id=box.container_id,
            image_id=image,
            runtime=self._job.runtime,
            uid=self._sandbox.uid,
            missing=tuple(
                dict.fromkeys((*self._lowered, *self._host.missing, *self._sandbox.missing, *missing, *box.missing, *self._shown))
            ),
        )
        note(container_id=box.container_id[:ID_CHARS])
        log.info("container.started", image=image, duration_ms=round((time.time() - self.started_at) * 1000))
        if self._job.strict:
            check_strict(self._sandbox.missing)

    def exited(self, exit_: Exit, words: LastWords, ending: Ending) -> None:
        """Note how the container ended, and in the log what it printed last if its program ended without a word to us."""
        self.trace.died(exit_)
        log.info("container.exited", exit_code=exit_.code, oom_killed=exit_.oom_killed)
        has_spoken = self._session is not None and self._session.submission is not None
        retell(words, is_needed=not has_spoken and ending.cause != "cancelled")

    def paused(self) -> None:
        """Note that the attempt stands still: its lease is in doubt."""
        self._phase = "paused"

    def resumed(self) -> None:
        """Note that it goes on."""
        self._phase = "running"

    def sealing(self) -> None:
        """Note that the container is dead and its work is being read."""
        self._phase = "sealing"

    @asynccontextmanager
    async def reporting(self, session: Session) -> AsyncIterator[None]:
        """Publish progress, which may be dropped, and spans that have ended, which are kept until they are sent, while the block lasts."""
        self._session = session
        async with beside(self._say()), beside(self._tell_spans()):
            yield

    async def _say(self) -> None:
        last: Progress | None = None
        while True:
            now = self._progress()
            if now != last:
                try:
                    await self._host.link.publish_progress(now)
                    last = now
                except BrokerError:  # droppable by contract
                    last = None
            await asyncio.sleep(PROGRESS_EVERY_S)

    def _progress(self) -> Progress:
        view = self._session.view if self._session else None
        return Progress(
            executor=self._host.config.name,
            run_id=self._job.run_id,
            job_id=self._job.job_id,
            stage=self._job.stage,
            round=self._job.round,
            attempt=self._grant.attempt,
            phase="throttled" if view and view.is_limited and self._phase == "running" else self._phase,
            turn=view.turn if view else 0,
            tool=view.tool if view else "",
            tokens=view.tokens if view else 0,
            cost_nano_usd=view.cost_nano_usd if view else 0,
        )

    async def result(self, ending: Ending, outputs: Outputs | None = None, session: Session | None = None) -> AttemptResult:
        """Close the record, store its spans, and return the result."""
        final = self.draft(ending, outputs, session)
        await self._store_spans(ending, final.ended_at)
        return final

    def draft(self, ending: Ending, outputs: Outputs | None = None, session: Session | None = None) -> AttemptResult:
        """Return the result as it is known now, its spans not stored."""
        left = outputs or Outputs()
        return AttemptResult(
            job_id=self._job.job_id,
            run_id=self._job.run_id,
            stage=self._job.stage,
            round=self._job.round,
            attempt=self._grant.attempt,
            token=self._grant.token,
            executor=self._host.config.name,
            outcome=ending.outcome,
            reason=ending.reason,
            cause=ending.cause,
            submission=session.submission if session else None,
            commit=left.commit,
            git_bundle=left.git_bundle,
            remains=left.remains,
            reports=left.reports,
            findings=left.findings,
            dropped=left.dropped,
            recording=left.recording,
            divergences=session.divergences if session else 0,
            log=left.log,
            sandbox=self._sandbox,
            usage=session.usage if session else Usage(),
            cost_nano_usd=session.cost_nano_usd if session else 0,
            fetched=session.fetched if session else Fetched(),
            started_at=self.started_at,
            first_instruction_at=session.first_byte_at if session else None,
            ended_at=time.time(),
        )

    def keep_spans(self, payloads: Sequence[bytes] | None = None) -> None:
        """Keep payloads until they are sent, by default of what has ended; beyond `UNSENT_PAYLOADS_MAX` the oldest go."""
        self._unsent += self.trace.ended() if payloads is None else payloads
        self._unsent = self._unsent[-UNSENT_PAYLOADS_MAX:]

    async def _tell_spans(self) -> None:
        """Send now and then what has ended: it is seen while the attempt goes on, and outlives us."""
        while True:
            await asyncio.sleep(self._host.config.pace.spans_s)
            self.keep_spans()
            await self._send_spans()

    async def _store_spans(self, ending: Ending, ended_at: float) -> None:
        """Send the spans before the result, so that a finished run has a whole trace (TRACING.md §6)."""
        self.keep_spans(self.trace.payloads(ending, ended_at))
        await self._send_spans()

    async def _send_spans(self) -> None:
        """Send what is not sent yet, in order; with the broker away it waits for the next time."""
        while self._unsent:
            try:
                await self._host.link.publish_telemetry(self._unsent[0])
            except BrokerError:  # a trace is never worth a result
                return
            del self._unsent[0]
