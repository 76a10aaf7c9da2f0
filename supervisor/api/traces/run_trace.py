"""A run's events as spans: the supervisor's part of the one trace (TRACING.md §2); where they go is `sink`.

Every span gets an id derived from the run, so that a resumed supervisor ends the very span a dead one announced, and what is
made again after a crash is the same span, which the sink keeps once. Stages are made when they end, from the events alone; what
a crash left out is made at the run's end.
"""

from collections.abc import Callable

from opentelemetry.trace import SpanKind

from sandbox.contract.ids import attempt_path, process_span_id, program_span_id, queue_span_id, span_id
from sandbox.contract.result import Outcome
from sandbox.telemetry import APART_S, Attribute, Context, Spans
from supervisor.pipeline.events import (
    AnyEvent,
    AttemptEnded,
    JobDispatched,
    JobJudged,
    Joined,
    RunAccepted,
    RunCancelled,
    RunFailed,
    RunLanded,
    RunParked,
    RunResumed,
)
from supervisor.pipeline.run import FINAL, AttemptState, JobState, RunState

RESULTS = {"landed": "success", "failed": "failure", "cancelled": "cancellation", "parked": "timeout"}
PAGES = "http://127.0.0.1:8950"
"""Where a run's page is (DECISIONS D15)."""
_TASK_TYPE = {"validate": "test", "baseline": "test", "red-check": "test", "land": "deploy"}


class RunTrace:
    """Turns events of runs into spans as they happen; one per supervisor."""

    def __init__(
        self,
        spans: Spans,
        store: Callable[[str, bytes], None],
        container_below: Callable[[str, str], str | None] = lambda _run, _span: None,
    ) -> None:
        """Make the supervisor's spans.

        Args:
            spans: Makes them.
            store: Takes a run's id and a gzip OTLP payload.
            container_below: Returns the container of the stored spans below a span of a run, None if there are none.
        """
        self._spans = spans
        self._store = store
        self._container_below = container_below
        self._made: dict[str, set[str]] = {}
        """Paths of the attempts whose spans are made, by run, until the run ends: saves making them again."""
        self._since: dict[str, float] = {}
        """When the last step of a run was done that another may follow, as far as this process saw it: begins what follows."""

    def follow(self, run: RunState, event: AnyEvent) -> None:
        """Take one event, `run` being the state after it; a run that is not sampled leaves no spans."""
        if not run.sampled:
            return
        match event:
            case RunAccepted():
                self._instant(run, f"RUN {run.pipeline.name} (started)", event, _identity(run), Context.parse(event.traceparent_of_caller))
            case RunResumed():
                self._instant(run, f"RUN {run.pipeline.name} (resumed)", event, _identity(run))
            case AttemptEnded() if run.state in FINAL or run.state == "parked" or not _awaits_judgement(run, event):
                self._attempts(run, run.jobs[event.job_id])
            case JobJudged():
                self._attempts(run, run.jobs[event.job_id])
            case JobDispatched():
                self._step(run, f"dispatch {event.stage}", event, {"andon.stage.name": event.stage, "andon.round": event.round})
            case Joined():
                self._step(run, "merge", event, {"vcs.ref.head.revision": event.commit, "andon.stage.name": event.stage})
            case RunLanded():
                self._step(run, "commit", event, {"vcs.ref.head.name": event.branch, "vcs.ref.head.revision": event.commit})
            case _:
                pass
        if isinstance(event, RunAccepted | RunResumed | JobDispatched | JobJudged | Joined):
            self._since[run.run_id] = event.at
        if isinstance(event, RunLanded | RunFailed | RunCancelled) and run.ended_at is not None:
            self._finish(run, run.ended_at)
        elif isinstance(event, RunParked):
            for job in run.jobs.values():
                self._attempts(run, job)
        for payload in self._spans.drain(run.trace_id):
            self._store(run.run_id, payload)

    def _instant(self, run: RunState, name: str, event: AnyEvent, attributes: dict[str, Attribute], link: Context | None = None) -> None:
        span = self._spans.start(
            name,
            trace_id=run.trace_id,
            parent=span_id(run.run_id),
            span_id=span_id(f"{run.run_id}#{event.seq}"),
            start=event.at,
            links=(link,) if link else (),
            attributes=attributes,
        )
        span.end(event.at)

    def _step(self, run: RunState, name: str, event: AnyEvent, attributes: dict[str, Attribute]) -> None:
        """What the supervisor did between two events; after a restart, when the first is not known, an instant."""
        start = min(self._since.get(run.run_id, event.at) + APART_S, event.at)
        own_id = span_id(f"{run.run_id}#{event.seq}")
        span = self._spans.start(
            name, trace_id=run.trace_id, parent=span_id(run.run_id), span_id=own_id, start=start, attributes=attributes
        )
        span.end(event.at - APART_S)

    def _attempts(self, run: RunState, job: JobState, run_ended_at: float | None = None) -> None:
        """Make the stage spans of a job's attempts, each once; at the run's end also of those nobody heard the end of."""
        made = self._made.setdefault(run.run_id, set())
        for attempt in job.attempts:
            path = attempt_path(run.run_id, job.stage, job.round, attempt.attempt)
            ended_at = attempt.ended.ended_at if attempt.ended else run_ended_at
            if ended_at is None or path in made:
                continue
            made.add(path)
            self._stage(run, job, attempt, path, ended_at)

    def _stage(self, run: RunState, job: JobState, attempt: AttemptState, path: str, ended_at: float) -> None:
        last = attempt is job.attempts[-1]
        passed = last and job.verdict == "pass"
        outcome = attempt.ended.outcome.value if attempt.ended else "lost"
        previous = attempt_path(run.run_id, job.stage, job.round, attempt.attempt - 1)
        span = self._spans.start(
            f"stage {job.stage}",
            trace_id=run.trace_id,
            parent=span_id(run.run_id),
            span_id=span_id(path),
            start=job.dispatched_at if attempt.attempt == 1 else attempt.started_at,
            links=(Context(run.trace_id, span_id(previous)),) if attempt.attempt > 1 else (),
            attributes={
                "cicd.pipeline.task.name": job.stage,
                "cicd.pipeline.task.type": _TASK_TYPE.get(job.role, "build"),
                "cicd.pipeline.task.run.id": path,
                "cicd.pipeline.task.run.url.full": _page(run),
                "cicd.pipeline.task.run.result": "success" if passed else "failure",
                "andon.stage.name": job.stage,
                "andon.round": job.round,
                "andon.attempt": attempt.attempt,
                "andon.cost.usd": attempt.cost_nano_usd / 1e9,
                "andon.outcome": outcome,
                "andon.test.passed": job.tests.passed,
                "andon.test.failed": job.tests.failed,
            },
        )
        for finding in job.findings[:20] if last else ():
            span.event("finding", {"andon.check.name": finding.check, "message": finding.message[:500]}, at=job.judged_at)
        if attempt.attempt == 1:
            self._send(run, job, span.context)
        else:
            self._retry_wait(run, job, attempt, path)
        if attempt.ended is not None and attempt.ended.result is None and run.state not in FINAL:  # else `_finish` does
            self._reap(run, job, attempt, ended_at)
        if last and attempt.ended is not None and job.judged_at is not None:
            arrived_at = min(attempt.ended.at, job.judged_at)
            self._delivery(run, span.context, path, attempt.ended, arrived_at)
            self._gate(run, job, span.context, arrived_at)
        error = None if passed else (f"verdict_{job.verdict}" if last and job.verdict else outcome)
        span.end(job.judged_at if last and job.judged_at else ended_at, error_type=error)

    def _reap(self, run: RunState, job: JobState, attempt: AttemptState, at: float) -> None:
        """End what an executor began and nobody heard the end of: what it sent of it until then must not hang in the air.

        Should it come back and send the very spans, these are in the file already, and stay.
        """
        path = attempt_path(run.run_id, job.stage, job.round, attempt.attempt)
        stage = Context(run.trace_id, span_id(path))
        about: dict[str, Attribute] = {"cicd.worker.id": attempt.executor, "andon.stage.name": job.stage, "andon.reaped": True}
        subject = f"andon.job.{_pool(run, job.stage)}"
        process = self._spans.start(
            f"process {subject}",
            trace_id=run.trace_id,
            parent=stage.span_id,
            span_id=process_span_id(path),
            kind=SpanKind.CONSUMER,
            start=attempt.started_at,
            links=(stage,),
            attributes=about
            | {
                "messaging.system": "nats",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": subject,
                "andon.attempt": attempt.attempt,
            },
        )
        if attempt.attempt == 1:
            wait = self._spans.start(
                "queue wait",
                trace_id=run.trace_id,
                parent=stage.span_id,
                span_id=queue_span_id(path),
                start=job.dispatched_at,
                attributes={"andon.reaped": True},
            )
            wait.end(attempt.started_at)
        container = self._container_below(run.run_id, program_span_id(path))
        if container is not None:
            program = self._spans.start(
                f"invoke_agent {_agent(run, job.stage)}" if job.kind == "agent" else f"run {job.stage} checks",
                trace_id=run.trace_id,
                parent=process.context.span_id,
                span_id=program_span_id(path),
                start=attempt.started_at,
                attributes=about | ({"container.id": container} if container else {}),
            )
            program.end(at, error_type="executor_lost")
        process.end(at, error_type="executor_lost")

    def _retry_wait(self, run: RunState, job: JobState, attempt: AttemptState, path: str) -> None:
        """The time between an attempt and the next one: the pause before it is tried again, and the wait for an executor."""
        before = next((each.ended for each in job.attempts if each.attempt == attempt.attempt - 1), None)
        if before is None:
            return
        wait = self._spans.start(
            "retry wait",
            trace_id=run.trace_id,
            parent=span_id(run.run_id),
            span_id=span_id(f"{path}#wait"),
            start=min(before.ended_at + APART_S, attempt.started_at),
            attributes={"andon.stage.name": job.stage, "andon.attempt": attempt.attempt, "andon.retry.after": before.outcome.value},
        )
        wait.end(attempt.started_at - APART_S)

    def _delivery(self, run: RunState, parent: Context, path: str, ended: AttemptEnded, arrived_at: float) -> None:
        """The way of the result: from its executor, which keeps, stores and publishes it, into the log; hosts' clocks may differ."""
        delivery = self._spans.start(
            "result delivery",
            trace_id=run.trace_id,
            parent=parent.span_id,
            span_id=span_id(f"{path}#result"),
            start=min(ended.ended_at + APART_S, arrived_at),
            attributes={"cicd.worker.id": ended.executor, "andon.outcome": ended.outcome.value},
        )
        delivery.end(arrived_at)

    def _gate(self, run: RunState, job: JobState, parent: Context, start: float) -> None:
        """The judgement of what the last attempt left, from the arrival of its result."""
        gate = self._spans.start(
            f"gate {job.stage}",
            trace_id=run.trace_id,
            parent=parent.span_id,
            span_id=span_id(f"{job.job_id}#gate"),
            start=start + APART_S,
            attributes={"andon.stage.name": job.stage, "andon.verdict": job.verdict or "", "andon.gate.findings": len(job.findings)},
        )
        if job.commit is not None:
            gate.put({"vcs.ref.head.revision": job.commit})
        gate.end(job.judged_at, error_type=None if job.verdict == "pass" else f"verdict_{job.verdict}")

    def _send(self, run: RunState, job: JobState, parent: Context) -> None:
        """The publication of the job; made with its stage, so that it never lacks its parent."""
        subject = f"andon.job.{_pool(run, job.stage)}"
        sent = self._spans.start(
            f"send {subject}",
            trace_id=run.trace_id,
            parent=parent.span_id,
            span_id=span_id(f"{job.job_id}#send"),
            kind=SpanKind.CLIENT,
            start=job.dispatched_at,
            attributes={
                "messaging.system": "nats",
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": subject,
                "messaging.message.id": job.job_id,
            },
        )
        sent.end(job.dispatched_at)

    def _finish(self, run: RunState, at: float) -> None:
        for job in run.jobs.values():
            self._attempts(run, job, at)
            # Whoever salvaged a dead executor's work knows nothing of its spans; of one that lived, its own are here and stay.
            for attempt in job.attempts:
                if attempt.ended is None or attempt.ended.outcome is Outcome.LOST:
                    self._reap(run, job, attempt, attempt.ended.ended_at if attempt.ended else at)
        self._made.pop(run.run_id, None)
        self._since.pop(run.run_id, None)
        result = RESULTS[run.state]
        root = self._spans.start(
            f"RUN {run.pipeline.name}",
            trace_id=run.trace_id,
            parent=None,
            span_id=span_id(run.run_id),
            kind=SpanKind.SERVER,
            start=run.accepted_at,
            attributes={
                **_identity(run),
                "cicd.pipeline.result": result,
                "gen_ai.operation.name": "invoke_workflow",
                "gen_ai.workflow.name": run.pipeline.name,
                "andon.usage.input_tokens": run.budget.usage.all_input_tokens,
                "andon.usage.output_tokens": run.budget.usage.output_tokens,
                "andon.cost.usd": run.budget.settled_nano_usd / 1e9,
            },
        )
        root.end(at, error_type=None if result == "success" else (run.end_check or run.state))


def _identity(run: RunState) -> dict[str, Attribute]:
    return {
        "cicd.pipeline.name": run.pipeline.name,
        "cicd.pipeline.action.name": "RUN",
        "cicd.pipeline.run.id": run.run_id,
        "cicd.pipeline.run.url.full": _page(run),
        "andon.run.id": run.run_id,
        "andon.feature": run.intent.feature,
        "vcs.ref.head.name": run.branch,
        "vcs.ref.base.name": run.intent.base_name,
        "vcs.ref.base.revision": run.intent.base_commit,
    }


def _page(run: RunState) -> str:
    return f"{PAGES}/runs/{run.run_id}"


def _pool(run: RunState, stage: str) -> str:
    return next((each.pool for each in run.pipeline.stages if each.name == stage), "default")


def _agent(run: RunState, stage: str) -> str:
    return next((each.agent or each.name for each in run.pipeline.stages if each.name == stage), stage)


def _awaits_judgement(run: RunState, event: AttemptEnded) -> bool:
    job = run.jobs[event.job_id]
    return job.verdict is None and job.attempts[-1].attempt == event.attempt
