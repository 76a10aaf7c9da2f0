"""Answers executors: who may work on what (claims), and what a model call may cost (budget). Every yes is an event first.

An attempt is its token: the executor's own, told at the claim, only its hash is in the log. The supervisor counts attempts here, not the
broker (`num_delivered` is no fencing token: NATS.md §2).
"""

import hashlib
import hmac
from collections.abc import Callable
from decimal import Decimal
from typing import Literal

from sandbox.contract.ids import RUN_ID_CHARS, attempt_path, span_id
from sandbox.contract.release import RELEASE
from sandbox.contract.subjects import pool_of_ack
from sandbox.contract.wire import (
    LEASE_DOUBT_S,
    PROTOCOL_VERSION,
    BudgetReply,
    BudgetRequest,
    ClaimReply,
    ClaimRequest,
    JoinReply,
    JoinRequest,
)
from supervisor.orchestrator.actor import RunActor
from supervisor.orchestrator.effects import copy_name, end_as_lost
from supervisor.orchestrator.ports import Ports
from supervisor.orchestrator.rates import Caller, Rates
from supervisor.pipeline import budget
from supervisor.pipeline.budget import Ruling, call_key
from supervisor.pipeline.events import AnyEvent, AttemptStarted, BudgetReserved, BudgetSettled
from supervisor.pipeline.fate import fate_of
from supervisor.pipeline.machine import closing, may_claim
from supervisor.pipeline.run import AttemptState, JobState, RunState
from supervisor.pipeline.survey import stage_of

CLAIM_ROUNDS_MAX = 3
"""Rulings on one claim: a dead attempt is ended, then a new one granted; more means that others claim at the same moment."""

Find = Callable[[str], RunActor | None]
Decision = Literal["grant", "again", "takeover", "busy", "done", "gone"]


def sha256_of(token: str) -> str:
    """Return what the log keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def rule_claim(run: RunState, job: JobState, request: ClaimRequest, *, held_s: float = 0.0) -> Decision:
    """Decide one claim.

    again: the current attempt is this very claim's, the same answer again. takeover: this executor holds the current attempt but has
    lost it (restarted), or another one was handed the job because the lease ran out: that attempt has ended. gone: not to be worked on
    (now), or another copy of the job is being worked on: this copy is taken from the bus.

    Args:
        run: The run's state.
        job: The claimed job.
        request: Who asks.
        held_s: How long the current attempt has been held, as far as this process knows.
    """
    current = job.current
    if current is not None and _is_token(current, request.executor, request.token):
        return "again"
    if request.goes_on:
        return "gone"
    if job.is_done:
        return "done"
    if current is not None:
        if not _is_same_copy(current.ack_subject, request.ack_subject):
            return "gone"
        if current.executor != request.executor:
            # The broker hands a job out again only when nobody renewed its lease; whoever still works stands still by now, and will ask
            # before it goes on. An executor that was killed between its grant and its first note does not even know that it had it.
            return "takeover" if held_s >= LEASE_DOUBT_S else "busy"
        return "takeover"
    if may_claim(run, job):
        return "grant"
    return "done" if job.ended is not None and fate_of(run, job, job.ended).is_for_gates else "gone"


def _is_same_copy(ack_subject: str, other: str) -> bool:
    """Return whether two deliveries are of the same message: a job that was taken back from an executor's lane is another one.

    The stream numbers its messages: `$JS.ACK.JOBS.<lane>.<deliveries>.<number>.<…>.<…>.<…>`.
    """
    return ack_subject.split(".")[-4:-3] == other.split(".")[-4:-3]


def _is_of_pool(run: RunState, request: ClaimRequest) -> bool:
    """Return whether the delivery the executor names is one of the job's pool: a pool is the trust boundary (DECISIONS D3).

    The supervisor acks that subject when the attempt is lost, so it must not be another pool's.
    """
    stage = stage_of(run.pipeline, run.jobs[request.job_id].stage)
    return stage is None or pool_of_ack(request.ack_subject) in {None, stage.pool}


def _is_token(attempt: AttemptState, executor: str, token: str) -> bool:
    return attempt.executor == executor and hmac.compare_digest(attempt.token_sha256, sha256_of(token))


class Desk:
    """The handlers of `SupervisorLink.serve`."""

    def __init__(self, ports: Ports, find: Find, joined: Callable[[JoinRequest], None] = lambda _request: None) -> None:
        self.rates = Rates(ports.monotonic, self._is_held)
        self._ports = ports
        self._find = find
        self._joined = joined

    async def join(self, request: JoinRequest) -> JoinReply:
        """Answer one introduction: an executor that speaks our version gets its lanes.

        Raises:
            BrokerError: The lanes cannot be made now; the executor asks again.
        """
        if request.version != PROTOCOL_VERSION:
            return JoinReply(accepted=False, reason=_other_version(request.executor, request.version), release=RELEASE)
        await self._ports.link.admit(request.executor, request.pools)
        self._joined(request)
        return JoinReply(accepted=True, release=RELEASE)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Answer one claim; a grant is in the log before it is given.

        Raises:
            BrokerError: The log cannot be written now; the executor asks again.
        """
        if request.version != PROTOCOL_VERSION:
            return ClaimReply(decision="refused", reason=_other_version(request.executor, request.version))
        actor = self._find(request.job_id[:RUN_ID_CHARS])
        if actor is None or request.job_id not in actor.state.jobs:
            return ClaimReply(decision="gone", reason="no such job in an open run")
        if not _is_of_pool(actor.state, request):
            return ClaimReply(decision="refused", reason="the delivery is of another pool than the job")
        for _ in range(CLAIM_ROUNDS_MAX):
            job = actor.state.jobs[request.job_id]
            match rule_claim(actor.state, job, request, held_s=actor.held_s(job)):
                case "again":
                    return self._granted(actor, job, request.token)
                case "takeover":
                    await end_as_lost(actor, job.job_id, len(job.attempts), _why_lost(job, request))
                case "grant":
                    reply = await self._grant(actor, request)
                    if reply is not None:
                        return reply
                case "busy":
                    return ClaimReply(decision="busy", reason="another executor has it")
                case "done":
                    return ClaimReply(decision="done")
                case "gone":
                    return ClaimReply(decision="gone", reason="not to be worked on now")
        return ClaimReply(decision="busy", reason="others claim it at this moment")

    async def _grant(self, actor: RunActor, request: ClaimRequest) -> ClaimReply | None:
        def build(run: RunState) -> AnyEvent | None:
            job = run.jobs[request.job_id]
            if not may_claim(run, job):
                return None
            return AttemptStarted(
                run_id=run.run_id,
                at=self._ports.clock(),
                job_id=job.job_id,
                attempt=len(job.attempts) + 1,
                executor=request.executor,
                token_sha256=sha256_of(request.token),
                ack_subject=request.ack_subject,
            )

        event = await actor.record(build)
        if not isinstance(event, AttemptStarted):
            return None
        job = actor.state.jobs[request.job_id]
        if job.current is None or job.current.attempt != event.attempt:  # ended again before we could answer
            return None
        self._ports.queue.taken(copy_name(job.job_id, job.publications))
        return self._granted(actor, job, request.token)

    def _granted(self, actor: RunActor, job: JobState, token: str) -> ClaimReply:
        run, attempt = actor.state, job.attempts[-1]
        stage = stage_of(run.pipeline, job.stage)
        wall_s = stage.limits.wall_s if stage else 0
        path = attempt_path(run.run_id, job.stage, job.round, attempt.attempt)
        return ClaimReply(
            decision="granted",
            attempt=attempt.attempt,
            token=token,
            traceparent=f"00-{run.trace_id}-{span_id(path)}-{run.sampled:02x}",
            wall_left_s=max(0.0, wall_s - actor.held_s(job)),
            dispatched_at=job.dispatched_at,
        )

    async def budget(self, request: BudgetRequest) -> BudgetReply:
        """Answer one reserve, extend or settle; a yes is in the log before it is given, a "not now" is not.

        Raises:
            BrokerError: The log cannot be written now; nothing is granted.
        """
        actor = self._find(request.run_id)
        if actor is None or not _is_attempts_own(actor.state, request):
            return BudgetReply(granted=False, remaining_nano_usd=0, reason="this attempt does not count (any more)")
        left = max(0, actor.state.budget.remaining_nano_usd)
        if wait_s := self._wait_s(actor.state, request):
            return BudgetReply(granted=False, remaining_nano_usd=left, reason="the provider limits the rate", wait_s=wait_s)
        ruling = Ruling(granted=False, reason="the run is over")
        try:
            ruling = await self._rule(actor, request)
        finally:
            if request.op == "reserve" and not ruling.granted:
                self.rates.drop(_caller(request))
        left = max(0, actor.state.budget.remaining_nano_usd)
        return BudgetReply(granted=ruling.granted, remaining_nano_usd=left, reason=ruling.reason)

    def _wait_s(self, run: RunState, request: BudgetRequest) -> float:
        """Return for how long a call that money would allow has to wait; a cassette has no rate."""
        if request.op != "reserve" or run.intent.mode == "replay" or not rule_budget(run, request).append:
            return 0.0
        return self.rates.ask(_caller(request), request.model)

    async def _rule(self, actor: RunActor, request: BudgetRequest) -> Ruling:
        answers: list[Ruling] = []

        def build(run: RunState) -> AnyEvent | None:
            answer = rule_budget(run, request)
            answers.append(answer)
            return _budget_event(run, request, self._ports.clock()) if answer.append else None

        event = await actor.record(build)
        if not answers or (answers[-1].append and event is None):
            return Ruling(granted=False, reason="the run is over")
        if request.op == "settle" and answers[-1].append:
            self.rates.settled(_caller(request), is_served=request.nano_usd > 0, limited_s=request.limited_s)
        return answers[-1]

    def _is_held(self, caller: Caller) -> bool:
        actor = self._find(caller.run_id)
        return actor is not None and call_key(caller.job_id, caller.attempt, caller.call_id) in actor.state.budget.held


def _caller(request: BudgetRequest) -> Caller:
    return Caller(request.run_id, request.job_id, request.attempt, request.call_id)


def _why_lost(job: JobState, request: ClaimRequest) -> str:
    holder = job.current.executor if job.current is not None else ""
    if holder == request.executor:
        return f"executor {holder} came back without it"
    return f"executor {holder} did not renew its lease, and {request.executor} was handed the job"


def _other_version(executor: str, version: int) -> str:
    older = f"executor {executor}" if version < PROTOCOL_VERSION else "the supervisor"
    return (
        f"executor {executor} speaks version {version} of the wire, this supervisor (release {RELEASE}) {PROTOCOL_VERSION}: update {older}"
    )


def _is_attempts_own(run: RunState, request: BudgetRequest) -> bool:
    """Return whether the request comes from the executor and with the token of the attempt it names."""
    job = run.jobs.get(request.job_id)
    if job is None:
        return False
    return any(one.attempt == request.attempt and _is_token(one, request.executor, request.token) for one in job.attempts)


def rule_budget(run: RunState, request: BudgetRequest) -> Ruling:
    """Decide one request of an attempt whose token was right: new money only for the current attempt of a line that goes on."""
    job = run.jobs[request.job_id]
    if request.op != "settle":
        if job.current is None or job.current.attempt != request.attempt:
            return Ruling(granted=False, reason="this attempt does not count any more")
        ends = closing(run)
        if ends is not None and ends.is_urgent:
            return Ruling(granted=False, reason="the run is being stopped")
    key = call_key(job.job_id, request.attempt, request.call_id)
    return budget.rule(run.budget, key, request.op, request.nano_usd, stage_left_nano_usd=_stage_left(run, job))


def _stage_left(run: RunState, job: JobState) -> int | None:
    """Return what a stage's own budget leaves over all its jobs, None if it has none."""
    stage = stage_of(run.pipeline, job.stage)
    if stage is None or stage.budget_usd is None:
        return None
    jobs = [one for one in run.jobs.values() if one.stage == job.stage]
    spent = sum(attempt.cost_nano_usd for one in jobs for attempt in one.attempts)
    held = sum(amount for key, amount in run.budget.held.items() if any(key.startswith(f"{one.job_id}/") for one in jobs))
    return int(Decimal(stage.budget_usd) * 10**9) - spent - held


def _budget_event(run: RunState, request: BudgetRequest, at: float) -> AnyEvent:
    call = {"run_id": run.run_id, "at": at, "job_id": request.job_id, "attempt": request.attempt, "call_id": request.call_id}
    if request.op == "settle":
        usage = {"usage": request.usage} if request.usage is not None else {}
        return BudgetSettled.model_validate(call | {"nano_usd": request.nano_usd, "unsettled": request.unsettled} | usage)
    return BudgetReserved.model_validate(call | {"nano_usd": request.nano_usd, "model": request.model})
