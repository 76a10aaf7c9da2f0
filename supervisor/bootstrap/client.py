"""A CLI's connection to a supervisor: the fleet's if `NATS_URL` is set, else the embedded stack's; `cli.client.Client` over the bus."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from pydantic import BaseModel

from sandbox.bus import NoAnswer
from sandbox.contract import subjects
from sandbox.contract.blob import BlobRef
from sandbox.contract.credentials import SupervisorCredentials, read_credentials
from sandbox.contract.errors import BrokerError, UsageError
from sandbox.contract.wire import Progress
from supervisor import stack
from supervisor.config import Config, StateDirectory
from supervisor.pipeline.events import AnyEvent
from supervisor.pipeline.submit import Answer, ResumeRequest, StopRequest, SubmitReply, SubmitRequest
from supervisor.stack import Say
from supervisor.store.client import FleetClient, NatsFleetClient

T = TypeVar("T")

ANSWER_S = 60.0
FIRST_ANSWER_S = 30.0
"""How long a supervisor that is just starting may take to answer at all."""
QUEUE_MAX = 10_000
LOOK_S = 0.5


class BusClient:
    """What a CLI asks, over the FLEET account."""

    def __init__(self, fleet: FleetClient, stack_gone: Callable[[], str | None] = lambda: None) -> None:
        """Speak over `fleet`; `stack_gone` says why the embedded stack is no more, None while it runs."""
        self._fleet = fleet
        self._stack_gone = stack_gone

    async def submit(self, request: SubmitRequest) -> SubmitReply:
        """Open a run."""
        return SubmitReply.model_validate_json(await self._ask(subjects.RPC_INTENT, request))

    async def stop(self, request: StopRequest) -> Answer:
        """Park or cancel a run."""
        return Answer.model_validate_json(await self._ask(subjects.RPC_STOP, request))

    async def resume(self, request: ResumeRequest) -> Answer:
        """Go on with a run."""
        return Answer.model_validate_json(await self._ask(subjects.RPC_RESUME, request))

    async def put_blob(self, name: str, data: bytes) -> BlobRef:
        """Store an object in IN."""
        return await self._patiently(lambda: self._fleet.put_blob(name, data))

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read an object."""
        return await self._patiently(lambda: self._fleet.get_blob(ref))

    async def follow(self, run_id: str) -> AsyncIterator[AnyEvent | Progress]:
        """Yield a run's events from the first, and between them what its attempts do; droppable progress is dropped when it piles up."""
        queue: asyncio.Queue[AnyEvent | Progress | BrokerError] = asyncio.Queue(QUEUE_MAX)
        feeds = (self._feed_events(run_id, queue), self._feed_progress(run_id, queue), self._feed_end(run_id, queue))
        feeding = [asyncio.create_task(feed) for feed in feeds]
        try:
            while True:
                item = await queue.get()
                if isinstance(item, BrokerError):
                    raise item
                yield item
        finally:
            # No TaskGroup: it would wrap the GeneratorExit of a caller that has seen enough.
            for task in feeding:
                task.cancel()
            await asyncio.gather(*feeding, return_exceptions=True)

    async def _feed_events(self, run_id: str, queue: asyncio.Queue[AnyEvent | Progress | BrokerError]) -> None:
        try:
            async for event in self._fleet.follow(run_id):
                await queue.put(event)
        except BrokerError as error:
            await queue.put(error)

    async def _feed_progress(self, run_id: str, queue: asyncio.Queue[AnyEvent | Progress | BrokerError]) -> None:
        try:
            async for progress in self._fleet.progress():
                if progress.run_id == run_id and not queue.full():
                    queue.put_nowait(progress)
        except BrokerError:  # droppable: the events say when the broker is gone
            return

    async def _feed_end(self, run_id: str, queue: asyncio.Queue[AnyEvent | Progress | BrokerError]) -> None:
        """Say that there is nothing left to wait for when the stack is gone: a client would try to reconnect for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            reason = self._stack_gone()
            if reason is not None:
                return await queue.put(BrokerError(f"{reason}; `andon resume {run_id}` goes on"))

    async def _ask(self, subject: str, request: BaseModel) -> bytes:
        return await self._patiently(lambda: self._fleet.request(subject, request.model_dump_json().encode(), timeout_s=ANSWER_S))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call again for 30 s while nobody listens: a supervisor that is only starting makes streams and answers soon.

        A call that may have been taken is never made again: to open a run twice costs twice.
        """
        deadline = asyncio.get_running_loop().time() + FIRST_ANSWER_S
        while True:
            try:
                return await call()
            except NoAnswer:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.1)


@asynccontextmanager
async def connect(config: Config, say: Say) -> AsyncIterator[BusClient]:
    """Reach the fleet's supervisor, or start the embedded stack, or use the one that runs.

    Raises:
        UsageError: `NATS_URL` without credentials, or a busy stack with another environment.
        InfrastructureError: Broker or stack do not come up.
    """
    if config.nats_url:
        if config.nats_creds is None:
            raise UsageError("NATS_URL is set but NATS_CREDS is not: name the credentials file of that fleet")
        credentials = read_credentials(config.nats_creds, SupervisorCredentials).model_copy(update={"url": config.nats_url})
        async with NatsFleetClient.connect(credentials) as fleet:
            yield BusClient(fleet)
        return
    state = StateDirectory.open(config.state_directory)
    async with stack.attached(config, state, dict(os.environ), say) as running:
        credentials = read_credentials(running.supervisor_credentials, SupervisorCredentials)
        async with NatsFleetClient.connect(credentials.model_copy(update={"url": running.nats_url})) as fleet:
            yield BusClient(fleet, lambda: None if stack.read_stack(state) else f"the stack has stopped, see {state.root / 'stack.log'}")
