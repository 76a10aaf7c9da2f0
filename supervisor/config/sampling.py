"""Which runs' spans are kept (`OTEL_TRACES_SAMPLER`, ADR 28); asked once for each run, when it is accepted."""

from collections.abc import Mapping

from sandbox.log import Log

log = Log(__name__)

_BITS = 64
"""Of a trace id that a ratio looks at, as OpenTelemetry's own sampler does: the lower half."""
_SAMPLERS = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}


def is_sampled(trace_id: str, environment: Mapping[str, str]) -> bool:
    """Return whether the spans of a trace are kept.

    A run is the root of its trace, whoever asked for it (the caller's context is a link), so `parentbased_` changes nothing.

    Args:
        trace_id: 32 hex digits.
        environment: The standard names; what they do not know is said once for each run and ignored, as their specification wants.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return int(trace_id, 16) % (1 << _BITS) < round(_ratio(environment) * (1 << _BITS))


def _ratio(environment: Mapping[str, str]) -> float:
    named = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    sampler = named.removeprefix("parentbased_") or "always_on"
    if sampler not in _SAMPLERS:
        log.warning("sampler.unknown", "OTEL_TRACES_SAMPLER is not known: every run is traced", given=named[:40])
        return 1.0
    fixed = _SAMPLERS[sampler]
    return _argument(environment) if fixed is None else fixed


def _argument(environment: Mapping[str, str]) -> float:
    text = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1.0"
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        log.warning("sampler.unknown", "OTEL_TRACES_SAMPLER_ARG is not a ratio from 0 to 1: every run is traced", given=text[:40])
        return 1.0
    return ratio
