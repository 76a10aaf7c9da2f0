"""Values that cross the wire, with everything a test does not care about filled in, and how to read from endless streams."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar, cast

from sandbox.contract.blob import BlobRef
from sandbox.contract.job import JobSpec
from sandbox.contract.result import AttemptResult, Outcome
from sandbox.contract.wire import BudgetReply, BudgetRequest, ClaimReply, ClaimRequest, Heartbeat, JoinRequest, Progress
from supervisor.pipeline.events import AnyEvent, StopRequested

T = TypeVar("T")

RUN = "0123456789"
SHA = "a" * 40
PACK = BlobRef(bucket="IN", name=f"{RUN}/base", sha256="b" * 64, size_bytes=3)


def a_job(stage: str = "spec", **changes: Any) -> JobSpec:
    """Return a checks job of one stage."""
    values: dict[str, Any] = {
        "job_id": f"{RUN}-{stage}-1",
        "run_id": RUN,
        "feature": "limits",
        "stage": stage,
        "role": stage,
        "round": 1,
        "kind": "checks",
        "base_commit": SHA,
        "input_pack": PACK,
    }
    return JobSpec(**(values | changes))


def a_result(executor: str = "ex1", stage: str = "spec", **changes: Any) -> AttemptResult:
    """Return the end of a first attempt."""
    values: dict[str, Any] = {
        "job_id": f"{RUN}-{stage}-1",
        "run_id": RUN,
        "stage": stage,
        "round": 1,
        "attempt": 1,
        "token": "secret",
        "executor": executor,
        "outcome": Outcome.SUBMITTED,
        "started_at": 1.0,
        "ended_at": 2.0,
    }
    return AttemptResult(**(values | changes))


def a_join(executor: str = "ex1", **changes: Any) -> JoinRequest:
    """Return the introduction of an executor with one slot."""
    return JoinRequest(**({"executor": executor, "release": "0", "pools": ("default",), "slots": 1} | changes))


def a_claim(ack_subject: str, executor: str = "ex1", **changes: Any) -> ClaimRequest:
    """Return a first claim of the spec job."""
    return ClaimRequest(**({"executor": executor, "job_id": f"{RUN}-spec-1", "ack_subject": ack_subject} | changes))


def a_reservation(executor: str = "ex1", **changes: Any) -> BudgetRequest:
    """Return a request for money."""
    values: dict[str, Any] = {
        "executor": executor,
        "run_id": RUN,
        "job_id": f"{RUN}-spec-1",
        "attempt": 1,
        "token": "secret",
        "op": "reserve",
        "call_id": "call-1",
        "nano_usd": 5,
    }
    return BudgetRequest(**(values | changes))


def a_heartbeat(executor: str = "ex1", **changes: Any) -> Heartbeat:
    """Return the life sign of an idle executor."""
    values: dict[str, Any] = {"executor": executor, "release": "0", "pools": ("default",), "slots": 1, "busy": 0, "model": "none"}
    return Heartbeat(**(values | changes))


def a_progress(executor: str = "ex1", **changes: Any) -> Progress:
    """Return what a running attempt says."""
    values: dict[str, Any] = {
        "executor": executor,
        "run_id": RUN,
        "job_id": f"{RUN}-spec-1",
        "stage": "spec",
        "round": 1,
        "attempt": 1,
        "phase": "running",
    }
    return Progress(**(values | changes))


def an_event(number: int = 0, run: str = RUN) -> AnyEvent:
    """Return some event; `number` tells them apart."""
    return StopRequested(run_id=run, at=1.0, how="park", reason=str(number))


def number_of(event: AnyEvent) -> int:
    """Return the number `an_event` was given."""
    assert isinstance(event, StopRequested)
    return int(event.reason)


async def grant(request: ClaimRequest) -> ClaimReply:
    """Grant every claim."""
    return ClaimReply(decision="granted", attempt=1, token="secret", wall_left_s=60)


async def pay(request: BudgetRequest) -> BudgetReply:
    """Grant every reservation."""
    return BudgetReply(granted=True, remaining_nano_usd=100 - request.nano_usd)


@asynccontextmanager
async def opened(stream: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close an endless stream at the end of the context."""
    async with aclosing(cast("AsyncGenerator[T, None]", stream)) as closing:
        yield closing


async def take(stream: AsyncIterator[T], count: int, within_s: float = 10) -> list[T]:
    """Return the next items of an open stream."""
    async with asyncio.timeout(within_s):
        return [await anext(stream) for _ in range(count)]


async def wait_until(predicate: Callable[[], Awaitable[bool]], description: str, within_s: float = 10) -> None:
    """Wait until something holds."""
    until = time.monotonic() + within_s
    while not await predicate():
        assert time.monotonic() < until, f"not within {within_s} s: {description}"
        await asyncio.sleep(0.02)
