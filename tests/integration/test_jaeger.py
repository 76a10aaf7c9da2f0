"""The Jaeger that we ship the configuration of: it keeps traces over a restart, warns of none of ours, and its links lead somewhere."""

import gzip
import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

from sandbox.contract.ids import trace_id
from sandbox.telemetry import Spans
from supervisor.api.traces.run_trace import PAGES, RunTrace
from supervisor.pipeline.fold import apply
from supervisor.pipeline.run import RunState
from tests.e2e.watching import wait_until
from tests.fakes.run_events import RUN, Story, until_implement
from tests.fakes.traces import SeenTrace
from tests.servers.jaeger import CONFIGURATION, Jaeger
from tests.servers.jaeger import jaeger as running_jaeger


def a_trace() -> list[bytes]:
    """Return the supervisor's spans of a run that has just landed, as OTLP requests."""
    payloads: list[bytes] = []
    trace = RunTrace(Spans("andon-sup", "1"), lambda _, payload: payloads.append(gzip.decompress(payload)))
    run: RunState | None = None
    for event in until_implement(Story(at=time.time() - 60)).both().done("red-check").done("validate").done("docs").landed().log:
        run = apply(run, event)
        trace.follow(run, event)
    return payloads


def send(jaeger: Jaeger, payloads: list[bytes]) -> None:
    for payload in payloads:
        request = urllib.request.Request(f"{jaeger.otlp}/v1/traces", payload, {"content-type": "application/x-protobuf"})
        urllib.request.urlopen(request, timeout=10).close()


def test_a_trace_outlives_a_restart_and_is_shown_without_a_warning(tmp_path: Path) -> None:
    """Badger keeps it. A warning beside every second span would hide the one that matters."""
    payloads = a_trace()
    spans = {span.span_id for span in SeenTrace.of_payloads(map(gzip.compress, payloads)).spans}

    with running_jaeger(directory=tmp_path) as first:
        send(first, payloads)
        wait_until(lambda: len(first.trace(trace_id(RUN)).spans) == len(spans), "all spans are there", 20)
        warnings = first.warnings(trace_id(RUN))
    with running_jaeger(directory=tmp_path) as second:
        after = {span.span_id for span in second.trace(trace_id(RUN)).spans}

    assert len(spans) > 30
    assert after == spans
    assert warnings == []


def test_the_links_of_its_page_lead_to_a_run_from_every_stage() -> None:
    """Its page fills in what a span or one above it has; the supervisor serves that address."""
    trace = SeenTrace.of_payloads(map(gzip.compress, a_trace()))
    patterns: list[dict[str, Any]] = json.loads((CONFIGURATION / "ui.json").read_text())["linkPatterns"]

    found = {linked(trace, span.span_id, pattern) for pattern in patterns for span in trace.spans if pattern["key"] in span.attributes}

    assert found == {f"{PAGES}/runs/{RUN}"}
    assert all({"tags", "attributes"} <= set(pattern["type"]) for pattern in patterns)  # as 2.13 and as later ones call them
    of_stages = [span for span in trace.named("stage ") if any(pattern["key"] in span.attributes for pattern in patterns)]
    assert len(of_stages) == len(trace.named("stage ")) == 8


def linked(trace: SeenTrace, span_id: str, pattern: dict[str, Any]) -> str:
    """Return the address a pattern gives for a span, as the page makes it."""

    def value(match: "re.Match[str]") -> str:
        at = trace.by_id.get(span_id)
        while at is not None:
            if match[1] in at.attributes:
                return str(at.attributes[match[1]])
            at = trace.by_id.get(at.parent_id)
        return match[0]

    return re.sub(r"#\{([^}]+)\}", value, pattern["url"])
