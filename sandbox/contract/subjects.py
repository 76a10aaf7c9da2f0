"""Every NATS name Andon uses, in one place (NATS.md §1); low-cardinality on purpose: ids travel in payloads."""

import re

STREAM_JOBS = "JOBS"
STREAM_RESULTS = "RESULTS"
STREAM_EVENTS = "EVENTS"
STREAM_TEL = "TEL"
STREAM_EXPORT = "EXPORT"
KV_EXECUTORS = "EXECUTORS"
KV_LEASES = "LEASES"
LEASE_SUPERVISOR = "supervisor"

SYS_CONNECT = "andon.sys.connect"
"""The broker's own notice that an executor's connection opened, as the FLEET account sees it."""
SYS_DISCONNECT = "andon.sys.disconnect"

EXPORT = "andon.export"
"""On which a supervisor puts what a collector of traces is to get; it, or the next one, takes it from there."""

RPC_INTENT = "andon.rpc.intent"
RPC_STOP = "andon.rpc.stop"
RPC_RESUME = "andon.rpc.resume"
RPC_ANSWER = "andon.rpc.answer"
RPC_WHY = "andon.rpc.why"
RPC_DELIVERED = "andon.rpc.delivered"
CTL_ALL = "andon.ctl.all.drain"


def lane(pool: str, executor: str = "") -> str:
    """Return the name of a queue of jobs: a pool's, which all its executors share, or the one of a single executor in it.

    The broker grants an executor the lanes of its pools and its own, so a pool stays the trust boundary (DECISIONS D3).
    """
    return f"{pool}@{executor}" if executor else pool


def job(lane: str) -> str:
    """Return the subject jobs of a lane are published on."""
    return f"andon.job.{lane}"


def result(executor: str) -> str:
    """Return the subject an executor publishes finished attempts on."""
    return f"andon.res.{executor}.done"


def events(run: str) -> str:
    """Return the subject of one run's event log."""
    return f"andon.ev.{run}"


def telemetry(executor: str) -> str:
    """Return the subject an executor publishes gzip OTLP on."""
    return f"andon.tel.{executor}"


def join(executor: str) -> str:
    """Return the subject on which an executor asks to join."""
    return f"andon.rpc.join.{executor}"


def claim(executor: str) -> str:
    """Return the claim RPC's subject of one executor."""
    return f"andon.rpc.claim.{executor}"


def budget(executor: str) -> str:
    """Return the budget RPC's subject of one executor."""
    return f"andon.rpc.budget.{executor}"


def control(executor: str, verb: str) -> str:
    """Return the subject of a control message (`cancel` or `drain`) to one executor."""
    return f"andon.ctl.{executor}.{verb}"


def progress(executor: str) -> str:
    """Return the core subject an executor says on what its attempts do; nothing stores it, so it may be lost."""
    return f"andon.progress.{executor}"


def life_sign(executor: str) -> str:
    """Return the key-value subject of one executor's heartbeat."""
    return f"$KV.{KV_EXECUTORS}.{executor}"


def lease(name: str) -> str:
    """Return the key-value subject of one lease, e.g. the supervisors'."""
    return f"$KV.{KV_LEASES}.{name}"


_NAME = "[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?"
_ACK = re.compile(rf"\$JS\.ACK\.JOBS\.({_NAME})(?:@{_NAME})?(?:\.[0-9]{{1,20}}){{5}}")


def pool_of_ack(ack_subject: str) -> str | None:
    """Return the pool a delivered job's ack subject belongs to, None if it is not an ack subject of a job.

    An executor hands this subject to the supervisor, which publishes on it: an unchecked one would let the executor
    choose where the supervisor writes.
    """
    match = _ACK.fullmatch(ack_subject)
    return match[1] if match else None
