"""What `/metrics` says of events and spans, read back by Prometheus's own parser."""

import gzip
import re
from collections.abc import Iterable
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from sandbox.contract.figures import FIGURE_ATTRIBUTES, Figures
from sandbox.contract.ids import job_id, span_id, trace_id
from sandbox.contract.result import Outcome
from sandbox.contract.wire import Heartbeat
from sandbox.telemetry import Attribute, Spans
from supervisor.api.metrics import LABEL_VALUES_MAX, OTHER, Metrics
from supervisor.pipeline.events import AnyEvent, JobRepublished
from supervisor.pipeline.fold import apply
from supervisor.pipeline.run import FINAL, RunState
from tests.fakes.run_events import RUN, Story, failed, happy, rework, until_implement

MODEL = "claude-sonnet-5-5"
ROOT = Path(__file__).parents[3]
_NAME = re.compile(r"\b(?:cicd|gen_ai|messaging|andon)_[a-z_]+_(?:seconds|total|active|count|depth|bucket)\b|andon_slots")
_GAUGES = {"cicd_pipeline_run_active", "cicd_worker_count", "andon_queue_depth", "andon_queue_ack_pending", "andon_slots"}
_TOKENS = {f"gen_ai_client_inference_usage_{kind}_tokens_total" for kind in ("input", "output", "cache_read_input", "cache_write_input")}


def told(logs: Iterable[list[AnyEvent]], beats: tuple[Heartbeat, ...] = (), metrics: Metrics | None = None) -> dict[str, float]:
    """Return every sample after these runs, by name and labels."""
    metrics = metrics or Metrics()
    ends: list[RunState] = []
    for log in logs:
        run: RunState | None = None
        for event in log:
            run = apply(run, event)
            metrics.follow(run, event)
        ends += [run] if run else []
    text = metrics.text([run for run in ends if run.state not in FINAL], beats, 3, {"refused": 5}).decode()
    return {
        ",".join([sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def a_beat(name: str, **changes: object) -> Heartbeat:
    """Return an executor's life sign."""
    about = {"executor": name, "release": "1", "pools": ("default",), "slots": 2, "busy": 0, "model": "live"}
    return Heartbeat.model_validate(about | changes)


def spans(*named: tuple[str, float, dict[str, object]]) -> ExportTraceServiceRequest:
    """Return a request of spans: name, seconds, attributes."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for name, seconds, attributes in named:
        span = scope.spans.add(name=name, start_time_unix_nano=10**18, end_time_unix_nano=10**18 + int(seconds * 1e9))
        for key, value in attributes.items():
            kind = {bool: "bool_value", int: "int_value", float: "double_value"}.get(type(value), "string_value")
            setattr(span.attributes.add(key=key).value, kind, value)
    return request


def test_a_run_that_lands_is_counted_once_with_its_time() -> None:
    """Also each stage, each attempt, and the wait before each first attempt."""
    said = told([happy(), rework()])

    run = "cicd_pipeline_name=feature,cicd_pipeline_result=success,error_type="
    assert said[f"cicd_pipeline_run_duration_seconds_count,{run}"] == 2
    assert said[f"cicd_pipeline_run_duration_seconds_sum,{run}"] == sum(log[-2].at - log[0].at for log in (happy(), rework()))
    assert said["andon_stage_duration_seconds_count,andon_stage_name=validate,cicd_pipeline_task_run_result=failure"] == 1
    assert said["andon_stage_attempts_total,andon_stage_name=implement,cicd_pipeline_task_run_result=success,error_type="] == 3
    assert said["andon_queue_wait_seconds_count,andon_stage_name=spec"] == 2


def test_a_run_that_fails_says_of_what() -> None:
    """By the check that ended it."""
    said = told([failed()])

    assert said["cicd_pipeline_run_errors_total,cicd_pipeline_name=feature,error_type=pytest"] == 1
    run = "cicd_pipeline_name=feature,cicd_pipeline_result=failure,error_type=pytest"
    assert said[f"cicd_pipeline_run_duration_seconds_count,{run}"] == 1


def test_tokens_and_cost_are_the_gateways_by_model_and_stage() -> None:
    """Input tokens include those of the cache; a call charged in full is counted apart."""
    story = Story().accepted().dispatched("spec").started("spec").paid("spec", 2_500_000, tokens=100, model=MODEL)
    story.paid("spec", 1_000_000, tokens=10, model=MODEL, unsettled=True)

    said = told([story.log])

    of = f"andon_stage_name=spec,gen_ai_request_model={MODEL}"
    assert said[f"andon_cost_usd_total,{of}"] == 0.0035
    assert said[f"gen_ai_client_inference_usage_input_tokens_total,{of}"] == 110
    assert said[f"gen_ai_client_inference_usage_output_tokens_total,{of}"] == 11
    assert said[f"andon_cost_unsettled_calls_total,gen_ai_request_model={MODEL}"] == 1


def test_what_is_open_and_who_is_there_is_of_this_moment() -> None:
    """Runs, jobs nobody has claimed, executors by what they can take."""
    log = until_implement(Story()).dispatched("implement").dispatched("test").started("test").log
    beats = (a_beat("ex1", busy=1), a_beat("ex2", busy=2), a_beat("ex3", held="draining"))

    said = told([log], beats)

    assert said["cicd_pipeline_run_active,cicd_pipeline_name=feature,cicd_pipeline_run_state=executing"] == 1
    assert said["andon_queue_depth,andon_stage_name=implement"] == 1
    assert "andon_queue_depth,andon_stage_name=test" not in said
    assert said["andon_queue_ack_pending,andon_stage_name=test"] == 1
    assert not {f"andon_queue_ack_pending,andon_stage_name={stage}" for stage in ("implement", "spec")} & said.keys()
    assert [said[f"cicd_worker_count,cicd_worker_state={state}"] for state in ("available", "busy", "offline")] == [1, 1, 1]
    assert (said["andon_slots,state=busy"], said["andon_slots,state=free"]) == (3, 3)
    assert said["andon_telemetry_spans_rejected"] == 3
    assert [said[f"andon_telemetry_spans_dropped_total,reason={why}"] for why in ("refused", "rejected", "too_large")] == [5, 0, 0]


def test_faults_of_infrastructure_are_apart_from_the_agents() -> None:
    """A lost attempt is the system's; one whose money is spent is the budget's."""
    story = Story().accepted().dispatched("spec").started("spec").ended("spec", outcome=Outcome.LOST)
    story.started("spec", attempt=2).ended("spec", attempt=2, outcome=Outcome.BUDGET)

    said = told([story.log])

    assert said["cicd_system_errors_total,cicd_system_component=executor,error_type=lost"] == 1
    assert said["andon_budget_exceeded_total,andon_stage_name=spec"] == 1
    assert said["andon_queue_wait_seconds_count,andon_stage_name=spec"] == 1


def test_ended_spans_give_the_times_of_calls_tools_and_checks() -> None:
    """What only the executor saw."""
    metrics = Metrics()
    metrics.see(
        spans(
            (f"chat {MODEL}", 2.0, {"gen_ai.request.model": MODEL, "gen_ai.response.time_to_first_chunk": 0.5}),
            (f"chat {MODEL}", 1.0, {"gen_ai.request.model": MODEL, "error.type": "overloaded"}),
            ("execute_tool bash", 3.0, {"error.type": "tool_error"}),
            ("invoke_agent spec", 9.0, {}),
            ("check tests", 1.0, {"process.exit.code": 1}),
            ("container remove", 0.1, {"andon.container.oom_killed": True}),
            ("gateway fetch six", 0.1, {"andon.gateway.verdict": "allow"}),
            ("gateway fetch evil", 0.1, {"andon.gateway.verdict": "deny", "error.type": "names"}),
        )
    )

    said = told([], metrics=metrics)

    assert said[f"gen_ai_client_operation_duration_seconds_sum,error_type=,gen_ai_request_model={MODEL}"] == 2
    assert said[f"gen_ai_client_operation_duration_seconds_count,error_type=overloaded,gen_ai_request_model={MODEL}"] == 1
    assert said[f"gen_ai_client_operation_time_to_first_chunk_seconds_sum,gen_ai_request_model={MODEL}"] == 0.5
    assert said["gen_ai_execute_tool_duration_seconds_sum,error_type=tool_error,gen_ai_tool_name=bash"] == 3
    assert said["gen_ai_invoke_agent_duration_seconds_sum,error_type=,gen_ai_agent_name=spec"] == 9
    assert said["andon_check_results_total,andon_check_name=tests,passed=false"] == 1
    assert said["andon_container_oom_kills_total"] == 1
    assert [said[f"andon_gateway_requests_total,kind=registry,verdict={verdict}"] for verdict in ("allow", "deny")] == [1, 1]


def test_a_users_own_spans_count_for_nothing() -> None:
    """A sandbox names them: none is a call, a check or a message; the control is the same name of ours."""
    metrics = Metrics()
    for service, name in (("andon-user", "chat"), ("andon-user", "process"), ("andon-gw", "chat")):
        spans = Spans(service, "1")
        spans.start(name, trace_id=trace_id(RUN), parent=span_id(RUN), start=1.0).end(2.0)
        metrics.see(ExportTraceServiceRequest.FromString(gzip.decompress(*spans.drain(trace_id(RUN)))))

    said = told([], metrics=metrics)

    calls = [value for name, value in said.items() if name.startswith("gen_ai_client_operation_duration_seconds_count")]
    taken = [value for name, value in said.items() if name.startswith("messaging_process_duration_seconds_count")]
    assert (sum(calls), sum(taken)) == (1, 0)


def test_messages_are_counted_where_they_are_sent_and_taken() -> None:
    """A job that went out again after its executor was lost is two messages, and says how that attempt ended."""
    story = Story().accepted().dispatched("spec").started("spec").ended("spec", outcome=Outcome.LOST)
    again = JobRepublished(run_id=RUN, at=story.at, seq=len(story.log) + 1, job_id=job_id(RUN, "spec", 1), reason="its executor is gone")

    said = told([[*story.log, again]])

    to = "messaging_destination_template=andon.job.{pool}"
    assert said[f"messaging_client_sent_messages_total,{to},messaging_operation_name=send,messaging_system=nats"] == 2
    assert said[f"messaging_client_consumed_messages_total,{to},messaging_operation_name=process,messaging_system=nats"] == 1
    assert said["andon_redeliveries_total,andon_stage_name=spec,error_type=lost"] == 1


def test_a_run_that_is_not_sampled_tells_metrics_the_same() -> None:
    """Its executors send figures instead of spans: every sample is equal."""
    made = Spans("andon-exec", "1")
    names = (f"chat {MODEL}", "execute_tool bash", "invoke_agent spec", "process andon.job.default", "check tests", "container remove")
    whole: dict[str, Attribute] = {"gen_ai.request.model": MODEL, "gen_ai.response.time_to_first_chunk": 0.5, "process.exit.code": 0}
    whole |= {"andon.container.oom_killed": True, "error.type": "timeout", "gen_ai.usage.input_tokens": 7}

    def told_by(sampled: bool) -> dict[str, float]:
        for number, name in enumerate(names):
            made.start(name, trace_id=trace_id(RUN), parent=span_id(RUN), start=1.0, attributes=whole).end(2.5 + number)
        metrics = Metrics()
        if sampled:
            metrics.see(ExportTraceServiceRequest.FromString(gzip.decompress(*made.drain(trace_id(RUN)))))
        else:
            metrics.measure(Figures.model_validate_json(*made.measure(trace_id(RUN))))
        return told([], metrics=metrics)

    assert told_by(sampled=False) == told_by(sampled=True) != told([])


def test_all_that_is_read_of_a_span_is_among_the_figures() -> None:
    """Else a run that is not sampled would count otherwise."""
    read = re.findall(r'said\.get\("([^"]+)"', (ROOT / "supervisor/api/metrics.py").read_text())

    assert len(read) > 3
    assert set(read) == set(FIGURE_ATTRIBUTES)


def test_the_time_of_a_lost_attempt_counts_also_without_its_span() -> None:
    """A sampled run's supervisor makes the span of it, and that is counted."""
    story = Story().accepted().dispatched("spec").started("spec").ended("spec", outcome=Outcome.LOST)
    unsampled = [story.log[0].model_copy(update={"sampled": False}), *story.log[1:]]

    lost = "messaging_process_duration_seconds_count,error_type=executor_lost"
    assert told([unsampled])[lost] == 1
    assert lost not in told([story.log])


def test_a_flood_of_names_ends_in_other() -> None:
    """An executor's spans cannot fill the memory of whoever reads the figures."""
    metrics = Metrics()
    for number in range(LABEL_VALUES_MAX + 20):
        metrics.see(spans((f"execute_tool t{number}" + "x" * 200, 1.0, {})))

    names = {key for key in told([], metrics=metrics) if key.startswith("gen_ai_execute_tool_duration_seconds_count")}

    assert len(names) == LABEL_VALUES_MAX + 1
    assert any(f"gen_ai_tool_name={OTHER}" in name for name in names)
    assert max(map(len, names)) < 200


def test_the_dashboard_asks_for_nothing_that_is_not_there() -> None:
    """Every metric in Grafana's file, and in the manual's table, is one we expose."""
    exposed = {name for metric in Metrics().registry.collect() for name in (metric.name, f"{metric.name}_total")}
    exposed |= {f"{name}_{part}" for name in exposed for part in ("bucket", "count", "sum")} | _GAUGES
    asked = set(_NAME.findall((ROOT / "images/grafana/andon.json").read_text()))
    documented = set(_NAME.findall((ROOT / "docs/metrics.md").read_text()))

    assert len(asked) > 15
    assert asked - exposed == set()
    assert {_plain(name) for name in asked} <= {_plain(name) for name in documented | _TOKENS}


def _plain(name: str) -> str:
    return re.sub(r"_(?:total|bucket|count)$", "", name)
