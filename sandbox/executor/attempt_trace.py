"""The spans of one attempt (TRACING.md §2): what the host did, the model calls, the tool calls; not when they are sent (`account`).

A span that has children is ours, never the container's: its death loses at most the tool call in flight. They
have derived ids, so that the supervisor can end them for an executor that died (`supervisor/api/trace`).
"""

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TypeVar

from opentelemetry.trace import SpanKind

from sandbox.contract.errors import AndonError
from sandbox.contract.ids import attempt_path, process_span_id, program_span_id, queue_span_id
from sandbox.contract.result import CheckReport, Outcome
from sandbox.contract.wire import ClaimReply, Delivery
from sandbox.executor.config import Host
from sandbox.executor.ending import Ending
from sandbox.gateway.chat_span import chat_span
from sandbox.gateway.fetch_span import fetch_span
from sandbox.gateway.otlp_relay import OtlpRelay
from sandbox.gateway.registries.proxy import FetchReport
from sandbox.gateway.session import Session
from sandbox.gateway.tally import CallReport
from sandbox.runtime.container_spec import Exit, Sandbox
from sandbox.telemetry import Attribute, Context, OpenSpan

_T = TypeVar("_T")


class AttemptTrace:
    """Makes the spans; without a parent in the claim's reply it makes none."""

    def __init__(self, host: Host, delivery: Delivery, grant: ClaimReply, started_at: float) -> None:
        """Begin at the claim, `started_at` in Unix seconds."""
        self._host = host
        self._delivery = delivery
        self._job = delivery.job
        self._grant = grant
        self._started_at = started_at
        self._parent = Context.parse(grant.traceparent)
        self._path = attempt_path(self._job.run_id, self._job.stage, self._job.round, grant.attempt)
        self._process: OpenSpan | None = None
        self._program: OpenSpan | None = None
        self._relay: OtlpRelay | None = None
        self._ran = (started_at, started_at)
        """When the program inside began and ended."""

    @contextmanager
    def processing(self) -> Iterator[None]:
        """Open the attempt's own span, child of the stage's; `payloads` ends it."""
        if self._parent is None:
            yield
            return
        subject = f"andon.job.{self._job.pool}"
        self._process = self._host.exec_spans.start(
            f"process {subject}",
            trace_id=self._parent.trace_id,
            parent=self._parent.span_id,
            span_id=process_span_id(self._path),
            kind=SpanKind.CONSUMER,
            start=self._started_at,
            links=(self._parent,),
            attributes={
                "messaging.system": "nats",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": subject,
                "messaging.consumer.group.name": self._job.pool,
                "cicd.worker.id": self._host.config.name,
                "andon.stage.name": self._job.stage,
                "andon.delivery": self._delivery.deliveries,
                "andon.attempt": self._grant.attempt,
            },
        )
        self._queue_wait(self._parent)
        try:
            yield
        except (AndonError, OSError):  # becomes a result, and `payloads` ends the span
            raise
        except BaseException as error:
            self._process.end(error_type=type(error).__name__)
            raise

    def _queue_wait(self, parent: Context) -> None:
        published = self._delivery.published_at
        # A later attempt waited for its turn to be repeated, not in the queue; its stage begins with its claim.
        if published and self._delivery.deliveries == 1 and self._grant.attempt == 1:
            own_id = queue_span_id(self._path)
            wait = self._host.exec_spans.start(
                "queue wait", trace_id=parent.trace_id, parent=parent.span_id, span_id=own_id, start=published
            )
            wait.end(max(published, self._started_at))

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
    def starting(self, image: str) -> Iterator[OpenSpan | None]:
        """Run a block as the start of the container."""
        limits = self._job.limits
        attributes: dict[str, Attribute] = {
            "container.image.id": image,
            "container.runtime.name": self._job.runtime,
            "andon.sandbox.network": self._job.network,
            "andon.sandbox.memory_mib": limits.memory_mib,
            "andon.sandbox.cpus": limits.cpus,
            "andon.sandbox.pids_max": limits.pids_max,
        }
        with self.span("container start", attributes) as span:
            yield span

    @contextmanager
    def invoking(self, box: Sandbox, session: Session) -> Iterator[str]:
        """Open the span of the program in the container; yields its traceparent."""
        if self._process is None:
            yield self._grant.traceparent
            return
        begun = time.time()
        parent = self._process.context
        own_id = program_span_id(self._path)
        with self._host.exec_spans.span(self._name(), parent=parent, span_id=own_id, attributes=self._identity(box)) as span:
            self._program = span
            self._relay = OtlpRelay(self._host.agent_spans, span.context, begun, time.time, {"container.id": box.container_id})
            try:
                yield replace(span.context, sampled=self._parent is None or self._parent.sampled).traceparent
            finally:
                self._ran = (begun, time.time())
                dropped = session.dropped
                span.put({"andon.agent.turns": session.view.turn, "andon.gateway.refused": dropped["requests"]})
                span.put({"andon.telemetry.dropped": self._relay.dropped, "andon.telemetry.refused": dropped["traces"]})
                span.put({"andon.telemetry.attributes_dropped": self._relay.attributes_dropped})
                if session.first_byte_at is not None:
                    boot = self._host.exec_spans.start("agent boot", trace_id=parent.trace_id, parent=span.context.span_id, start=begun)
                    boot.end(max(begun, session.first_byte_at))

    def _name(self) -> str:
        return f"invoke_agent {self._job.agent.name}" if self._job.agent else f"run {self._job.stage} checks"

    def _identity(self, box: Sandbox) -> dict[str, Attribute]:
        ours: dict[str, Attribute] = {"container.id": box.container_id}
        if self._job.agent is None:
            return ours
        return ours | {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "anthropic",
            "gen_ai.agent.name": self._job.agent.name,
            "gen_ai.request.model": self._job.agent.model,
            "gen_ai.conversation.id": f"{self._job.job_id}-{self._grant.attempt}",
        }

    def died(self, exit_: Exit) -> None:
        """Note how the container ended; within `invoking`."""
        if self._program is not None:
            self._program.put({"process.exit.code": exit_.code, "andon.container.oom_killed": exit_.oom_killed})

    def on_call(self, report: CallReport) -> None:
        """Take one settled model call; the gateway calls this."""
        if self._program is not None:
            chat_span(self._host.gateway_spans, self._program.context, report)

    def on_fetch(self, report: FetchReport) -> None:
        """Take one request for a package; the gateway calls this."""
        if self._program is not None:
            fetch_span(self._host.gateway_spans, self._program.context, report)

    def on_traces(self, body: bytes) -> None:
        """Take spans of the program inside, which are not trusted; the gateway calls this."""
        if self._relay is not None:
            self._relay.take(body)

    def checks(self, reports: tuple[CheckReport, ...]) -> None:
        """Make a span of each check, from what the runner said of it: shown, never believed."""
        if self._program is None:
            return
        begun, ended = self._ran
        parent = self._program.context
        for report in reports:
            if report.exit is None or not report.exit.started_at:
                continue
            code = report.exit.exit_code
            start = min(max(report.exit.started_at, begun), ended)
            attributes: dict[str, Attribute] = {"andon.check.name": report.name, "andon.check.passed": code == 0}
            span = self._host.exec_spans.start(
                f"check {report.name}", trace_id=parent.trace_id, parent=parent.span_id, start=start, attributes=attributes
            )
            if code is not None:
                span.put({"process.exit.code": code})
            # A red check is a result, not an error of the system; one that hung is.
            span.end(min(start + report.exit.duration_s, ended), error_type="timeout" if code is None else None)

    def payloads(self, ending: Ending, ended_at: float) -> list[bytes]:
        """End the attempt's span and return everything as gzip OTLP requests, each once."""
        if self._parent is None:
            return []
        if self._process is not None:
            ok = ending.outcome is Outcome.SUBMITTED
            self._process.put({"cicd.pipeline.task.run.result": "success" if ok else "failure"})
            self._process.end(ended_at, error_type=None if ok else ending.outcome.value)
        return self.ended()

    def ended(self) -> list[bytes]:
        """Return what has ended since the last time as gzip OTLP requests; the supervisor ends what is open, should we die.

        Of a run that is not sampled no span leaves this process: metrics get the durations (`contract.figures`).
        """
        if self._parent is None:
            return []
        services = (self._host.exec_spans, self._host.gateway_spans, self._host.agent_spans)
        if not self._parent.sampled:
            return [figures for spans in services for figures in spans.measure(self._parent.trace_id)]
        return [payload for spans in services for payload in spans.drain(self._parent.trace_id)]
