"""Spans of an attempt leave while it goes on, so that they outlive its executor, and none is lost while the broker is away."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from sandbox.contract.errors import BrokerError
from sandbox.contract.figures import Figures
from sandbox.contract.ids import attempt_path, process_span_id, span_id, trace_id
from sandbox.contract.result import Outcome
from sandbox.contract.wire import ClaimReply, Delivery
from sandbox.executor.account import UNSENT_PAYLOADS_MAX, Account
from sandbox.executor.ending import Ending
from sandbox.gateway.session import Session
from sandbox.telemetry import Context
from tests.fakes.gateway import wait_until
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.fakes.traces import SeenTrace
from tests.fakes.wire_data import RUN, a_job
from tests.unit.executor.a_host import a_host

PATH = attempt_path(RUN, "spec", 1, 1)
PARENT = Context(trace_id(RUN), span_id(PATH))
GRANT = ClaimReply(decision="granted", attempt=1, token="t", wall_left_s=60, traceparent=PARENT.traceparent)
DELIVERY = Delivery(job=a_job(), ack_subject="ack")
NO_SESSION = cast(Session, None)
"""Progress without a session is the phase alone."""


class Flaky(MemoryExecutorLink):
    """A link that can be away."""

    away = False
    refused = 0

    async def publish_telemetry(self, payload: bytes) -> None:
        if self.away:
            self.refused += 1
            raise BrokerError("away")
        await super().publish_telemetry(payload)


def _another_refusal(link: Flaky) -> Callable[[], bool]:
    before = link.refused
    return lambda: link.refused > before


def names(broker: MemoryBroker) -> list[str]:
    """Return the spans that have arrived, sorted."""
    return sorted(span.name for span in SeenTrace.of_payloads(broker.telemetry).spans)


async def test_what_has_ended_is_sent_while_the_attempt_goes_on(tmp_path: Path):
    """Under ids anybody can derive, so that a supervisor can end the two that are open."""
    broker = MemoryBroker()
    link = Flaky(broker, "ex1", ("default",))
    async with a_host(tmp_path, link) as host:
        account = Account(host, DELIVERY, GRANT, host.slots.slots[0])
        with account.trace.processing():
            async with account.reporting(NO_SESSION):
                with account.trace.span("workspace prepare"):
                    pass
                await wait_until(lambda: "workspace prepare" in names(broker), "a span arrives")
                assert "process andon.job.default" not in names(broker)
        await account.result(Ending(Outcome.SUBMITTED))

    (process,) = SeenTrace.of_payloads(broker.telemetry).named("process ")
    (prepare,) = SeenTrace.of_payloads(broker.telemetry).named("workspace prepare")
    assert (process.span_id, process.parent_id) == (process_span_id(PATH), span_id(PATH))
    assert prepare.parent_id == process.span_id
    assert SeenTrace.of_payloads(broker.telemetry).named("queue wait") == []


async def test_a_broker_that_is_away_costs_no_span(tmp_path: Path):
    """What could not be sent goes with the next; the oldest are given up beyond a bound."""
    broker = MemoryBroker()
    link = Flaky(broker, "ex1", ("default",))
    async with a_host(tmp_path, link) as host:
        account = Account(host, DELIVERY, GRANT, host.slots.slots[0])
        with account.trace.processing():
            link.away = True
            async with account.reporting(NO_SESSION):
                for number in range(3):
                    with account.trace.span(f"step {number}"):
                        pass
                    await wait_until(_another_refusal(link), "a try is refused")
            assert names(broker) == []
            link.away = False
        await account.result(Ending(Outcome.SUBMITTED))

    assert [name for name in names(broker) if name.startswith("step")] == ["step 0", "step 1", "step 2"]


async def test_what_waits_is_bounded(tmp_path: Path):
    """At the bound all are kept, beyond it the newest."""
    broker = MemoryBroker()
    link = Flaky(broker, "ex1", ("default",))
    async with a_host(tmp_path, link) as host:
        account = Account(host, DELIVERY, GRANT, host.slots.slots[0])
        with account.trace.processing():
            for number in range(UNSENT_PAYLOADS_MAX + 5):
                with account.trace.span(f"step {number}"):
                    pass
                account.keep_spans()
        await account.result(Ending(Outcome.SUBMITTED))

    kept = [name for name in names(broker) if name.startswith("step")]
    assert len(broker.telemetry) == UNSENT_PAYLOADS_MAX
    assert "step 0" not in kept
    assert f"step {UNSENT_PAYLOADS_MAX + 4}" in kept


async def test_of_a_run_that_is_not_sampled_no_span_leaves(tmp_path: Path):
    """The program inside is told so; metrics get the durations."""
    broker = MemoryBroker()
    link = Flaky(broker, "ex1", ("default",))
    grant = GRANT.model_copy(update={"traceparent": replace(PARENT, sampled=False).traceparent})
    async with a_host(tmp_path, link) as host:
        account = Account(host, DELIVERY, grant, host.slots.slots[0])
        with account.trace.processing(), account.trace.span("workspace prepare"):
            pass
        await account.result(Ending(Outcome.SUBMITTED))

    told = [each for payload in broker.telemetry for each in Figures.model_validate_json(payload).figures]
    assert [each.name for each in told] == ["workspace prepare", "process andon.job.default"]
    assert all(each.seconds > 0 for each in told)


async def test_a_host_whose_sdk_is_disabled_makes_no_span_and_works_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """OTEL_SDK_DISABLED of an executor: nothing is told, nothing breaks."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    broker = MemoryBroker()
    link = Flaky(broker, "ex1", ("default",))
    async with a_host(tmp_path, link) as host:
        account = Account(host, DELIVERY, GRANT, host.slots.slots[0])
        with account.trace.processing(), account.trace.span("workspace prepare"):
            pass
        result = await account.result(Ending(Outcome.SUBMITTED))

    assert result.outcome is Outcome.SUBMITTED
    assert list(broker.telemetry) == []
