"""Several hosts that spend one budget: a real broker, the supervisor's real ledger, real gateways; gates are scripted, nothing runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx2

from sandbox.bus import NatsExecutorLink, NatsSupervisorLink
from sandbox.contract import subjects
from sandbox.contract.wire import ClaimReply, ClaimRequest, Delivery, Heartbeat, JoinRequest, Ledger
from sandbox.gateway.policy import Policy
from sandbox.gateway.reservation import BudgetLedger
from sandbox.gateway.session import SOCKET_NAME, Session
from sandbox.gateway.terms import Tuning
from sandbox.gateway.upstream import Upstream
from supervisor.pipeline import events as ev
from supervisor.pipeline.load import load_pipeline
from supervisor.pipeline.submit import SubmitReply
from supervisor.store.broker.embedded import EmbeddedBroker
from supervisor.store.client import NatsFleetClient
from supervisor.store.log.jetstream import JetStreamEventLog
from tests.fakes.gateway import CALL, HASTY, KEY, POLICY
from tests.fakes.line_world import World, a_submission
from tests.fakes.memory_bus import MemoryBroker

SIDE_BY_SIDE = """
pipeline:
  stages:
    - {name: left, role: docs, agent: docs}
    - {name: right, role: docs, agent: docs}
"""


@dataclass
class Host:
    """One executor with one attempt, and the gateway of that attempt."""

    name: str
    socket: Path
    session: Session
    run: str

    async def call(self, **fields: Any) -> str:
        """Make one call and return how it ended: the reply's stop reason, or the error's type."""
        transport = httpx2.AsyncHTTPTransport(uds=str(self.socket))
        async with httpx2.AsyncClient(transport=transport, timeout=60.0) as http:
            sdk = anthropic.AsyncAnthropic(api_key="none", base_url="http://gateway", max_retries=0, http_client=http, open_telemetry=False)
            try:
                async with sdk.messages.stream(**{**CALL, **fields}) as stream:
                    return str((await stream.get_final_message()).stop_reason)
            except anthropic.APIStatusError as error:
                return str(error.body["error"]["type"])  # type: ignore[index]


class PayingFleet:
    """A supervisor and its hosts."""

    def __init__(self, directory: Path, broker: EmbeddedBroker, client: NatsFleetClient, model: str, stack: AsyncExitStack) -> None:
        self._directory = directory
        self._broker = broker
        self._client = client
        self._model = model
        self._stack = stack

    async def submit(self, budget_nano_usd: int, request_id: str = "one") -> str:
        """Open a run of two stages that need nothing of each other, and return its id."""
        request = a_submission(budget_nano_usd=budget_nano_usd, warn_nano_usd=budget_nano_usd, delivery="client", request_id=request_id)
        reply = SubmitReply.model_validate_json(await self._client.request(subjects.RPC_INTENT, request.model_dump_json().encode()))
        assert reply.run_id is not None, reply
        return reply.run_id

    async def host(self, name: str, *, policy: Policy = POLICY, tuning: Tuning = HASTY, ledger: Ledger | None = None) -> Host:
        """Let one more executor join, claim a job and open its gateway; `ledger` instead of the supervisor's is for controls."""
        link = await self._stack.enter_async_context(NatsExecutorLink.connect(await self._broker.add_executor(name)))
        await link.join(JoinRequest(executor=name, release="1", pools=("default",), slots=1))
        await link.heartbeat(Heartbeat(executor=name, release="1", pools=("default",), slots=1, busy=0, model="live"))
        delivery, reply = await self._claimed(link, name)
        job = delivery.job
        ours = BudgetLedger(link, executor=name, run_id=job.run_id, job_id=job.job_id, attempt=reply.attempt, token=reply.token)
        directory = self._directory / name
        directory.mkdir()
        upstream = Upstream.from_environment({"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": self._model})
        session = Session(directory, policy, ledger or ours, upstream, stage=job.stage, round_=job.round, tuning=tuning)
        await self._stack.enter_async_context(session)
        return Host(name, directory / SOCKET_NAME, session, job.run_id)

    async def _claimed(self, link: NatsExecutorLink, name: str) -> tuple[Delivery, ClaimReply]:
        async with asyncio.timeout(20):
            while (delivery := await link.next_job(5.0)) is None:
                pass
        reply = await link.claim(ClaimRequest(executor=name, job_id=delivery.job.job_id, ack_subject=delivery.ack_subject))
        assert reply.decision == "granted", reply
        return delivery, reply

    async def events(self, run: str) -> list[ev.AnyEvent]:
        """Return a run's log."""
        return await self._client.read(run)


@asynccontextmanager
async def a_paying_fleet(directory: Path, model: str) -> AsyncIterator[PayingFleet]:
    """Open a fleet whose gateways ask the provider at `model`."""
    async with (
        EmbeddedBroker.run(directory / "nats") as broker,
        NatsSupervisorLink.connect(broker.supervisor) as link,
        NatsFleetClient.connect(broker.supervisor) as client,
    ):
        world = World(link, MemoryBroker(), JetStreamEventLog(link.connection))  # type: ignore[arg-type]
        world.intake.pipeline = load_pipeline(SIDE_BY_SIDE, "test")
        async with world.supervisor(sleep=asyncio.sleep), AsyncExitStack() as stack:
            yield PayingFleet(directory, broker, client, model, stack)
