"""What is told of one attempt while it runs and when it ends: progress, spans, the result; it decides nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import Literal, TypeVar

from opentelemetry.trace import SpanKind

from sandbox.contract.errors import BrokerError
from sandbox.contract.result import AttemptResult, Outcome, SandboxRecord, Usage
from sandbox.contract.wire import ClaimReply, Delivery, Progress
from sandbox.executor.beside import beside
from sandbox.executor.config import Host
from sandbox.executor.ending import Ending
from sandbox.executor.outputs import Outputs
from sandbox.executor.slots import NO_UID_OF_ITS_OWN, Slot
from sandbox.gateway.chat_span import chat_span
from sandbox.gateway.otlp_relay import OtlpRelay
from sandbox.gateway.session import Session
from sandbox.gateway.tally import CallReport
from sandbox.runtime.container_spec import Sandbox
from sandbox.telemetry import Attribute, Context, OpenSpan

PROGRESS_EVERY_S = 0.5

_T = TypeVar("_T")

Phase = Literal["preparing", "starting", "running", "paused", "sealing"]


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
        self._sandbox = SandboxRecord(uid=slot.uid, missing=() if slot.uid is not None else (NO_UID_OF_ITS_OWN,))
        self._parent = Context.parse(grant.traceparent)
        self._process: OpenSpan | None = None
        self._agent: Context | None = None
        self._relay: OtlpRelay | None = None
        self.started_at = time.time()

    @contextmanager
    def processing(self) -> Iterator[None]:
        """Open the attempt's own span, child of the stage's (TRACING.md §2)."""
        if self._parent is None:
            yield
            return
        subject = f"andon.job.{self._job.pool}"
        self._process = self._host.exec_spans.start(
            f"process {subject}",
            trace_id=self._parent.trace_id,
            parent=self._parent.span_id,
            kind=SpanKind.CONSUMER,
            links=(self._parent,),
            attributes={
                "messaging.system": "nats",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": subject,
                "messaging.consumer.group.name": self._job.pool,
                "cicd.worker.id": self._host.config.name,
                "andon.delivery": self._delivery.deliveries,
                "andon.attempt": self._grant.attempt,
            },
        )
        self._queue_wait(self._parent)
        try:
            yield
        except BaseException as error:
            self._process.end(error_type=type(error).__name__)
            raise

    def _queue_wait(self, parent: Context) -> None:
        published = self._delivery.published_at
        if published and self._delivery.deliveries == 1:
            wait = self._host.exec_spans.start("queue wait", trace_id=parent.trace_id, parent=parent.span_id, start=published)
            wait.end(max(published, self.started_at))

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Attribute] | None = None) -> Iterator[OpenSpan | None]:
        """Run a block as a span below the attempt's."""
        if self._process is None:
            yield None
            return
        with self._host.exec_spans.span(name, parent=self._process.context, attributes=attributes) as span:
            yield span

    @asynccontextmanager
    async def timed(self, name: str, lifetime: AbstractAsyncContextManager[_T]) -> AsyncIterator[_T]:
        """Enter a lifetime inside a span of that name; the span ends when it is entered."""
        async with AsyncExitStack() as stack:
            with self.span(name):
                value = await stack.enter_async_context(lifetime)
            yield value

    @contextmanager
    def invoking(self, box: Sandbox, session: Session) -> Iterator[str]:
        """Open the span of the program in the container, owned by us so that its death loses no child; yields its traceparent."""
        if self._process is None:
            yield self._grant.traceparent
            return
        begun = time.time()
        parent = self._process.context
        name = self._job.agent.name if self._job.agent else f"{self._job.stage} checks"
        attributes: dict[str, Attribute] = {"container.id": box.container_id}
        if self._job.agent:
            attributes |= {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.provider.name": "anthropic",
                "gen_ai.agent.name": name,
                "gen_ai.request.model": self._job.agent.model,
                "gen_ai.conversation.id": f"{self._job.job_id}-{self._grant.attempt}",
            }
        verb = "invoke_agent" if self._job.agent else "run"
        with self._host.exec_spans.span(f"{verb} {name}", parent=parent, attributes=attributes) as span:
            self._agent = span.context
            self._relay = OtlpRelay(self._host.agent_spans, span.context, begun, time.time, {"container.id": box.container_id})
            try:
                yield span.context.traceparent
            finally:
                span.put({"andon.agent.turns": session.view.turn, "andon.telemetry.dropped": self._relay.dropped})
                if session.first_byte_at is not None:
                    boot = self._host.exec_spans.start("agent boot", trace_id=parent.trace_id, parent=span.context.span_id, start=begun)
                    boot.end(max(begun, session.first_byte_at))

    def on_call(self, report: CallReport) -> None:
        """Take one settled model call; the gateway calls this."""
        if self._agent is not None:
            chat_span(self._host.gateway_spans, self._agent, report)

    def on_traces(self, body: bytes) -> None:
        """Take spans of the program inside, which are not trusted; the gateway calls this."""
        if self._relay is not None:
            self._relay.take(body)

    def started(self, box: Sandbox, image: str, missing: tuple[str, ...]) -> None:
        """Note what the sandbox is."""
        self._phase = "running"
        self._sandbox = SandboxRecord(
            container_id=box.container_id,
            image_id=image,
            runtime=self._job.runtime,
            uid=self._sandbox.uid,
            missing=tuple(dict.fromkeys((*self._host.missing, *self._sandbox.missing, *missing, *box.missing))),
        )

    def sealing(self) -> None:
        """Note that the container is dead and its work is being read."""
        self._phase = "sealing"

    @asynccontextmanager
    async def reporting(self, session: Session) -> AsyncIterator[None]:
        """Publish progress twice a second until the block ends; what cannot be sent is dropped."""
        self._session = session
        async with beside(self._say()):
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
            phase=self._phase,
            turn=view.turn if view else 0,
            tool=view.tool if view else "",
            tokens=view.tokens if view else 0,
            cost_nano_usd=view.cost_nano_usd if view else 0,
        )

    async def result(self, ending: Ending, outputs: Outputs | None = None, session: Session | None = None) -> AttemptResult:
        """Close the record, store its spans, and return the result."""
        left = outputs or Outputs()
        ended_at = time.time()
        await self._store_spans(ending, ended_at)
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
            reports=left.reports,
            findings=left.findings,
            dropped=left.dropped,
            recording=left.recording,
            divergences=session.divergences if session else 0,
            log=left.log,
            sandbox=self._sandbox,
            usage=session.usage if session else Usage(),
            cost_nano_usd=session.cost_nano_usd if session else 0,
            started_at=self.started_at,
            first_instruction_at=session.first_byte_at if session else None,
            ended_at=ended_at,
        )

    async def _store_spans(self, ending: Ending, ended_at: float) -> None:
        """Send the spans before the result, so that a finished run has a whole trace (TRACING.md §6)."""
        if self._parent is None:
            return
        if self._process is not None:
            ok = ending.outcome is Outcome.SUBMITTED
            self._process.put({"cicd.pipeline.task.run.result": "success" if ok else "failure"})
            self._process.end(ended_at, error_type=None if ok else ending.outcome.value)
        for spans in (self._host.exec_spans, self._host.gateway_spans, self._host.agent_spans):
            for payload in spans.drain(self._parent.trace_id):
                try:
                    await self._host.link.publish_telemetry(payload)
                except BrokerError:  # a trace is never worth a result
                    return
