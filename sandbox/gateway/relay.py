"""One reply on its way: provider's events to the client, unbuffered, metered as they pass; not who may ask, nor retries (`model_proxy`)."""

import asyncio
from contextlib import aclosing
from datetime import UTC, date, datetime
from functools import partial

from sandbox.contract.errors import BrokerError, BudgetExhausted
from sandbox.gateway.cassette import record_of
from sandbox.gateway.connection import JSON_TYPE, Exchange
from sandbox.gateway.meter import Meter
from sandbox.gateway.refusal import ClientGone, Refusal
from sandbox.gateway.reservation import Hold
from sandbox.gateway.sse import Event
from sandbox.gateway.tally import CallReport, Failure, Tally
from sandbox.gateway.terms import Terms
from sandbox.gateway.upstream import Call, Fault, Reply, Source, StreamBroken, fault_of_event
from sandbox.gateway.whole_reply import message_of

LARGE_BYTES = 256 * 1024
"""From this size on what was said is put together in a thread."""
_STREAM_HEADERS = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))


class Relay:
    """Streams one reply to its client, and goes on without the client if it leaves."""

    def __init__(self, terms: Terms, source: Source, tally: Tally, exchange: Exchange, call: Call, held: Hold, report: CallReport) -> None:
        """Bind everything one reply touches."""
        self._terms = terms
        self._source = source
        self._tally = tally
        self._exchange = exchange
        self._call = call
        self._held = held
        self._report = report
        self._meter = Meter(terms.policy.cache_ttl)
        self._forwarded: list[bytes] = []
        self._has_client = True
        self._has_begun = False
        self._is_covered = False
        self._limit = asyncio.timeout(None)
        self._today: date = datetime.fromtimestamp(terms.tuning.now(), UTC).date()

    async def run(self, reply: Reply) -> Refusal | None:
        """Relay `reply` to its end and note on the reservation what it cost.

        Returns:
            None if the reply is whole. Otherwise what its client still has to be told, as an `error` event, once the
            reservation is settled: a stream that is merely cut would pass for a whole one with some clients.

        Raises:
            Refusal: The reply failed before a byte of it reached the client.
        """
        try:
            async with self._limit:
                trouble = await self._stream(reply)
        except (StreamBroken, TimeoutError):
            trouble = None
        if trouble is None and not self._meter.is_complete:
            trouble = _broken()
        self._settle(reply)
        self._describe(trouble)
        if trouble is None:
            self._tally.succeeded()
            self._record()
            await self._send_whole()
        await self._capture()
        if trouble is not None and not self._exchange.has_started:
            raise trouble
        return trouble

    async def _stream(self, reply: Reply) -> Refusal | None:
        async with aclosing(reply.batches()) as batches:
            async for events in batches:
                self._begin(events)
                data, trouble = self._pass(events)
                if self._source.leaks(data):
                    return Refusal(502, "api_error", "the provider's reply held our key and was cut", retry=False)
                if uncovered := await self._cover():
                    return uncovered
                await self._send(data)
                if trouble:
                    return trouble
        return None

    def _begin(self, events: list[Event]) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        self._report.first_event_at = self._terms.tuning.now()
        if events[0].name == "error":  # nothing was served: this try may still be made again
            raise fault_of_event(events[0])

    def _pass(self, events: list[Event]) -> tuple[bytes, Refusal | None]:
        """Meter events; return the bytes to forward, and why the stream ends here if an error came."""
        data = b""
        for event in events:
            if event.name == "error":
                return data, fault_of_event(event)
            self._meter.read(event)
            data += event.raw
        self._tally.tool = self._meter.tool
        self._tally.activity.note()
        return data, None

    async def _cover(self) -> Refusal | None:
        """Raise the reservation once, if the prompt turns out larger than its bytes let us think."""
        if self._is_covered or not self._meter.has_started:
            return None
        self._is_covered = True
        prompt_nano_usd = self._meter.cost_nano_usd(self._terms.tuning.prices, self._call.judged.model, self._today)
        rates = self._terms.tuning.prices.rates(self._call.judged.model, self._meter.prompt_tokens, self._today)
        needed = prompt_nano_usd + self._call.judged.output_tokens_max * rates.output
        if needed <= self._held.nano_usd:
            return None
        try:
            await self._held.extend(needed)
        except BudgetExhausted as error:
            self._tally.fail(Failure(kind="budget", message=str(error)))
            return Refusal(429, "billing_error", f"the budget does not allow this call to go on: {error}", retry=False)
        except BrokerError:
            return Refusal(503, "api_error", "the ledger does not answer", retry=True)
        return None

    async def _send(self, data: bytes) -> None:
        self._forwarded.append(data)
        if not self._has_client or not self._call.judged.is_streamed:
            return
        try:
            if not self._exchange.has_started:
                await self._exchange.start(200, _STREAM_HEADERS)
            await self._exchange.write(data)
        except ClientGone:
            self._has_client = False
            if not self._limit.expired() and self._limit.when() is None:
                self._limit.reschedule(asyncio.get_running_loop().time() + self._terms.tuning.drain_s)

    async def _send_whole(self) -> None:
        """Answer a client that did not ask for a stream, now that its reply is whole."""
        if not self._call.judged.is_streamed:
            try:
                body = message_of(b"".join(self._forwarded))
            except ValueError as error:
                raise Refusal(502, "api_error", "the provider's reply makes no sense", retry=False) from error
            await self._exchange.start(200, [("content-type", JSON_TYPE), ("content-length", str(len(body)))])
            await self._exchange.write(body)

    def _settle(self, reply: Reply) -> None:
        meter, prices = self._meter, self._terms.tuning.prices
        usage, cost = meter.usage, meter.cost_nano_usd(prices, self._call.judged.model, self._today)
        anomalies = list(meter.anomalies)
        if meter.reply_model and not prices.knows(meter.reply_model):
            anomalies.append(f"the reply names model {meter.reply_model!r}, which has no price")
        if meter.is_complete and reply.priced:
            self._held.charge(*reply.priced)
        elif meter.is_complete and not anomalies:
            self._held.charge(usage, cost)
        else:
            self._held.charge_in_full(usage, cost)
        self._tally.note(anomalies)

    def _describe(self, trouble: Refusal | None) -> None:
        report, meter = self._report, self._meter
        report.reply_model, report.reply_id, report.stop_reason = meter.reply_model, meter.reply_id, meter.stop_reason
        report.error = trouble.kind if trouble else ""
        if isinstance(trouble, Fault):
            self._held.note_limit(trouble.is_limit, trouble.retry_after_s)
            if trouble.failure and self._exchange.has_started:
                self._tally.fail(trouble.failure)

    async def _capture(self) -> None:
        """Note what was said, if a person opted in; large conversations in a thread, which the loop does not wait for."""
        if self._terms.capture:
            sse = b"".join(self._forwarded)
            is_large = len(self._call.body) + len(sse) > LARGE_BYTES
            work = partial(self._terms.capture.of, self._call.judged.document, sse)
            self._report.content = await asyncio.to_thread(work) if is_large else work()

    def _record(self) -> None:
        if self._terms.records:
            priced = (self._held.usage, self._held.cost_nano_usd or 0)
            self._tally.record(record_of(self._call, self._terms.stage, self._terms.round, b"".join(self._forwarded), priced))


def _broken() -> Fault:
    message = "the provider's stream broke off"
    return Fault(529, "overloaded_error", message, is_retryable=True, is_free=False, failure=Failure(kind="provider", message=message))
