"""The lifetime of one attempt at its gateway: who may talk, what was assigned, submitted, spent and recorded; not how a call is made.

The socket is the identity (DECISIONS D6): its directory belongs to one attempt, the kernel names the peer, and nothing
secret is ever on it. The routes of the program inside (assignment, model, submission) belong to the first process that
used one of them (D18); another process of the same sandbox gets 403 there.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import ValidationError

from sandbox.contract.errors import UsageError
from sandbox.contract.job import Assignment, Submission
from sandbox.contract.packages import Fetched, Packages
from sandbox.contract.result import Usage
from sandbox.contract.wire import RATE_WAIT_MAX_S, Ledger
from sandbox.gateway.caps import TRACES, Bucket, Cap
from sandbox.gateway.cassette import CassetteSource, Replay
from sandbox.gateway.connection import Exchange
from sandbox.gateway.content import Capture
from sandbox.gateway.model_proxy import Gate, ModelProxy
from sandbox.gateway.otlp_body import TracesBody
from sandbox.gateway.peer import Peer
from sandbox.gateway.policy import Policy
from sandbox.gateway.refusal import Refusal
from sandbox.gateway.registries.proxy import PREFIX, RegistryRoutes
from sandbox.gateway.server import Route, Server
from sandbox.gateway.strict_json import parse_strictly
from sandbox.gateway.tally import CallReport, Failure, Tally, View
from sandbox.gateway.terms import Terms, Tuning
from sandbox.gateway.traces_route import TracesRoute
from sandbox.gateway.upstream import Provider, Source, Upstream
from sandbox.log import Log

log = Log(__name__)

SOCKET_NAME = "gateway.sock"
SUBMISSION_BYTES_MAX = 64 * 1024
SETTLE_GRACE_S = 5.0
"""Beyond the drain: for the settlement of a call whose drain took all its time."""


class Session:
    """An async context manager: inside it the socket answers; leaving it finishes the calls that are on their way."""

    def __init__(
        self,
        directory: Path,
        policy: Policy | None,
        ledger: Ledger,
        model: Upstream | Replay | None,
        *,
        stage: str,
        round_: int,
        peer_uid: int | None = None,
        headers: Mapping[str, str] | None = None,
        record: bool = False,
        on_traces: Callable[[TracesBody], None] | None = None,
        on_call: Callable[[CallReport], None] | None = None,
        capture: Capture | None = None,
        registries: RegistryRoutes | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        """Prepare the gateway of one attempt.

        Args:
            directory: Where the socket is made; it exists, only we can write to it, and the sandbox sees it read-only.
            policy: What may be asked of the model; None, as with `model`: there is no model route at all (checks jobs).
            ledger: Where money is asked for.
            model: The provider, or a cassette at this stage and round.
            stage: The stage recorded calls belong to.
            round_: Its round.
            peer_uid: The only uid that may connect; None: any.
            headers: x-andon-* headers for the provider.
            record: Keep every call for a cassette.
            on_traces: Takes each body of `POST /v1/traces`, unpacked: untrusted bytes; large ones in a thread. It must not block.
            on_call: Told of every model call after it was settled. It must not block.
            capture: Makes what it is told of what was said; None: nothing.
            registries: The package routes; None: every request for a package is refused.
            tuning: Prices, clock and waits, for tests.

        Raises:
            UsageError: The policy's model has no price.
        """
        self._tuning = tuning or Tuning()
        if policy and model and not self._tuning.prices.knows(policy.model):
            raise UsageError(f"model {policy.model!r} has no price: use one of sandbox/contract/prices.toml, or add its rates there")
        self._path = directory / SOCKET_NAME
        self._terms = Terms(policy, stage, round_, record, on_call, capture, self._tuning) if policy else None
        self._ledger = ledger
        self._model = model
        self._peer_uid = peer_uid
        self._headers = dict(headers or {})
        self._registries = registries or RegistryRoutes(None, "none", Packages(), base="")
        self._tally = Tally()
        self._gate = Gate()
        self._buckets = {target: Bucket(cap) for target, cap in self._tuning.caps.items()}
        if policy and isinstance(model, Replay):  # as fast as the host can; only the cap of the whole attempt holds
            self._buckets["/v1/messages"] = Bucket(Cap(burst=policy.calls_max, per_minute=policy.calls_max))
        self._traces = TracesRoute(on_traces, self._buckets)
        self._owner: Peer | None = None
        self._assignment: Assignment | None = None
        self._is_assigned = asyncio.Event()
        self._is_submitted = asyncio.Event()
        self._submission: Submission | None = None
        self._submitted_at: float | None = None
        self._first_byte_at: float | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        routes: dict[tuple[str, str], Route] = {
            ("GET", "/healthz"): self._capped("/healthz", self._answer_health),
            ("POST", TRACES): self._answer_traces,
            ("GET", "/andon/assignment"): self._owned("/andon/assignment", self._answer_assignment),
            ("POST", "/andon/submit"): self._owned("/andon/submit", self._answer_submission),
        }
        async with AsyncExitStack() as stack:
            if self._terms and self._model:
                proxy = ModelProxy(self._terms, await self._source(self._model, stack), self._ledger, self._tally, self._gate)
                for target, route in (("/v1/messages", proxy.messages), ("/v1/messages/count_tokens", proxy.count_tokens)):
                    for query in ("", *self._terms.policy.driver.targets):
                        routes["POST", target + query] = self._owned(target, route)
            server = Server(
                self._path,
                routes,
                below={PREFIX: self._registries.answer},
                peer_uid=self._peer_uid,
                timeouts=self._tuning.client,
                on_bytes=self._note_byte,
                gzip_targets=(TRACES,),
                drain_timeout_s=self._tuning.drain_s + SETTLE_GRACE_S,
            )
            await stack.enter_async_context(server)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._gate.end()
        self._registries.end()
        self._is_assigned.set()
        await self._stack.aclose()

    def assign(self, assignment: Assignment) -> None:
        """Give the program inside its work; until then its polls wait.

        Raises:
            RuntimeError: It has some already.
        """
        if self._assignment:
            raise RuntimeError("an attempt is assigned once")
        self._assignment = assignment
        self._tally.activity.note()
        self._is_assigned.set()

    def suspend(self) -> None:
        """Grant no further model call until `resume`; calls on their way are finished (DECISIONS D2)."""
        if self._gate.is_open.is_set():
            self._gate.is_open.clear()
            self._tally.activity.excuse()

    def resume(self) -> None:
        """Grant model calls again."""
        if not self._gate.is_open.is_set():
            self._gate.is_open.set()
            self._tally.activity.resume()

    async def tool_environment(self) -> dict[str, str]:
        """Return the variables by which tools and checks find the package routes."""
        return await self._registries.environment()

    async def wait_submitted(self) -> Submission:
        """Wait for the submission; bounded by the caller."""
        await self._is_submitted.wait()
        if self._submission is None:
            raise RuntimeError("submitted without a submission")
        return self._submission

    async def wait_idle(self, limit_s: float) -> None:
        """Wait until neither the program inside nor the provider was heard of for `limit_s` s, waits for others not counted."""
        await self._tally.activity.wait_idle(limit_s)

    @property
    def submission(self) -> Submission | None:
        """What the program inside submitted: untrusted."""
        return self._submission

    @property
    def view(self) -> View:
        """What the attempt is doing now."""
        return self._tally.view

    @property
    def is_limited(self) -> bool:
        """Whether the attempt waits for the provider's rate limit now."""
        return self._tally.activity.is_limited

    @property
    def limited_s(self) -> float:
        """For how long it has waited for it in all, as far as no deadline is charged for it."""
        return min(self._tally.activity.limited_s, RATE_WAIT_MAX_S)

    @property
    def first_byte_at(self) -> float | None:
        """Unix seconds of the first byte on the socket."""
        return self._first_byte_at

    @property
    def submitted_at(self) -> float | None:
        """Unix seconds of the first submission that was taken."""
        return self._submitted_at

    @property
    def usage(self) -> Usage:
        """Tokens of all settled calls."""
        return self._tally.usage

    @property
    def cost_nano_usd(self) -> int:
        """Cost of all settled calls."""
        return self._tally.cost_nano_usd

    @property
    def failure(self) -> Failure | None:
        """Why model calls cannot succeed any more, if so."""
        return self._tally.failure

    @property
    def fetched(self) -> Fetched:
        """What was fetched through the package routes, and refused there."""
        return self._registries.fetched

    @property
    def divergences(self) -> int:
        """Replayed turns whose tool output differed from the recording."""
        return self._tally.divergences

    @property
    def unsettled_calls(self) -> int:
        """Calls that were charged in full because their figure was lost or could not be priced."""
        return self._tally.unsettled_calls

    @property
    def anomalies(self) -> tuple[str, ...]:
        """Why calls could not be priced."""
        return tuple(self._tally.anomalies)

    @property
    def dropped(self) -> dict[str, int]:
        """What did not fit: recorded calls, requests with traces, requests beyond a route's cap."""
        capped = sum(bucket.refused for bucket in self._buckets.values())
        return {"records": self._tally.records_dropped, "traces": self._traces.refused, "requests": capped}

    @property
    def pinned_to(self) -> Literal["process", "uid", "nobody"]:
        """Whom the owned routes are pinned to; `uid`: the peer's process is not visible from here (D18)."""
        if self._owner is None:
            return "nobody"
        return "process" if self._owner.pid and self._owner.started_ticks else "uid"

    def recording(self) -> bytes:
        """Return the recorded calls as JSON lines (`contract/cassette.load_recording`)."""
        return self._tally.recording()

    async def _source(self, model: Upstream | Replay, stack: AsyncExitStack) -> Source:
        if isinstance(model, Replay):
            return CassetteSource(model, self._tally)
        return Provider(model, await stack.enter_async_context(model.client()), self._headers)

    def _capped(self, target: str, route: Route) -> Route:
        bucket = self._buckets[target]

        async def checked(exchange: Exchange) -> None:
            bucket.take()
            await route(exchange)

        return checked

    def _owned(self, target: str, route: Route) -> Route:
        """Let nobody but the first peer use a route; another one's requests do not use up the owner's cap."""
        capped = self._capped(target, route)

        async def checked(exchange: Exchange) -> None:
            self._owner = self._owner or exchange.peer
            if exchange.peer != self._owner:
                log.warning(
                    "gateway.second_peer",
                    "a second process asked for the model",
                    pid=exchange.peer.pid,
                    owner=self._owner.pid,
                    target=exchange.target,
                )
                raise Refusal(403, "permission_error", "this route belongs to another process", retry=False)
            await capped(exchange)

        return checked

    def _note_byte(self) -> None:
        self._tally.activity.note()
        if self._first_byte_at is None:
            self._first_byte_at = self._tuning.now()

    async def _answer_health(self, exchange: Exchange) -> None:
        await exchange.reply(200, b'{"status":"ok"}')

    async def _answer_assignment(self, exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(self._tuning.assignment_poll_s):
                await self._is_assigned.wait()
        except TimeoutError:
            await exchange.start(204, [])
            await exchange.end()
            return
        if self._assignment:
            await exchange.reply(200, self._assignment.model_dump_json().encode())

    async def _answer_submission(self, exchange: Exchange) -> None:
        body = await exchange.read_body(SUBMISSION_BYTES_MAX)
        try:
            parse_strictly(body)
            submission = Submission.model_validate_json(body)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            raise _refused_submission(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
        except ValueError as error:
            raise _refused_submission(str(error)) from error
        if self._submission and submission != self._submission:  # the same one again: its reply was lost
            raise Refusal(409, "invalid_request_error", "this attempt has submitted already", retry=False)
        self._submission = submission
        self._submitted_at = self._submitted_at or self._tuning.now()
        self._is_submitted.set()
        await exchange.reply(200, b'{"accepted":true}')

    async def _answer_traces(self, exchange: Exchange) -> None:
        # Whoever asks for the assignment is the program, and nothing else runs before it has one.
        await self._traces.answer(exchange, is_from_program=self._owner in {None, exchange.peer})


def _refused_submission(why: str) -> Refusal:
    return Refusal(400, "invalid_request_error", f"the submission is refused: {why[:400]}", retry=False)
