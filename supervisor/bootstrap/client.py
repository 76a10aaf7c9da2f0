"""A CLI's connection to a supervisor: the fleet's if `NATS_URL` is set, else the embedded stack's; `cli.client.Client` over the bus."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sandbox.bus import NoAnswer
from sandbox.contract import subjects
from sandbox.contract.blob import BlobRef
from sandbox.contract.credentials import FILE_BYTES_MAX, SupervisorCredentials, read_credentials
from sandbox.contract.errors import BrokerError, ConfigError, UsageError
from sandbox.contract.wire import Heartbeat, Progress
from sandbox.log import Log
from supervisor import stack
from supervisor.config import Config, StateDirectory
from supervisor.pipeline.events import AnyEvent
from supervisor.pipeline.submit import (
    Answer,
    DeliveredRequest,
    ResumeRequest,
    StopRequest,
    SubmitReply,
    SubmitRequest,
    WhyReply,
    WhyRequest,
)
from supervisor.stack import Say
from supervisor.store.client import FleetClient, NatsFleetClient

log = Log(__name__)

T = TypeVar("T")

ANSWER_S = 60.0
ASKED_TIMES_MAX = 8
AGAIN_S = 15.0
"""How long one answer may take to a question that may be asked again: another supervisor takes over within 10 s."""
FIRST_ANSWER_S = 30.0
"""How long a supervisor that is just starting may take to answer at all."""
WHY_S = 5.0
"""How long an answer may take that somebody waits for at a prompt."""
LOOK_CONNECT_S = 4.0
QUEUE_MAX = 10_000
LOOK_S = 0.5

_JWT_MARK = b"BEGIN NATS USER JWT"


class BusClient:
    """What a CLI asks, over the FLEET account."""

    def __init__(
        self, fleet: FleetClient, stack_gone: Callable[[], str | None] = lambda: None, first_answer_s: float = FIRST_ANSWER_S
    ) -> None:
        """Speak over `fleet`; `stack_gone` says why the embedded stack is no more, None while it runs."""
        self._first_answer_s = first_answer_s
        self._fleet = fleet
        self._stack_gone = stack_gone

    async def submit(self, request: SubmitRequest) -> SubmitReply:
        """Open a run; with a `request_id` it is asked again after a lost answer, and is one run all the same."""
        again = bool(request.request_id)
        answer = await self._ask_again(subjects.RPC_INTENT, request) if again else await self._ask(subjects.RPC_INTENT, request)
        return SubmitReply.model_validate_json(answer)

    async def stop(self, request: StopRequest) -> Answer:
        """Park or cancel a run."""
        return Answer.model_validate_json(await self._ask(subjects.RPC_STOP, request))

    async def resume(self, request: ResumeRequest) -> Answer:
        """Go on with a run."""
        return Answer.model_validate_json(await self._ask(subjects.RPC_RESUME, request))

    async def why(self, request: WhyRequest) -> WhyReply:
        """Ask what a run waits for or does."""
        return WhyReply.model_validate_json(
            await self._fleet.request(subjects.RPC_WHY, request.model_dump_json().encode(), timeout_s=WHY_S)
        )

    async def delivered(self, request: DeliveredRequest) -> Answer:
        """Tell how a delivery went."""
        return Answer.model_validate_json(await self._ask_again(subjects.RPC_DELIVERED, request))

    async def runs(self) -> list[str]:
        """Return the ids of all runs of the fleet, oldest first."""
        return await self._fleet.runs()

    async def read(self, run_id: str) -> list[AnyEvent]:
        """Return a run's events so far; empty for an unknown run."""
        return await self._fleet.read(run_id)

    async def executors(self) -> list[Heartbeat]:
        """Return the executors whose life sign has not expired."""
        return await self._fleet.executors()

    async def drain(self, executor: str, reason: str) -> None:
        """Tell an executor to leave when the jobs it has are done."""
        await self._fleet.drain(executor, reason)

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

    async def _ask(self, subject: str, request: BaseModel, timeout_s: float = ANSWER_S) -> bytes:
        return await self._patiently(lambda: self._fleet.request(subject, request.model_dump_json().encode(), timeout_s=timeout_s))

    async def _ask_again(self, subject: str, request: BaseModel) -> bytes:
        """Ask what may be asked twice, also after an answer was lost: another supervisor may be taking over."""
        for _ in range(ASKED_TIMES_MAX - 1):
            try:
                return await self._ask(subject, request, AGAIN_S)
            except NoAnswer:
                raise
            except BrokerError as error:
                log.info("request.repeated", "asked again", error=error, subject=subject)
        return await self._ask(subject, request, AGAIN_S)

    async def _patiently(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make a call again for `FIRST_ANSWER_S` while nobody listens: a supervisor that is only starting makes streams and answers soon.

        A call that may have been taken is never made again: to open a run twice costs twice.
        """
        deadline = asyncio.get_running_loop().time() + self._first_answer_s
        while True:
            try:
                return await self._while_there(call())
            except NoAnswer as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise NoAnswer(f"no supervisor answers ({error}); `andon doctor` shows what is missing") from error
                await asyncio.sleep(0.1)

    async def _while_there(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call, but not beyond the embedded stack's end: nobody would answer any more.

        Raises:
            BrokerError: The stack is gone.
        """
        task = asyncio.create_task(call)
        try:
            while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
                if (reason := self._stack_gone()) is not None:
                    raise BrokerError(reason)
            return task.result()
        finally:
            task.cancel()


@asynccontextmanager
async def connect(config: Config, say: Say) -> AsyncIterator[BusClient]:
    """Reach the fleet's supervisor, or start the embedded stack, or use the one that runs.

    Raises:
        UsageError: The credentials are not this fleet's client's, or a busy stack has another environment.
        InfrastructureError: Broker or stack do not come up.
    """
    if config.is_remote:
        async with NatsFleetClient.connect(fleet_credentials(config)) as fleet:
            yield BusClient(fleet)
        return
    state = StateDirectory.open(config.state_directory)
    async with stack.attached(config, state, dict(os.environ), say) as running, _of_stack(running, state) as client:
        yield client


@asynccontextmanager
async def look(config: Config) -> AsyncIterator[BusClient | None]:
    """Reach what runs already, for a verb that starts nothing; None: the embedded stack does not run.

    Raises:
        ConfigError: The credentials are not this fleet's client's.
        BrokerError: The broker does not answer, or refuses the key.
    """
    if config.is_remote:
        async with NatsFleetClient.connect(fleet_credentials(config), connect_s=LOOK_CONNECT_S) as fleet:
            yield BusClient(fleet)
        return
    state = StateDirectory.reading(config.state_directory)
    running = stack.read_stack(state)
    if running is None:
        yield None
        return
    async with _of_stack(running, state) as client:
        yield client


@asynccontextmanager
async def _of_stack(running: stack.StackFile, state: StateDirectory) -> AsyncIterator[BusClient]:
    credentials = read_credentials(running.supervisor_credentials, SupervisorCredentials)
    async with NatsFleetClient.connect(credentials.model_copy(update={"url": running.nats_url})) as fleet:
        yield BusClient(fleet, lambda: None if stack.read_stack(state) else f"the stack has stopped, see {state.stack_log}")


def fleet_credentials(config: Config) -> SupervisorCredentials:
    """Return who we are to a fleet elsewhere: `NATS_CREDS` is the file `andon fleet add --client` wrote, or a JWT credentials file.

    Raises:
        UsageError: `NATS_URL` without credentials, or a JWT file without `NATS_URL`.
        ConfigError: The file cannot be read or is not a client's, or the URL is not one.
    """
    if config.nats_creds is None:
        raise UsageError("NATS_URL is set but NATS_CREDS is not: name the credentials file of that fleet")
    data = _beginning_of(config.nats_creds)
    if _JWT_MARK in data:
        if config.nats_url is None:
            raise UsageError(
                f"NATS_CREDS {config.nats_creds} is a JWT credentials file, which does not say where its broker is: set NATS_URL"
            )
        found = {"creds_file": config.nats_creds.absolute()}
    else:
        if _is_executors(data):
            raise ConfigError(f"NATS_CREDS {config.nats_creds} is an executor's file; a client's is made by: andon fleet add NAME --client")
        found = read_credentials(config.nats_creds, SupervisorCredentials).model_dump(exclude_none=True)
    try:
        return SupervisorCredentials.model_validate({**found, **({"url": config.nats_url} if config.nats_url else {})})
    except ValidationError:
        raise ConfigError(f"NATS_URL {config.nats_url} does not begin with nats://, tls://, ws:// or wss://") from None


def _beginning_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise ConfigError(f"NATS_CREDS {path}: {error.strerror}") from error


def _is_executors(data: bytes) -> bool:
    try:
        found = json.loads(data)
    except ValueError:
        return False
    return isinstance(found, dict) and "executor" in found
