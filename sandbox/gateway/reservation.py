"""Money for one model call: hold the worst case before it, settle after it; the ledger itself is the supervisor's (DECISIONS D4).

Nothing is ever granted here. A ledger that does not answer makes the call wait, and an unsettled reservation stays charged.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import date
from typing import Protocol

from sandbox.contract.errors import BrokerError, BudgetExhausted
from sandbox.contract.price import PriceList
from sandbox.contract.result import Usage
from sandbox.contract.wire import BudgetReply, BudgetRequest, Ledger
from sandbox.log import Log

log = Log(__name__)

BODY_BYTES_PER_TOKEN = 3
"""A JSON body has more bytes than this for each token in all but contrived text; `extend` catches the rest."""
HIDDEN_PROMPT_TOKENS = 2_000
"""What the provider adds to a prompt for tools that are named, not described, in the body."""
ANSWER_TIMEOUT_S = 5.0
RETRY_PAUSE_S = 1.0
RESERVE_WAIT_MAX_S = 600.0
SETTLE_WAIT_MAX_S = 60.0


def worst_case_nano_usd(prices: PriceList, model: str, body_bytes: int, output_tokens_max: int, on: date) -> int:
    """Return what a call can cost at most: its body at the dearest input rate, and all the output it may have.

    Raises:
        UsageError: The model has no price.
    """
    prompt_tokens = -(-body_bytes // BODY_BYTES_PER_TOKEN) + HIDDEN_PROMPT_TOKENS
    rates = prices.rates(model, prompt_tokens, on)
    return prompt_tokens * rates.dearest_input + output_tokens_max * rates.output


class BudgetLink(Protocol):
    """The part of `wire.ExecutorLink` that money needs."""

    async def budget(self, request: BudgetRequest) -> BudgetReply:
        """Reserve, extend or settle."""
        ...


class BudgetLedger:
    """`wire.Ledger` of one attempt over the budget RPC; asks again until it is answered, with the same call id."""

    def __init__(
        self, link: BudgetLink, *, executor: str, run_id: str, job_id: str, attempt: int, token: str, wait_max_s: float = RESERVE_WAIT_MAX_S
    ) -> None:
        """Bind the ledger to an attempt by the token of its claim; `wait_max_s` bounds how long a call waits for an answer."""
        self._link = link
        self._wait_max_s = wait_max_s
        self._attempt = BudgetRequest(
            executor=executor, run_id=run_id, job_id=job_id, attempt=attempt, token=token, op="reserve", call_id="-", nano_usd=0
        )

    async def reserve(self, call_id: str, nano_usd: int, model: str) -> BudgetReply:
        """Hold the worst case of one call, waiting for the supervisor.

        Raises:
            BrokerError: It did not answer in that time.
        """
        request = self._attempt.model_copy(update={"call_id": call_id, "nano_usd": nano_usd, "model": model})
        return await self._ask(request, self._wait_max_s)

    async def extend(self, call_id: str, nano_usd: int) -> BudgetReply:
        """Raise a held reservation to `nano_usd` in all; waits as `reserve` does."""
        request = self._attempt.model_copy(update={"op": "extend", "call_id": call_id, "nano_usd": nano_usd})
        return await self._ask(request, self._wait_max_s)

    async def settle(self, call_id: str, nano_usd: int, usage: Usage, *, unsettled: bool, limited_s: float | None = None) -> BudgetReply:
        """Replace the reservation by what the call cost; waits at most 60 s.

        Raises:
            BrokerError: The supervisor did not answer in that time; the reservation stays charged there.
        """
        update = {"op": "settle", "call_id": call_id, "nano_usd": nano_usd, "usage": usage, "unsettled": unsettled, "limited_s": limited_s}
        return await self._ask(self._attempt.model_copy(update=update), min(self._wait_max_s, SETTLE_WAIT_MAX_S))

    async def _ask(self, request: BudgetRequest, wait_max_s: float) -> BudgetReply:
        try:
            async with asyncio.timeout(wait_max_s):
                while True:
                    try:
                        async with asyncio.timeout(ANSWER_TIMEOUT_S):
                            return await self._link.budget(request)
                    except (BrokerError, TimeoutError):
                        log.warning("ledger.silent", "the ledger does not answer; the call waits", op=request.op, call_id=request.call_id)
                    await asyncio.sleep(RETRY_PAUSE_S)
        except TimeoutError as error:
            raise BrokerError(f"the ledger did not answer {request.op} for {wait_max_s:.0f} s: is the supervisor running?") from error


class Hold:
    """The reservation of one call while it runs; unless told what the call cost, it is charged in full."""

    def __init__(self, ledger: Ledger, call_id: str, nano_usd: int) -> None:
        self.nano_usd = nano_usd
        """What is held."""
        self.usage = Usage()
        self.cost_nano_usd: int | None = 0
        """None: sent, and its cost is not known (yet)."""
        self.unsettled = False
        """Settled in full because the figure was lost or could not be priced."""
        self.limited_s: float | None = None
        """The provider limited its rate, and asked for so many seconds without calls."""
        self._ledger = ledger
        self._call_id = call_id

    def send(self) -> None:
        """Note that the request goes out: from here on it may cost something."""
        self.cost_nano_usd = None

    def free(self) -> None:
        """Note that the provider did not serve the request."""
        self.cost_nano_usd = 0

    def charge(self, usage: Usage, cost_nano_usd: int) -> None:
        """Note what the call cost by the provider's own figures."""
        self.usage = usage
        self.cost_nano_usd = cost_nano_usd

    def charge_in_full(self, usage: Usage, least_nano_usd: int) -> None:
        """Charge the whole reservation, or `least_nano_usd` if that is more: the figures cannot be trusted."""
        self.usage = usage
        self.cost_nano_usd = max(self.nano_usd, least_nano_usd)
        self.unsettled = True

    def note_limit(self, is_limit: bool, retry_after_s: float | None) -> None:
        """Note whether the provider refused this call for its rate, and for how long it wants none."""
        if is_limit:
            self.limited_s = retry_after_s or 0.0

    async def extend(self, nano_usd: int) -> None:
        """Raise the reservation to `nano_usd`.

        Raises:
            BudgetExhausted: The budget does not allow it.
        """
        reply = await self._ledger.extend(self._call_id, nano_usd)
        if not reply.granted:
            raise BudgetExhausted(reply.reason or "the budget is exhausted")
        self.nano_usd = nano_usd

    async def settle(self) -> None:
        """Tell the ledger; one that does not answer keeps the reservation charged, which is logged."""
        if self.cost_nano_usd is None:
            self.charge_in_full(self.usage, 0)
        try:
            cost = self.cost_nano_usd or 0
            await self._ledger.settle(self._call_id, cost, self.usage, unsettled=self.unsettled, limited_s=self.limited_s)
        except BrokerError:
            log.exception("call.unsettled", "what a call cost was not told; the supervisor charges it in full", call_id=self._call_id)


@asynccontextmanager
async def hold(
    ledger: Ledger, call_id: str, nano_usd: int, model: str, *, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncIterator[Hold]:
    """Reserve `nano_usd`, and settle when the context is left, whatever ends it.

    Args:
        ledger: Where money is asked for.
        call_id: The call's name, the same however often it is asked.
        nano_usd: The most it can cost.
        model: What it asks.
        pause: Waits until the ledger may be asked again, because the provider's rate is limited; it bounds these waits by raising.

    Raises:
        BudgetExhausted: The budget does not allow it.
        BrokerError: The ledger did not answer.
    """
    reply = await ledger.reserve(call_id, nano_usd, model)
    while not reply.granted and reply.wait_s > 0:
        await pause(reply.wait_s)
        reply = await ledger.reserve(call_id, nano_usd, model)
    if not reply.granted:
        raise BudgetExhausted(reply.reason or "the budget is exhausted")
    held = Hold(ledger, call_id, nano_usd)
    try:
        yield held
    finally:
        await _finish(held.settle)


async def _finish(settle: Callable[[], Awaitable[None]]) -> None:
    """Run `settle` to its end, also when this task is cancelled meanwhile; it is bounded by itself."""
    task = asyncio.ensure_future(settle())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
