"""The spans of one attempt (TRACING.md §2): what the host did, the model calls, the tool calls; not when they are sent (`account`).

A span that has children is ours, never the container's: its death loses at most the tool call in flight. They
have derived ids, so that the supervisor can end them for an executor that died (`supervisor/api/traces/run_trace`).
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TypeVar

from opentelemetry.trace import SpanKind

from sandbox.contract.errors import AndonError
from sandbox.contract.ids import attempt_path, check_span_id, process_span_id, program_span_id, queue_span_id
from sandbox.contract.result import CheckReport, Outcome
from sandbox.contract.wire import ClaimReply, Delivery
from sandbox.executor.config import Host
from sandbox.executor.ending import Ending
from sandbox.gateway.chat_span import chat_span
from sandbox.gateway.fetch_span import fetch_span
from sandbox.gateway.otlp_body import TracesBody
from sandbox.gateway.otlp_relay import OtlpRelay
from sandbox.gateway.registries.proxy import FetchReport
from sandbox.gateway.session import Session
from sandbox.gateway.tally import CallReport
from sandbox.runtime.container_spec import Exit, OnStep, Sandbox, Step, unheard
from sandbox.telemetry import APART_S, Attribute, Context, OpenSpan

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
        self._booted_at = started_at
        self._called_at: float | None = None
        """When the first model call began."""
        self._exit: Exit | None = None

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
            # A job waits in the supervisor until an executor has room, and then on its lane: one wait.
            start = min(self._grant.dispatched_at or published, published)
            wait = self._host.exec_spans.start(
                "queue wait",
                trace_id=parent.trace_id,
                parent=parent.span_id,
                span_id=queue_span_id(self._path),
                start=start,
                attributes={"andon.queue.unpublished_s": round(published - start, 3)},
            )
            wait.end(max(published, self._started_at) - APART_S)

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Attribute] | None = None) -> Iterator[OpenSpan | None]:
        """Run a block as a span below the attempt's."""
        if self._process is None:
            yield None
            return
        with self._host.exec_spans.span(name, parent=self._process.context, attributes=attributes) as span:
            yield span

    @asynccontextmanager
    async def timed(self, entering: str, lifetime: AbstractAsyncContextManager[_T], leaving: str) -> AsyncIterator[_T]:
        """Enter a lifetime inside a span of the one name, and leave it inside one of the other."""
        async with AsyncExitStack() as entered:
            with self.span(entering):
                value = await entered.enter_async_context(lifetime)
            stack = entered.pop_all()
        left_at = 0.0
        try:
            async with stack:
                try:
                    yield value
                finally:
                    left_at = time.time()
        finally:
            self._past(leaving, self._process, left_at, time.time())

    def _past(self, name: str, parent: OpenSpan | None, start: float, end: float) -> None:
        """Make a span of what is over; without a parent, none."""
        if parent is not None:
            self._below(parent, name, start).end(max(start, end - APART_S))

    def _below(
        self,
        parent: OpenSpan,
        name: str,
        start: float | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        span_id: str | None = None,
    ) -> OpenSpan:
        of = parent.context
        make = self._host.exec_spans.start
        return make(name, trace_id=of.trace_id, parent=of.span_id, span_id=span_id, start=start, attributes=attributes)

    @contextmanager
    def starting(self, image: str) -> Iterator[OnStep]:
        """Run a block as the creation and then the start of the container; each step has to be told to what this yields."""
        process = self._process
        if process is None:
            yield unheard
            return
        limits = self._job.limits
        attributes: dict[str, Attribute] = {
            "container.image.id": image,
            "container.runtime.name": self._job.runtime,
            "andon.sandbox.network": self._job.network,
            "andon.sandbox.memory_mib": limits.memory_mib,
            "andon.sandbox.cpus": limits.cpus,
            "andon.sandbox.pids_max": limits.pids_max,
        }
        steps = _Steps(lambda name, container: self._below(process, name, None, attributes | container))
        try:
            yield steps.take
        except BaseException as error:
            steps.end(type(error).__name__)
            raise
        steps.end()

    @contextmanager
    def removing(self, box: Sandbox) -> Iterator[None]:
        """Run a block as the removal of the container; it says how the container ended, if that is known."""
        with self.span("container remove", {"container.id": box.container_id, **(_end_of(self._exit) if self._exit else {})}):
            yield

    @contextmanager
    def invoking(self, box: Sandbox, session: Session) -> Iterator[str]:
        """Open the span of the program in the container; yields its traceparent."""
        if self._process is None:
            yield self._grant.traceparent
            return
        parent = self._process.context
        own_id = program_span_id(self._path)
        with self._host.exec_spans.span(self._name(), parent=parent, span_id=own_id, attributes=self._identity(box)) as span:
            self._program = span
            begun = time.time()  # after its span's beginning: what is in its life is in its span
            users = self._host.user_spans if self._parent is None or self._parent.sampled else None
            box_id: dict[str, Attribute] = {"container.id": box.container_id}
            self._relay = OtlpRelay(self._host.agent_spans, span.context, begun, time.time, box_id, users)
            try:
                yield replace(span.context, sampled=self._parent is None or self._parent.sampled).traceparent
            finally:
                self._ran = (begun, time.time())
                dropped = session.dropped
                span.put({"andon.agent.turns": session.view.turn, "andon.gateway.refused": dropped["requests"]})
                span.put({"andon.telemetry.dropped": self._relay.dropped, "andon.telemetry.refused": dropped["traces"]})
                span.put({"andon.telemetry.attributes_dropped": self._relay.attributes_dropped})
                self._life(span, session)

    def _life(self, program: OpenSpan, session: Session) -> None:
        """Show what of the program's time is not work: until it is heard of, until it begins, after it has submitted."""
        begun, ended = self._ran
        self._booted_at = max(begun, session.first_byte_at or begun)
        if session.first_byte_at is not None:
            self._past("agent boot", program, begun, self._booted_at)
        # Our own agent says itself what it does until its first call (`agent import`).
        if self._called_at is not None and self._job.agent is not None and self._job.agent.driver.kind != "builtin":
            self._past("agent prepare", program, self._booted_at, min(self._called_at, ended))
        if session.submitted_at is not None:
            self._past("agent exit", program, session.submitted_at, ended)

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
        self._exit = exit_
        if self._program is not None:
            self._program.put(_end_of(exit_))

    def on_call(self, report: CallReport) -> None:
        """Take one settled model call; the gateway calls this."""
        self._called_at = self._called_at or report.started_at
        if self._program is not None:
            chat_span(self._host.gateway_spans, self._program.context, report)

    def on_fetch(self, report: FetchReport) -> None:
        """Take one request for a package; the gateway calls this."""
        if self._program is not None:
            fetch_span(self._host.gateway_spans, self._program.context, report)

    def on_traces(self, body: TracesBody) -> None:
        """Take spans of the program inside, and of tools and checks, which are not trusted; the gateway calls this."""
        if self._relay is not None:
            self._relay.take(body)

    def checks(self, reports: tuple[CheckReport, ...]) -> None:
        """Make a span of each check, from what the runner said of it: shown, never believed; what its commands traced hangs below it."""
        if self._program is None:
            return
        begun, ended = self._ran
        is_first = True
        made: dict[str, str] = {}
        for report in reports:
            if report.exit is None or not report.exit.started_at:
                continue
            code = report.exit.exit_code
            start = min(max(report.exit.started_at, begun), ended)
            attributes: dict[str, Attribute] = {"andon.check.name": report.name, "andon.check.passed": code == 0}
            if is_first:
                self._past("agent prepare", self._program, min(self._booted_at, start), start)
            is_first = False
            given = check_span_id(self._program.context.span_id, report.name)
            span = self._below(self._program, f"check {report.name}", start, attributes, None if given in made else given)
            made.setdefault(given, span.context.span_id)
            if code is not None:
                span.put({"process.exit.code": code})
            # A red check is a result, not an error of the system; one that hung is.
            span.end(min(start + report.exit.duration_s, ended), error_type="timeout" if code is None else None)
        if self._relay is not None:
            self._relay.finish(made)

    def payloads(self, ending: Ending, ended_at: float) -> list[bytes]:
        """End the attempt's span and return everything as gzip OTLP requests, each once."""
        if self._parent is None:
            return []
        if self._relay is not None:
            self._relay.finish()
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
        services = (self._host.exec_spans, self._host.gateway_spans, self._host.agent_spans, self._host.user_spans)
        if not self._parent.sampled:
            return [figures for spans in services for figures in spans.measure(self._parent.trace_id)]
        return [payload for spans in services for payload in spans.drain(self._parent.trace_id)]


class _Steps:
    """The spans of a start: `container create`, which includes the wait for a turn, and then `container start`."""

    def __init__(self, begin: Callable[[str, dict[str, Attribute]], OpenSpan]) -> None:
        self._begin = begin
        self._asked_at = time.time()
        self._span = begin("container create", {})

    def take(self, step: Step, container_id: str) -> None:
        if step == "create":
            self._span.put({"andon.container.waited_s": round(time.time() - self._asked_at, 3)})
            return
        known: dict[str, Attribute] = {"container.id": container_id}
        self._span.put(known)
        self._span.end()
        self._span = self._begin("container start", known)

    def end(self, error_type: str | None = None) -> None:
        self._span.end(error_type=error_type)


def _end_of(exit_: Exit) -> dict[str, Attribute]:
    return {"process.exit.code": exit_.code, "andon.container.oom_killed": exit_.oom_killed}
