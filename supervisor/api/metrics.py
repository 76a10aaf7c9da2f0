"""What a supervisor knows, counted in Prometheus's text (TRACING.md §3): from events and ended spans; who serves it is `http`.

Counters begin at zero with each supervisor, as Prometheus expects. A span comes from an executor and is believed in little: each
label has a bounded number of values, further ones are counted as `other`. No label names a run, a feature, a container or a host.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sandbox.contract.figures import Figures
from sandbox.contract.result import Outcome
from sandbox.contract.wire import Heartbeat
from supervisor.api.traces.otlp import is_of_user
from supervisor.api.traces.run_trace import RESULTS
from supervisor.pipeline.budget import call_key
from supervisor.pipeline.costs import UNKNOWN_MODEL
from supervisor.pipeline.events import (
    AnyEvent,
    AttemptEnded,
    AttemptStarted,
    BudgetReserved,
    BudgetSettled,
    JobDispatched,
    JobJudged,
    JobRepublished,
)
from supervisor.pipeline.run import FINAL, JobState, RunState

LABEL_VALUES_MAX: Final = 100
"""Different values of one label of one metric; what is beyond is `other`."""
VALUE_CHARS_MAX: Final = 80
CALLS_MAX: Final = 10_000
"""Model calls on their way whose model is remembered until they are settled."""
OTHER: Final = "other"
_MESSAGING: Final = ("messaging_system", "messaging_operation_name", "messaging_destination_template")
_SENT: Final = ("nats", "send", "andon.job.{pool}")
_CONSUMED: Final = ("nats", "process", "andon.job.{pool}")

_RUN_S: Final = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_WAIT_S: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900)
_CALL_S: Final = tuple(0.01 * 2**step for step in range(14))
_AGENT_S: Final = tuple(0.1 * 2**step for step in range(16))
_STARTUP_S: Final = (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)


class Metrics:
    """Counts what happens; told of every event once, and of every span that is new."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._models: dict[str, str] = {}
        self._run_duration = self._histogram(
            "cicd_pipeline_run_duration_seconds",
            "From acceptance to the end.",
            _RUN_S,
            "cicd_pipeline_name",
            "cicd_pipeline_result",
            "error_type",
        )
        self._run_errors = self._counter("cicd_pipeline_run_errors", "Runs that did not land.", "cicd_pipeline_name", "error_type")
        self._system_errors = self._counter(
            "cicd_system_errors", "Attempts that infrastructure ended.", "cicd_system_component", "error_type"
        )
        self._stage_duration = self._histogram(
            "andon_stage_duration_seconds",
            "From a job's dispatch to its verdict.",
            _RUN_S,
            "andon_stage_name",
            "cicd_pipeline_task_run_result",
        )
        self._attempts = self._counter(
            "andon_stage_attempts", "Attempts that ended.", "andon_stage_name", "cicd_pipeline_task_run_result", "error_type"
        )
        self._queue_wait = self._histogram("andon_queue_wait_seconds", "From dispatch to the first claim.", _WAIT_S, "andon_stage_name")
        self._redeliveries = self._counter("andon_redeliveries", "Jobs that were put on the bus again.", "andon_stage_name", "error_type")
        self._sent = self._counter("messaging_client_sent_messages", "Jobs put on the bus.", *_MESSAGING)
        self._consumed = self._counter("messaging_client_consumed_messages", "Jobs an executor took from it.", *_MESSAGING)
        self._tokens = {
            kind: self._counter(f"gen_ai_client_inference_usage_{kind}_tokens", help_, "gen_ai_request_model", "andon_stage_name")
            for kind, help_ in (
                ("input", "Input tokens, those of the cache included."),
                ("output", "Output tokens."),
                ("cache_read_input", "Input tokens read from the cache."),
                ("cache_write_input", "Input tokens written to the cache."),
            )
        }
        self._cost = self._counter("andon_cost_usd", "Cost of model calls, in US dollars.", "gen_ai_request_model", "andon_stage_name")
        self._unsettled = self._counter(
            "andon_cost_unsettled_calls", "Calls charged in full because their usage was lost.", "gen_ai_request_model"
        )
        self._exceeded = self._counter("andon_budget_exceeded", "Attempts that a budget ended.", "andon_stage_name")
        self._startup = self._histogram(
            "andon_container_startup_seconds", "From the claim to the first instruction.", _STARTUP_S, "andon_stage_name"
        )
        self._calls = self._histogram(
            "gen_ai_client_operation_duration_seconds", "Model calls.", _CALL_S, "gen_ai_request_model", "error_type"
        )
        self._first_chunk = self._histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds", "Model calls, to the first event.", _CALL_S, "gen_ai_request_model"
        )
        self._agents = self._histogram("gen_ai_invoke_agent_duration_seconds", "Agents.", _AGENT_S, "gen_ai_agent_name", "error_type")
        self._tools = self._histogram("gen_ai_execute_tool_duration_seconds", "Tools.", _CALL_S, "gen_ai_tool_name", "error_type")
        self._processing = self._histogram("messaging_process_duration_seconds", "Attempts, at their executors.", _RUN_S, "error_type")
        self._checks = self._counter("andon_check_results", "Checks that ran.", "andon_check_name", "passed")
        self._gateway = self._counter("andon_gateway_requests", "Requests for packages, by verdict.", "kind", "verdict")
        self._oom_kills = self._counter("andon_container_oom_kills", "Containers the kernel killed for memory.")

    def follow(self, run: RunState, event: AnyEvent) -> None:
        """Take one event, `run` being the state after it."""
        match event:
            case JobDispatched():
                self._sent.count(1, *_SENT)
            case AttemptStarted():
                job = run.jobs[event.job_id]
                self._consumed.count(1, *_CONSUMED)
                if event.attempt == 1:
                    self._queue_wait.observe(event.at - job.dispatched_at, job.stage)
            case JobRepublished():
                self._sent.count(1, *_SENT)
                self._redeliveries.count(1, run.jobs[event.job_id].stage, _end_of_last(run.jobs[event.job_id]))
            case BudgetReserved():
                while len(self._models) >= CALLS_MAX:
                    del self._models[next(iter(self._models))]
                self._models[call_key(event.job_id, event.attempt, event.call_id)] = event.model
            case BudgetSettled():
                self._settled(run, event)
            case AttemptEnded():
                self._ended(run.jobs[event.job_id], event)
                if event.outcome is Outcome.LOST and not run.sampled:  # of others there is a span of it (`RunTrace._reap`)
                    self._processing.observe(event.ended_at - event.started_at, "executor_lost")
            case JobJudged():
                self._judged(run.jobs[event.job_id], event)
            case _:
                pass
        if run.exit_code is not None and run.ended_at == event.at and event.type.startswith("run_"):
            self._over(run)

    def see(self, request: ExportTraceServiceRequest) -> None:
        """Take spans that have ended, each once; those of a user's own code are named by a sandbox, and count for nothing."""
        for resource in request.resource_spans:
            if is_of_user(resource):
                continue
            for scope in resource.scope_spans:
                for span in scope.spans:
                    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
                    self._span(span.name, seconds, {each.key: _value(each.value) for each in span.attributes})

    def measure(self, figures: Figures) -> None:
        """Take what spans of runs that are not sampled would have told."""
        for each in figures.figures:
            self._span(each.name, each.seconds, each.attributes)

    def text(self, runs: Iterable[RunState], executors: Sequence[Heartbeat], rejected: int, dropped: Mapping[str, int]) -> bytes:
        """Return everything in Prometheus's text format.

        Args:
            runs: Those that are open.
            executors: Those whose life sign has not expired.
            rejected: Spans and payloads that were not taken.
            dropped: Spans that were not exported, by why.
        """
        gauges = CollectorRegistry()
        gauges.register(_Now(list(runs), executors, rejected, dropped))
        return generate_latest(gauges) + generate_latest(self.registry)

    # Events

    def _settled(self, run: RunState, event: BudgetSettled) -> None:
        model = self._models.pop(call_key(event.job_id, event.attempt, event.call_id), "") or UNKNOWN_MODEL
        stage, usage = run.jobs[event.job_id].stage, event.usage
        cached = usage.cache_read_input_tokens + usage.cache_write_input_tokens
        for kind, tokens in (
            ("input", usage.input_tokens + cached),
            ("output", usage.output_tokens),
            ("cache_read_input", usage.cache_read_input_tokens),
            ("cache_write_input", usage.cache_write_input_tokens),
        ):
            self._tokens[kind].count(tokens, model, stage)
        self._cost.count(event.nano_usd / 1e9, model, stage)
        if event.unsettled:
            self._unsettled.count(1, model)

    def _ended(self, job: JobState, event: AttemptEnded) -> None:
        error = "" if event.outcome is Outcome.SUBMITTED else event.outcome.value
        self._attempts.count(1, job.stage, "failure" if error else "success", error)
        if event.cause or event.outcome is Outcome.LOST:
            self._system_errors.count(1, event.cause or "executor", event.outcome.value)
        if event.outcome is Outcome.BUDGET:
            self._exceeded.count(1, job.stage)
        if event.first_instruction_at is not None:
            self._startup.observe(event.first_instruction_at - event.started_at, job.stage)

    def _judged(self, job: JobState, event: JobJudged) -> None:
        self._stage_duration.observe(event.at - job.dispatched_at, job.stage, "success" if event.verdict == "pass" else "failure")

    def _over(self, run: RunState) -> None:
        result = RESULTS[run.state]
        error = "" if result == "success" else (run.end_check or run.state)
        if run.state in FINAL:
            self._run_duration.observe((run.ended_at or 0) - run.accepted_at, run.pipeline.name, result, error)
        if error:
            self._run_errors.count(1, run.pipeline.name, error)

    # Spans

    def _span(self, name: str, seconds: float, said: Mapping[str, Any]) -> None:
        """Take one span; every attribute read here has to be in `FIGURE_ATTRIBUTES`."""
        kind, _, rest = name.partition(" ")
        error = str(said.get("error.type", ""))
        if kind == "chat":
            model = str(said.get("gen_ai.request.model", UNKNOWN_MODEL))
            self._calls.observe(seconds, model, error)
            first = said.get("gen_ai.response.time_to_first_chunk")
            if isinstance(first, float):
                self._first_chunk.observe(first, model)
        elif kind == "invoke_agent":
            self._agents.observe(seconds, rest, error)
        elif kind == "execute_tool":
            self._tools.observe(seconds, rest, error)
        elif kind == "process":
            self._processing.observe(seconds, error)
        elif kind == "check":
            self._checks.count(1, rest, "true" if said.get("process.exit.code") == 0 else "false")
        elif name.startswith("gateway fetch "):
            self._gateway.count(1, "registry", "deny" if said.get("andon.gateway.verdict") == "deny" else "allow")
        elif name == "container remove" and said.get("andon.container.oom_killed"):
            self._oom_kills.count(1)

    # The figures

    def _counter(self, name: str, help_: str, *labels: str) -> "_Bounded":
        return _Bounded(Counter(name, help_, labels, registry=self.registry), len(labels))

    def _histogram(self, name: str, help_: str, buckets: Sequence[float], *labels: str) -> "_Bounded":
        return _Bounded(Histogram(name, help_, labels, buckets=buckets, registry=self.registry), len(labels))


def _end_of_last(job: JobState) -> str:
    """Return how a job's last attempt ended; empty: nobody took it, or it is not known yet."""
    ended = job.attempts[-1].ended if job.attempts else None
    return ended.outcome.value if ended else ""


class _Bounded:
    """A counter or histogram none of whose labels has more than `LABEL_VALUES_MAX` values."""

    def __init__(self, metric: Any, labels: int) -> None:
        self._metric = metric
        self._known: tuple[set[str], ...] = tuple(set() for _ in range(labels))

    def count(self, amount: float, *labels: str) -> None:
        self._of(labels).inc(max(0.0, amount))

    def observe(self, seconds: float, *labels: str) -> None:
        self._of(labels).observe(max(0.0, seconds))

    def _of(self, labels: Sequence[str]) -> Any:
        if not labels:
            return self._metric
        return self._metric.labels(*(_bounded(known, value[:VALUE_CHARS_MAX]) for known, value in zip(self._known, labels, strict=True)))


def _bounded(known: set[str], value: str) -> str:
    if value not in known and len(known) >= LABEL_VALUES_MAX:
        return OTHER
    known.add(value)
    return value


class _Now:
    """What is so at this moment: runs, executors, jobs that wait."""

    def __init__(self, runs: Sequence[RunState], executors: Sequence[Heartbeat], rejected: int, dropped: Mapping[str, int]) -> None:
        self._runs = runs
        self._executors = executors
        self._rejected = rejected
        self._dropped = dropped

    def collect(self) -> Iterator[Metric]:
        active: dict[tuple[str, str], int] = {}
        waiting: dict[str, int] = {}
        held: dict[str, int] = {}
        for run in self._runs:
            key = (run.pipeline.name, {"queued": "pending", "landed": "finalizing"}.get(run.state, "executing"))
            active[key] = active.get(key, 0) + 1
            for job in run.jobs.values():
                if job.standing == "queued" and not job.is_done:
                    waiting[job.stage] = waiting.get(job.stage, 0) + 1
                elif job.attempts and job.attempts[-1].ended is None:
                    held[job.stage] = held.get(job.stage, 0) + 1
        yield _gauge("cicd_pipeline_run_active", "Open runs.", ("cicd_pipeline_name", "cicd_pipeline_run_state"), active)
        yield _gauge("andon_queue_depth", "Jobs nobody has claimed.", ("andon_stage_name",), {(stage,): n for stage, n in waiting.items()})
        yield _gauge("andon_queue_ack_pending", "Jobs an executor has.", ("andon_stage_name",), {(stage,): n for stage, n in held.items()})
        busy = sum(beat.busy for beat in self._executors)
        slots = sum(beat.slots for beat in self._executors)
        workers = {("available",): 0, ("busy",): 0, ("offline",): 0}
        for beat in self._executors:
            workers["offline" if beat.held else "busy" if beat.busy >= beat.slots else "available",] += 1
        yield _gauge("cicd_worker_count", "Executors; offline: takes no jobs.", ("cicd_worker_state",), workers)
        yield _gauge("andon_slots", "Slots of all executors.", ("state",), {("busy",): busy, ("free",): max(0, slots - busy)})
        yield _gauge("andon_telemetry_spans_rejected", "Spans that were not taken, since this supervisor leads.", (), {(): self._rejected})
        dropped = CounterMetricFamily("andon_telemetry_spans_dropped", "Spans that no collector will get.", labels=("reason",))
        for reason in ("refused", "rejected", "too_large"):
            dropped.add_metric([reason], self._dropped.get(reason, 0))
        yield dropped


def _gauge(name: str, help_: str, labels: Sequence[str], values: dict[Any, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help_, labels=labels)
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind in {"string_value", "int_value", "double_value", "bool_value"} else None
