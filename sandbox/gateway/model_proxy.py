"""The way of one model call: judge, reserve, send, stream and meter, settle; not HTTP to the client (`connection`) nor to the provider.

A call that was sent is finished whatever its client does: the stream is read to its end for its figures, at most
60 s after the client left (DECISIONS D7). Whatever happens, its reservation is settled: at the provider's figure, or in full.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime

from sandbox.contract.errors import BrokerError, BudgetExhausted
from sandbox.contract.wire import Ledger
from sandbox.gateway.connection import Exchange
from sandbox.gateway.patience import Patience
from sandbox.gateway.policy import Judged, judge
from sandbox.gateway.refusal import ClientGone, Refusal
from sandbox.gateway.relay import Relay
from sandbox.gateway.reservation import Hold, hold, worst_case_nano_usd
from sandbox.gateway.tally import CallReport, Failure, Tally
from sandbox.gateway.terms import Terms
from sandbox.gateway.upstream import Call, Fault, Source
from sandbox.log import Log

log = Log(__name__)

BODY_BYTES_MAX = 32 << 20
LARGE_BODY_BYTES = 256 * 1024
"""Bodies from this size on are judged in a thread: parsing 32 MiB would hold the loop that keeps the leases."""
SUSPENDED_MAX_S = 900.0
API_VERSION = "2026-10-21"
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class Gate:
    """Whether calls may go out at all: not while the attempt is suspended (DECISIONS D2), not after its end."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()
        self.is_open.set()
        self._is_over = asyncio.Event()

    def end(self) -> None:
        """Let everything that waits go on, to find its client gone."""
        self._is_over.set()
        self.is_open.set()

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond the attempt's end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_over.wait()


class ModelProxy:
    """Answers the model routes of one attempt."""

    def __init__(self, terms: Terms, source: Source, ledger: Ledger, tally: Tally, gate: Gate) -> None:
        """Bind the parts of one attempt."""
        self._terms = terms
        self._source = source
        self._ledger = ledger
        self._tally = tally
        self._gate = gate

    async def count_tokens(self, exchange: Exchange) -> None:
        """Answer `POST /v1/messages/count_tokens`; it is free, and no cassette has it."""
        call = await self._call(exchange, is_count=True)
        await self._wait_until_granted(exchange)
        tokens = await self._source.count_tokens(call)
        await exchange.reply(200, b'{"input_tokens": %d}' % tokens)

    async def messages(self, exchange: Exchange) -> None:
        """Answer `POST /v1/messages`.

        Raises:
            Refusal: The request is not allowed, there is no money for it, or the provider did not serve it.
            ClientGone: The client left.
        """
        call = await self._call(exchange, is_count=False)
        report = CallReport(
            turn=call.judged.turn,
            model=call.judged.model,
            output_tokens_max=call.judged.output_tokens_max,
            is_replay=self._source.is_replay,
            traceparent=next(iter(exchange.values("traceparent")), "")[:64],
            started_at=self._terms.tuning.now(),
        )
        self._tally.begin(call.judged.turn)
        try:
            trouble = await self._answer(exchange, call, report)
        except Refusal as refusal:
            report.error = refusal.kind
            raise
        finally:
            report.ended_at = self._terms.tuning.now()
            if self._terms.on_call:
                self._terms.on_call(report)
        if trouble:
            await exchange.write(trouble.event())
        await exchange.end()

    async def _call(self, exchange: Exchange, *, is_count: bool) -> Call:
        self._tally.calls = number = self._tally.calls + 1
        if number > self._terms.policy.calls_max:
            raise Refusal(429, "rate_limit_error", f"this attempt has made its {self._terms.policy.calls_max} model calls", retry=False)
        headers = _api_headers(exchange, self._terms.policy.driver.betas)
        body = await exchange.read_body(BODY_BYTES_MAX)
        return Call(number, await self._judge(body, is_count=is_count), body, headers)

    async def _judge(self, body: bytes, *, is_count: bool) -> Judged:
        if len(body) < LARGE_BODY_BYTES:
            return judge(body, self._terms.policy, is_count=is_count)
        return await asyncio.to_thread(judge, body, self._terms.policy, is_count=is_count)

    async def _wait_until_granted(self, exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(SUSPENDED_MAX_S):
                await self._gate.is_open.wait()
        except TimeoutError as error:
            raise Refusal(503, "api_error", "this attempt is suspended", retry=True) from error
        if exchange.is_gone:
            raise ClientGone

    async def _answer(self, exchange: Exchange, call: Call, report: CallReport) -> Refusal | None:
        """Try a call until it is served; return, settled, what its client still has to be told."""
        terms = self._terms
        today = datetime.fromtimestamp(terms.tuning.now(), UTC).date()
        nano_usd = worst_case_nano_usd(terms.tuning.prices, call.judged.model, len(call.body), call.judged.output_tokens_max, today)
        patience = Patience(terms.tuning.retry_pauses_s)
        while True:
            await self._wait_until_granted(exchange)
            report.tries += 1
            try:
                async with self._held(exchange, f"{call.number}.{report.tries}", nano_usd, call, report) as held:
                    return await self._try(exchange, call, held, report)
            except Fault as fault:
                report.limited += fault.is_limit
                pause_s = patience.pause_s(fault)
                if pause_s is None:
                    if fault.failure:
                        self._tally.fail(fault.failure)
                    raise
                log.info("call.retried", "the model is asked again", status=fault.status, turn=call.judged.turn, tries=report.tries)
                if fault.is_limit:
                    await self._wait_for_rate(exchange, report, pause_s)
                    continue
                with self._tally.activity.excused():
                    await self._gate.pause(pause_s)

    async def _wait_for_rate(self, exchange: Exchange, report: CallReport, seconds: float) -> None:
        """Wait for the provider's rate limit, which no deadline of the attempt is charged for.

        Raises:
            Fault: The call has waited so long that its client is about to give up.
            ClientGone: It has.
        """
        if report.waited_s + seconds > self._terms.tuning.rate_wait_s:
            message = f"the provider's rate limit has let no call through for {report.waited_s:.0f} s"
            failure = Failure(kind="provider", message=message)
            self._tally.fail(failure)
            raise Fault(529, "overloaded_error", message, failure=failure)
        report.waited_s += seconds
        with self._tally.activity.limited():
            await self._gate.pause(seconds)
        await self._wait_until_granted(exchange)

    @asynccontextmanager
    async def _held(self, exchange: Exchange, call_id: str, nano_usd: int, call: Call, report: CallReport) -> AsyncIterator[Hold]:
        held: Hold | None = None

        async def pause(seconds: float) -> None:
            await self._wait_for_rate(exchange, report, seconds)

        try:
            async with AsyncExitStack() as stack:
                with self._tally.activity.excused():
                    held = await stack.enter_async_context(hold(self._ledger, call_id, nano_usd, call.judged.model, pause=pause))
                yield held
        except BudgetExhausted as error:
            raise self._budget_refusal(error) from error
        except BrokerError as error:
            raise Refusal(503, "api_error", "the ledger does not answer", retry=True) from error
        finally:
            if held:
                self._tally.settled(held)
                report.usage += held.usage
                report.cost_nano_usd += held.cost_nano_usd or 0
                report.unsettled |= held.unsettled

    async def _try(self, exchange: Exchange, call: Call, held: Hold, report: CallReport) -> Refusal | None:
        try:
            async with self._source.open(call, held) as reply:
                return await Relay(self._terms, self._source, self._tally, exchange, call, held, report).run(reply)
        except Fault as fault:
            held.note_limit(fault.is_limit, fault.retry_after_s)
            if fault.is_free:
                held.free()
            raise

    def _budget_refusal(self, error: BudgetExhausted) -> Refusal:
        self._tally.fail(Failure(kind="budget", message=str(error)))
        # The one shape that every client obeys at once (AGENT.md §4.5).
        return Refusal(429, "billing_error", f"the budget does not allow this call: {error}", retry=False)


def _api_headers(exchange: Exchange, allowed: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """Return the API version the client speaks and its allowed betas; no other header goes out, another beta is refused by name."""
    betas = [beta.strip() for value in exchange.values("anthropic-beta") for beta in value.split(",")]
    if refused := next((beta for beta in betas if beta not in allowed), None):
        raise Refusal(400, "invalid_request_error", f"anthropic-beta: {refused[:80]!r} is not allowed here", retry=False)
    versions = exchange.values("anthropic-version") or [API_VERSION]
    if len(versions) != 1 or not _VERSION.fullmatch(versions[0]):
        raise Refusal(400, "invalid_request_error", "anthropic-version: expected one date", retry=False)
    return (("anthropic-version", versions[0]), *([("anthropic-beta", ",".join(betas))] if betas else []))
