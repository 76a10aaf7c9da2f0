"""What the spans of an attempt's container say: each step of its life on its own, how it ended, and nothing unexplained between."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox.contract.agent_spec import AgentSpec, DriverKind, DriverSpec
from sandbox.contract.errors import EngineError
from sandbox.contract.ids import attempt_path, span_id, trace_id
from sandbox.contract.job import CheckExit, JobSpec
from sandbox.contract.result import CheckReport
from sandbox.contract.wire import ClaimReply, Delivery
from sandbox.executor.account import Account
from sandbox.executor.attempt_trace import AttemptTrace
from sandbox.executor.config import Host
from sandbox.executor.sandboxed import running_sandbox
from sandbox.executor.slots import Slot
from sandbox.gateway.tally import CallReport
from sandbox.runtime.container_spec import Exit, LastWords, OnStep, Sandbox, SlotSpec, unheard
from sandbox.telemetry import Context
from tests.fakes.gateway import open_gateway
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.fakes.process_runtime import IMAGE_ID
from tests.fakes.traces import SeenTrace
from tests.fakes.wire_data import RUN, a_job
from tests.unit.executor.a_host import BareEngine, a_host

PARENT = Context(trace_id(RUN), span_id(attempt_path(RUN, "spec", 1, 1)))
GRANT = ClaimReply(decision="granted", attempt=1, token="t", wall_left_s=60, traceparent=PARENT.traceparent)
AT_ONCE_S = 1e-5
"""Less than this between two spans is no time; it is there, because a viewer takes two that touch for overlapping."""
ENDED_BADLY = Exit(code=137, oom_killed=True)


class Box:
    """A container that is only a name."""

    container_id = "c" * 64
    missing: tuple[str, ...] = ()

    async def assign(self, _limits: object) -> None: ...

    async def remove(self) -> None: ...

    async def wait(self) -> Exit:
        return ENDED_BADLY

    async def log(self) -> bytes:
        return b""

    async def last_words(self) -> LastWords:
        return {}

    pause = unpause = kill = remove


class Engine(BareEngine):
    """Makes boxes, or fails at a step."""

    fails_at = ""

    async def stand_by(self, slot: SlotSpec, image_id: str, on_step: OnStep = unheard) -> Sandbox:
        box = Box()
        on_step("create", "")
        if self.fails_at == "create":
            raise EngineError("no room")
        on_step("start", box.container_id)
        if self.fails_at == "start":
            raise EngineError("no such program")
        return box


@asynccontextmanager
async def an_account(
    directory: Path, engine: Engine, grant: ClaimReply = GRANT, published_at: float = 0.0, job: JobSpec | None = None
) -> AsyncIterator[tuple[Host, Slot, Account]]:
    async with MemoryExecutorLink.connect(MemoryBroker(), "ex1") as link, a_host(directory, link, engine) as host:
        slot = Slot(7, 231_007 if os.geteuid() == 0 else None, directory / "s", directory / "t")
        yield host, slot, Account(host, Delivery(job=job or a_job(), ack_subject="ack", published_at=published_at), grant, slot)


def made(trace: AttemptTrace) -> SeenTrace:
    return SeenTrace.of_payloads(trace.ended())


async def test_creation_start_and_removal_are_spans_of_one_container(tmp_path: Path):
    """And the removal says how it ended, as the program's own span does: nothing else knows that memory was the reason."""
    async with an_account(tmp_path, Engine()) as (host, slot, account):
        with account.trace.processing():
            async with running_sandbox(host, a_job(), slot, IMAGE_ID, account) as box:
                account.trace.died(await box.wait())
        trace = made(account.trace)

    spans = [span for span in trace.spans if span.name.startswith("container ")]
    assert sorted(span.name for span in spans) == ["container create", "container remove", "container start"]
    assert {span.attributes["container.id"] for span in spans} == {Box.container_id}
    (removed,) = trace.named("container remove")
    assert (removed.attributes["process.exit.code"], removed.attributes["andon.container.oom_killed"]) == (137, True)
    (create,), (start,) = trace.named("container create"), trace.named("container start")
    assert create.end <= start.start
    assert create.attributes["container.image.id"] == start.attributes["container.image.id"] == IMAGE_ID
    assert create.attributes["andon.container.waited_s"] >= 0


@pytest.mark.parametrize(
    ("dispatched_at", "start", "unpublished_s"), [(1_000.0, 1_000.0, 4.0), (0.0, 1_004.0, 0.0), (1_009.0, 1_004.0, 0.0)]
)
async def test_the_wait_for_an_executor_is_one_span_from_the_decision_on(
    dispatched_at: float, start: float, unpublished_s: float, tmp_path: Path
):
    """In the supervisor first, then on the lane; a supervisor whose clock is ahead, or that does not tell, changes nothing."""
    grant = GRANT.model_copy(update={"dispatched_at": dispatched_at})
    async with an_account(tmp_path, Engine(), grant, published_at=1_004.0) as (_, _, account):
        with account.trace.processing():
            pass
        (wait,) = made(account.trace).named("queue wait")

    assert (wait.start, wait.attributes["andon.queue.unpublished_s"]) == (start, unpublished_s)
    assert wait.end == pytest.approx(account.started_at)


async def test_a_container_that_was_alive_at_its_removal_has_no_exit_code(tmp_path: Path):
    """What is not known is not claimed."""
    async with an_account(tmp_path, Engine()) as (host, slot, account):
        with account.trace.processing():
            async with running_sandbox(host, a_job(), slot, IMAGE_ID, account):
                pass
        trace = made(account.trace)

    assert "process.exit.code" not in trace.named("container remove")[0].attributes


@pytest.mark.parametrize(("step", "spans"), [("create", ["container create"]), ("start", ["container create", "container start"])])
async def test_the_step_that_failed_is_the_one_that_is_red(step: str, spans: list[str], tmp_path: Path):
    """Not the one before it."""
    engine = Engine()
    engine.fails_at = step
    async with an_account(tmp_path, engine) as (host, slot, account):
        with account.trace.processing(), pytest.raises(EngineError):
            async with running_sandbox(host, a_job(), slot, IMAGE_ID, account):
                pass
        trace = made(account.trace)

    found = trace.named("container ")
    assert [span.name for span in found] == spans
    assert [span.attributes.get("error.type") for span in found] == [None] * (len(spans) - 1) + ["EngineError"]


async def test_the_time_before_and_after_a_programs_work_is_named(tmp_path: Path):
    """From its first word to its first check, and from its submission to its death."""
    async with an_account(tmp_path, Engine()) as (_, _, account), open_gateway(tmp_path, None, policy=None) as gateway:
        with account.trace.processing():
            with account.trace.invoking(Box(), gateway.session):
                await gateway.get("/healthz")
                started_at = time.time()
                assert b" 200 " in await gateway.post("/andon/submit", b'{"status": "checked"}')
            account.trace.checks(tuple(CheckReport(name=name, exit=ended(name, started_at)) for name in ("tests", "lint")))
        trace = made(account.trace)

    (boot,), (prepare,), (exit_span,) = (trace.named(name) for name in ("agent boot", "agent prepare", "agent exit"))
    (program,) = trace.named("run spec checks")
    assert {boot.parent_id, prepare.parent_id, exit_span.parent_id} == {program.span_id}
    assert program.start <= boot.start <= boot.end < prepare.start <= exit_span.start <= exit_span.end
    assert 0 < prepare.start - boot.end < AT_ONCE_S
    assert 0 < trace.named("check tests")[0].start - prepare.end < AT_ONCE_S


@pytest.mark.parametrize(("kind", "prepares"), [("claude-code", 1), ("builtin", 0)])
async def test_a_foreign_program_prepares_until_its_first_call(kind: DriverKind, prepares: int, tmp_path: Path):
    """Our own says itself what it does until then."""
    agent = AgentSpec(name="spec", model="m", system="s", prompt="p", driver=DriverSpec(kind=kind))
    job = a_job(kind="agent", agent=agent)
    async with an_account(tmp_path, Engine(), job=job) as (_, _, account), open_gateway(tmp_path, None, policy=None) as gateway:
        with account.trace.processing(), account.trace.invoking(Box(), gateway.session):
            await gateway.get("/healthz")
            called_at = time.time()
            for started_at in (called_at, called_at + 1):
                account.trace.on_call(a_call(started_at))
        trace = made(account.trace)

    found = trace.named("agent prepare")
    assert len(found) == prepares
    assert all(0 <= called_at - each.end < AT_ONCE_S for each in found)


def a_call(started_at: float) -> CallReport:
    return CallReport(turn=1, model="m", output_tokens_max=1, is_replay=True, traceparent="", started_at=started_at, ended_at=started_at)


def ended(name: str, started_at: float) -> CheckExit:
    return CheckExit(name=name, exit_code=0, duration_s=0.0, started_at=started_at)
