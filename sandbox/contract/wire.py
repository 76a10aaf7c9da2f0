"""What the planes say to each other, and the two ends of the wire as protocols; not NATS itself (`sandbox/bus.py`).

A job crosses the wire exactly twice: out as a `JobSpec`, back as an `AttemptResult`. Everything an executor may
decide rests on a request the supervisor answered (`claim`, `budget`). Heartbeats and progress are one-way, droppable.

Both protocols have two implementations, the real one over NATS and the one of `tests/fakes`, under one conformance suite.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, Protocol

from pydantic import Field

from sandbox.contract.blob import BlobRef, Bucket
from sandbox.contract.ids import ExecutorName, JobId, PoolName, RunId, StageName
from sandbox.contract.job import JobSpec
from sandbox.contract.labels import Labels
from sandbox.contract.model import Frozen
from sandbox.contract.result import AttemptResult, Outcome, Usage

PROTOCOL_VERSION = 3
"""Raised by every incompatible change; an executor of another version is refused at its first claim."""

TOKEN_CHARS_MIN = 32
LEASE_S = 60.0
"""ack_wait of the pools' consumers (NATS.md §0.4)."""
HEARTBEAT_S = 15.0
RATE_PAUSE_MAX_S = 60.0
"""The longest a caller is told to wait for the provider's rate limit before it asks again."""
RATE_WAIT_MAX_S = 900.0
"""In one attempt, waits for the rate limit beyond this are charged to its wall clock."""
LEASE_DOUBT_S = 48.0
"""0.8 of the lease: a confirmed ack older than this pauses the container (DECISIONS D2)."""


def new_token() -> str:
    """Return a secret by which one attempt is known."""
    return secrets.token_hex(32)


class JoinRequest(Frozen):
    """An executor introduces itself, once for each connection, before it pulls."""

    executor: ExecutorName
    version: int = PROTOCOL_VERSION
    release: str
    pools: tuple[PoolName, ...]
    labels: Labels = Field(default_factory=dict)
    slots: int


class JoinReply(Frozen):
    """Whether the executor may pull; a refusal is final and says what to do."""

    accepted: bool
    reason: str = ""
    release: str = ""
    """The supervisor's."""


class ClaimRequest(Frozen):
    """An executor asks before it works, or, with `goes_on`, before it goes on with an attempt it already has."""

    executor: ExecutorName
    job_id: JobId
    ack_subject: str = Field(max_length=400)
    token: str = Field(default_factory=new_token, min_length=TOKEN_CHARS_MIN, max_length=200)
    """Made by the executor for this claim, the same each time it is said again: the log keeps its hash, so that a supervisor that died
    between writing a grant and answering it costs no attempt. It is what the attempt is known by from then on."""
    goes_on: bool = False
    """Nothing new is granted."""
    version: int = PROTOCOL_VERSION


class ClaimReply(Frozen):
    """The supervisor's answer: only `granted` allows work."""

    decision: Literal["granted", "done", "busy", "gone", "refused"]
    """done: a result is stored, ack. busy: another holds it, neither ack nor nak. gone: cancelled or unknown, ack.
    refused: this executor may not work (version, pool); `reason` says why."""
    attempt: int = 0
    token: str = ""
    """The claim's."""
    traceparent: str = ""
    """Context of the stage-attempt span (DECISIONS D8)."""
    wall_left_s: float = Field(0, ge=0)
    dispatched_at: float = Field(0, ge=0)
    """When the job was decided, in Unix seconds: it may have waited in the supervisor before it was published; 0: not told."""
    reason: str = ""


class BudgetRequest(Frozen):
    """Reserve before a model call, settle after (DECISIONS D4); amounts in integer nano-USD."""

    executor: ExecutorName
    run_id: RunId
    job_id: JobId
    attempt: int
    token: str
    op: Literal["reserve", "extend", "settle"]
    call_id: str = Field(min_length=1, max_length=64)
    """Unique in the attempt; a repeated request with the same id and op is answered the same."""
    nano_usd: int = Field(ge=0, strict=True)
    usage: Usage | None = None
    model: str = ""
    unsettled: bool = False
    """On settle: the provider's figure was lost and the whole reservation is charged (DECISIONS D7)."""
    limited_s: float | None = Field(None, ge=0, le=RATE_PAUSE_MAX_S)
    """On settle: the provider limited its rate, and asked for this many seconds without calls (0: it did not say)."""


class BudgetReply(Frozen):
    """Whether the call may go out, and what is left of the run's budget."""

    granted: bool
    remaining_nano_usd: int
    reason: str = ""
    wait_s: float = Field(0, ge=0, le=RATE_PAUSE_MAX_S)
    """On a reserve that is not granted: nothing is held, ask again after so long, it is the provider's rate limit. 0: the no is final."""


class Progress(Frozen):
    """What a running attempt is doing, from the gateway's own view; droppable."""

    executor: ExecutorName
    run_id: RunId
    job_id: JobId
    stage: StageName
    round: int
    attempt: int
    phase: Literal["preparing", "starting", "running", "throttled", "paused", "sealing"]
    """throttled: running, but its model call waits for the provider's rate limit."""
    turn: int = 0
    tool: str = ""
    tokens: int = 0
    """Input (cached included) and output together."""
    cost_nano_usd: int = 0
    message: str = ""


class Heartbeat(Frozen):
    """An executor's life sign, every 5 s with a 15 s time to live."""

    executor: ExecutorName
    version: int = PROTOCOL_VERSION
    release: str
    pools: tuple[PoolName, ...]
    labels: Labels = Field(default_factory=dict)
    slots: int
    busy: int
    held: str = Field("", max_length=400)
    """Why it takes no job although a slot may be free: draining, or its disk is below the floor. Empty: it takes jobs."""
    model: Literal["live", "none"]
    """Whether this executor's environment holds a provider key (DECISIONS D14)."""
    host: str = ""
    missing: tuple[str, ...] = ()
    """Protections this host cannot give."""
    seen_at: float = 0.0
    """Unix seconds by the broker's clock, set by whoever reads the life sign."""


class Notice(Frozen):
    """The broker itself says that an executor's connection opened or closed (`$SYS`); may be missing, e.g. after a power cut."""

    executor: ExecutorName
    is_connected: bool


class Control(Frozen):
    """What the supervisor tells an executor, unasked."""

    verb: Literal["cancel", "drain"]
    job_id: JobId | None = None
    reason: str = ""


class Delivery(Frozen):
    """One job as it was pulled; `ack_subject` is the handle for `in_progress` and `ack`."""

    job: JobSpec
    ack_subject: str
    deliveries: int = 1
    published_at: float = 0.0
    """Unix seconds, the broker's clock; 0 if unknown."""


class ExecutorLink(Protocol):
    """The executor's end. Every call is bounded; a broker that does not answer raises `BrokerError`."""

    async def join(self, request: JoinRequest) -> JoinReply:
        """Introduce this executor; waits at most 5 s."""
        ...

    async def next_job(self, wait_s: float) -> Delivery | None:
        """Pull one job from any of this executor's lanes, waiting at most `wait_s`; None if there was none."""
        ...

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Ask the supervisor for the attempt; waits at most 5 s."""
        ...

    async def budget(self, request: BudgetRequest) -> BudgetReply:
        """Reserve, extend or settle; waits at most 5 s and is never granted locally."""
        ...

    async def in_progress(self, ack_subject: str) -> None:
        """Renew the lease; returns only when the broker confirmed it."""
        ...

    async def ack(self, ack_subject: str) -> None:
        """Remove the job, confirmed; call it only after its result is stored."""
        ...

    async def publish_result(self, result: AttemptResult) -> None:
        """Store a result durably; publishing the same attempt twice stores it once."""
        ...

    async def publish_progress(self, progress: Progress) -> None:
        """Say what an attempt does; may be dropped."""
        ...

    async def publish_telemetry(self, payload: bytes) -> None:
        """Store gzip OTLP spans for the supervisor; durable."""
        ...

    async def heartbeat(self, beat: Heartbeat) -> None:
        """Write this executor's life sign."""
        ...

    def controls(self) -> AsyncIterator[Control]:
        """Yield what the supervisor says to this executor."""
        ...

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read an object and verify its digest."""
        ...

    async def put_blob(self, name: str, data: bytes) -> BlobRef:
        """Store an object in this executor's own bucket."""
        ...

    async def wait_lost(self) -> str:
        """Wait until the connection is gone for good, e.g. the key was revoked, and return why."""
        ...


RpcHandler = Callable[[bytes], Awaitable[bytes]]
"""Requests of the FLEET account (intent, stop, resume, answer, why, delivered): JSON in, JSON out."""


class Desk(Protocol):
    """Answers executors; the link has checked that the request names the executor that sent it."""

    async def join(self, request: JoinRequest) -> JoinReply:
        """Answer one introduction."""
        ...

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Answer one claim."""
        ...

    async def budget(self, request: BudgetRequest) -> BudgetReply:
        """Answer one reserve, extend or settle."""
        ...


class StoredResult(Protocol):
    """A result as it was read from the stream; confirm it after its event is appended."""

    @property
    def result(self) -> AttemptResult:
        """The attempt's end."""
        ...

    async def confirm(self) -> None:
        """Do not deliver it again."""
        ...


class SupervisorLink(Protocol):
    """The supervisor's end. Every call is bounded; a broker that does not answer raises `BrokerError`."""

    async def publish_job(self, job: JobSpec, dedupe: str, executor: str = "") -> None:
        """Store a job for its pool, or for one executor of it; a second one with the same `dedupe` within 600 s is ignored."""
        ...

    async def credit(self, pool: str, executor: str = "") -> int:
        """Return how many more jobs a lane's waiting pulls could take at once (num_waiting - num_pending), at least 0."""
        ...

    async def admit(self, executor: str, pools: tuple[str, ...]) -> None:
        """Make the executor's own lanes, so that its pulls are answered."""
        ...

    async def forget(self, executor: str, pools: tuple[str, ...]) -> None:
        """Remove the executor's own lanes with what is queued on them; its jobs have to be published again elsewhere."""
        ...

    def notices(self) -> AsyncIterator[Notice]:
        """Yield what the broker says of executors' connections; lossy."""
        ...

    async def cancel(self, executor: str, job_id: str, reason: str) -> None:
        """Tell an executor to stop an attempt; one-way, may be lost, so the claim is the truth."""
        ...

    async def redeliver(self, ack_subject: str) -> None:
        """Hand a dead executor's job out again at once."""
        ...

    async def withdraw(self, ack_subject: str) -> None:
        """Remove a delivered job from the queue."""
        ...

    def results(self) -> AsyncIterator[StoredResult]:
        """Yield results in order, each until it is confirmed."""
        ...

    def progress(self) -> AsyncIterator[Progress]:
        """Yield what running attempts do; lossy."""
        ...

    def telemetry(self) -> AsyncIterator[bytes]:
        """Yield gzip OTLP payloads of executors, each once confirmed by being taken."""
        ...

    async def serve(self, desk: Desk, rpcs: dict[str, RpcHandler]) -> None:
        """Answer executors and CLIs from now on, until the link is closed."""
        ...

    async def executors(self) -> list[Heartbeat]:
        """Return the executors whose life sign has not expired."""
        ...

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read an object of either bucket and verify its digest."""
        ...

    async def put_blob(self, name: str, data: bytes, bucket: Bucket = "IN") -> BlobRef:
        """Store an object."""
        ...


class Ledger(Protocol):
    """Where the gateway asks for money; its real form is `gateway/reservation.py` over the budget RPC."""

    async def reserve(self, call_id: str, nano_usd: int, model: str) -> BudgetReply:
        """Hold the worst case of one call; not granted means the call is not made, or not now (`wait_s`)."""
        ...

    async def extend(self, call_id: str, nano_usd: int) -> BudgetReply:
        """Raise a held reservation to `nano_usd` in all."""
        ...

    async def settle(self, call_id: str, nano_usd: int, usage: Usage, *, unsettled: bool, limited_s: float | None = None) -> BudgetReply:
        """Replace the reservation by what the call cost, and say if the provider limited its rate."""
        ...


__all__ = [
    "HEARTBEAT_S",
    "LEASE_DOUBT_S",
    "LEASE_S",
    "PROTOCOL_VERSION",
    "RATE_PAUSE_MAX_S",
    "RATE_WAIT_MAX_S",
    "BudgetReply",
    "BudgetRequest",
    "ClaimReply",
    "ClaimRequest",
    "Control",
    "Delivery",
    "Desk",
    "ExecutorLink",
    "Heartbeat",
    "JoinReply",
    "JoinRequest",
    "Ledger",
    "Notice",
    "Outcome",
    "Progress",
    "RpcHandler",
    "StoredResult",
    "SupervisorLink",
]
