"""Which runs are traced is decided as OpenTelemetry's own sampler would, once for each run."""

import pytest
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

from sandbox.contract.ids import trace_id
from supervisor.config import is_sampled

SOME = [trace_id(f"01jd8m{number:04d}") for number in range(400)]


@pytest.mark.parametrize("prefix", ["", "parentbased_"])
@pytest.mark.parametrize("ratio", ["0", "0.1", "0.5", "1"])
def test_a_ratio_keeps_the_traces_that_opentelemetrys_sampler_keeps(prefix: str, ratio: str) -> None:
    """So that a service of somebody else that is sampled by the same ratio keeps the same ones; a run has no parent."""
    theirs = TraceIdRatioBased(float(ratio))

    kept = [is_sampled(trace, {"OTEL_TRACES_SAMPLER": f"{prefix}traceidratio", "OTEL_TRACES_SAMPLER_ARG": ratio}) for trace in SOME]

    assert kept == [theirs.should_sample(None, int(trace, 16), "RUN").decision is Decision.RECORD_AND_SAMPLE for trace in SOME]
    assert abs(sum(kept) / len(kept) - float(ratio)) < 0.1


@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({}, True),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, True),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, True),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, False),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, True),
        ({"OTEL_TRACES_SAMPLER_ARG": "0"}, True),
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote", "OTEL_TRACES_SAMPLER_ARG": "0"}, True),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "ten"}, True),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1.1"}, True),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"}, True),
        ({"OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_the_standard_names_mean_what_their_specification_says(environment: dict[str, str], kept: bool) -> None:
    """A ratio without its sampler is nothing; what is not known, or not a ratio, is ignored."""
    assert all(is_sampled(trace, environment) is kept for trace in SOME)
