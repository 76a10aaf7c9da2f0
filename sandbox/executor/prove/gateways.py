"""The gateway of a proof's sandbox, as an attempt has it, with a provider of our own behind; and one without the walls, as control."""

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from sandbox.contract.price import shipped_prices
from sandbox.contract.result import Usage
from sandbox.contract.wire import BudgetReply, Ledger
from sandbox.executor.prove.attack.gateway import call_body
from sandbox.executor.prove.provider import Provider, provider, text
from sandbox.executor.prove.report import Said
from sandbox.executor.prove.scene import MODEL, OUTPUT_TOKENS, STAGE, Scene
from sandbox.gateway.otlp_body import TracesBody
from sandbox.gateway.otlp_relay import OtlpRelay
from sandbox.gateway.policy import Policy
from sandbox.gateway.reservation import worst_case_nano_usd
from sandbox.gateway.session import Session
from sandbox.gateway.terms import Tuning
from sandbox.gateway.upstream import Upstream
from sandbox.telemetry import Context, Spans

RACE_CALLS = 24
"""Fewer than a gateway serves connections, so that money alone decides."""
RACE_PAID_CALLS = 2
RACE_HOLD_S = 0.6
"""How long the provider takes: every call of the race is asked for before the first is paid."""
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
_SPAN_ID = "b7ad6b7169203331"
_FORGED = (b"forged", bytes.fromhex("f" * 32), b"f" * 32)


@dataclass
class Traces:
    """What came on the trace route, and what our relay makes of it."""

    relay: OtlpRelay
    spans: Spans
    bodies: list[bytes] = field(default_factory=list)

    def take(self, body: TracesBody) -> None:
        """Take one body, as an attempt does."""
        self.bodies.append(body.data)
        self.relay.take(body)

    def passed(self) -> Said:
        """Return whether a forged span would reach a run's trace."""
        made = b"".join(gzip.decompress(payload) for payload in self.spans.drain(TRACE_ID))
        if not self.relay.accepted:
            return Said(won=False, said="not even the sandbox's own span was taken: nothing is proved", made=False)
        is_forged = any(mark in made for mark in _FORGED) or self.relay.accepted > 1
        return Said(won=is_forged, said=f"{self.relay.accepted} span taken, {self.relay.dropped} dropped")

    def passed_unjudged(self) -> Said:
        """Return the same for a relay that passes on what it gets."""
        count = sum(len(_spans_of(body)) for body in self.bodies)
        is_forged = any(mark in body for body in self.bodies for mark in _FORGED)
        return Said(won=is_forged, said=f"{count} spans, the forged ones among them, by a relay that does not judge")


@dataclass
class Opened:
    """An open gateway."""

    session: Session
    provider: Provider
    traces: Traces

    def overspent(self) -> Said:
        """Return whether the race got more calls out than there was money for."""
        most = self.provider.at_once_max
        if not most:
            return Said(won=False, said="no call went out at all: nothing is proved", made=False)
        return Said(won=most > RACE_PAID_CALLS, said=f"{most} of {RACE_CALLS} calls went out at once, money for {RACE_PAID_CALLS}")


class CheckThenSpend:
    """The ledger of a careless gateway: it looks at what is spent, and books a call only when it is over."""

    def __init__(self, budget_nano_usd: int) -> None:
        self._left_nano_usd = budget_nano_usd

    async def reserve(self, call_id: str, nano_usd: int, model: str) -> BudgetReply:  # noqa: ARG002 - the protocol's names
        """Grant while anything is left."""
        return BudgetReply(granted=self._left_nano_usd > 0, remaining_nano_usd=self._left_nano_usd)

    async def extend(self, call_id: str, nano_usd: int) -> BudgetReply:
        """Grant likewise."""
        return await self.reserve(call_id, nano_usd, "")

    async def settle(self, call_id: str, nano_usd: int, usage: Usage, **_: Any) -> BudgetReply:  # noqa: ARG002 - the protocol's names
        """Book what it cost."""
        self._left_nano_usd -= nano_usd
        return BudgetReply(granted=True, remaining_nano_usd=self._left_nano_usd)


@asynccontextmanager
async def racing_gateway(scene: Scene, directory: Path, uid: int | None, *, walls: bool = True) -> AsyncIterator[Opened]:
    """Open a gateway with money for two calls; without walls its ledger is a careless one."""
    worst = worst_case_nano_usd(shipped_prices(), MODEL, len(call_body(MODEL, OUTPUT_TOKENS)), OUTPUT_TOKENS, _today())
    budget = worst * RACE_PAID_CALLS + worst // 2
    ledger: Ledger = scene.ledger(budget) if walls else CheckThenSpend(budget)
    policy = Policy(model=MODEL, output_tokens_max=OUTPUT_TOKENS, calls_max=10 * RACE_CALLS)
    async with provider([text("hello")], RACE_HOLD_S) as ours, _opened(scene, directory, uid, policy, ledger, ours) as opened:
        yield opened


@asynccontextmanager
async def agent_gateway(scene: Scene, directory: Path, uid: int | None, policy: Policy, ours: Provider) -> AsyncIterator[Opened]:
    """Open a gateway for the agent's own program."""
    async with _opened(scene, directory, uid, policy, scene.ledger(10**12), ours) as opened:
        yield opened


@asynccontextmanager
async def _opened(scene: Scene, directory: Path, uid: int | None, policy: Policy, ledger: Ledger, ours: Provider) -> AsyncIterator[Opened]:
    upstream = Upstream.from_environment({"ANTHROPIC_API_KEY": scene.key, "ANTHROPIC_BASE_URL": ours.base_url})
    now = Tuning().now
    spans = Spans("andon-agent", "prove")
    traces = Traces(OtlpRelay(spans, Context(TRACE_ID, _SPAN_ID), scene.born, now, {}), spans)
    session = Session(directory, policy, ledger, upstream, stage=STAGE, round_=1, peer_uid=uid, on_traces=traces.take)
    async with session:
        yield Opened(session, ours, traces)


def _today() -> date:
    return datetime.now(UTC).date()


def _spans_of(body: bytes) -> list[Any]:
    found: list[Any] = json.loads(body)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return found
