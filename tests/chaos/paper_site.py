"""Chaos on paper: everything is real but the container, which is a bare process; so that hundreds of faults fit into minutes.

People submit and resume over the bus, as the command does; each takes up another feature when the last one is through, until every
fault was made.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from sandbox.contract import subjects
from sandbox.contract.blob import BlobRef
from sandbox.contract.errors import BrokerError
from supervisor.delivery import snapshot
from supervisor.pipeline.submit import Answer, ResumeRequest, SubmitReply, SubmitRequest
from supervisor.store.client import NatsFleetClient
from tests.chaos import scene
from tests.chaos.faults import Fault, Plan, Tally
from tests.chaos.paper_fleet import PaperFleet
from tests.e2e.line import Provider
from tests.e2e.watching import a_sample
from tests.fakes.process_runtime import paper_processes
from tests.leaks import mounts_below

LEVEL = "paper"
RUN_END_S = 240.0
ASK_S = 10.0
POLL_S = 0.1
BROKER_DEATHS_MAX, BROKER_WINDOW_S = 4, 62.0
"""An embedded broker gives up on the sixth death within a minute; that has a test of its own."""
SUPERVISOR_REST_S = 12.0
"""Between two faults of supervisors: before the lease of the last one has run out there is none that leads, and nothing to break."""
END_S = 90.0
"""How long what was cut off may take to be salvaged and cleaned after the last run."""

T = TypeVar("T")
Reply = TypeVar("Reply", bound=BaseModel)


class PaperSite:
    """A fleet, its people and their repositories."""

    def __init__(self, home: Path, provider: Provider, say: Callable[[str], None]) -> None:
        """Set the place up below `home`; nothing is started."""
        home.mkdir(parents=True)
        self._home = home
        self._provider = provider
        self._say = say
        self._stopped: list[tuple[int, float]] = []
        self._supervisor_rests_until = 0.0
        self._broker_deaths: deque[float] = deque(maxlen=BROKER_DEATHS_MAX)
        self._runs: list[tuple[scene.Before, str, dict[str, Any]]] = []
        self._problems: list[str] = []

    async def run(self, plan: Plan, tally: Tally, *, people: int = 4, deadline_s: float = 1_500.0) -> list[str]:
        """Let people work under the plan's faults, and return what is wrong afterwards."""
        began = time.monotonic()
        async with PaperFleet.running(self._home, self._provider.server.environment()) as fleet:
            hitting = asyncio.create_task(self._hit(fleet, plan, tally, began + deadline_s))
            try:
                await asyncio.gather(*(self._person(fleet, number, tally, hitting) for number in range(people)))
            finally:
                hitting.cancel()
                await asyncio.gather(hitting, return_exceptions=True)
            if not plan.is_done:
                self._problems.append(f"not all faults were made within {deadline_s:.0f} s")
            await self._settle(fleet)
            self._problems += [problem for one in self._runs for problem in self._judge(fleet, *one)]
        self._problems += [f"left behind: {what}" for what in self._left()]
        tally.seconds[LEVEL] = tally.seconds.get(LEVEL, 0) + time.monotonic() - began
        return self._problems

    async def _person(self, fleet: PaperFleet, number: int, tally: Tally, hitting: "asyncio.Task[None]") -> None:
        turn = 0
        while turn == 0 or not hitting.done():
            slug = f"chaos-{number}-{turn}"
            before = scene.Before.of(await asyncio.to_thread(a_sample_here, self._home / slug))
            try:
                result = await asyncio.wait_for(self._want(fleet, before.repository, slug, tally), RUN_END_S)
            except TimeoutError:
                runs = self._opened(fleet, before.repository)
                self._problems.append(f"{slug} did neither land nor end within {RUN_END_S:.0f} s: runs {runs}")
                return
            tally.ends[LEVEL, result["state"]] += 1
            self._runs.append((before, slug, result))
            turn += 1

    async def _want(self, fleet: PaperFleet, repository: Path, slug: str, tally: Tally) -> dict[str, Any]:
        """Open the run, go on with it whenever it is parked, and return its result when it is over."""
        run_id, resumed = await self._submitted(fleet, repository, slug), 0
        while True:
            await asyncio.sleep(POLL_S)
            result = self._result(fleet, run_id)
            state = result.get("state")
            if state == "parked" and self._times(fleet, run_id, "run_parked") > resumed:
                parked = self._times(fleet, run_id, "run_parked")
                answer = await _asked(fleet, subjects.RPC_RESUME, ResumeRequest(run_id=run_id), Answer)
                tally.incidents[LEVEL, f"parked with {result['exit_code']}; a person resumed: {answer.error or 'taken'}"] += 1
                resumed = parked if answer.ok else resumed
            elif state == "landed" and self._times(fleet, run_id, "run_delivered"):
                return result
            elif state in {"failed", "cancelled"}:
                self._problems.append(f"{slug} ({run_id}) is {state}, exit {result['exit_code']}")
                return result

    async def _submitted(self, fleet: PaperFleet, repository: Path, slug: str) -> str:
        try:
            return await submitted(fleet, repository, slug)
        except Refused as error:
            opened = self._opened(fleet, repository)
            if len(opened) != 1:
                raise
            self._problems.append(f"{slug}: the same submission again was not answered with its run but refused: {error}")
            return opened[0]

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await asyncio.sleep(POLL_S)

    def _result(self, fleet: PaperFleet, run_id: str) -> dict[str, Any]:
        try:
            return dict(json.loads((fleet.state / "runs" / run_id / "result.json").read_text()))
        except (OSError, ValueError):
            return {}

    def _opened(self, fleet: PaperFleet, repository: Path) -> list[str]:
        """Return the runs of a repository, as a person finds them in the state directory."""
        needle = f'"repository":{json.dumps(str(repository))}'
        return sorted(path.parent.name for path in (fleet.state / "runs").glob("*/events.jsonl") if needle in path.read_text())

    def _times(self, fleet: PaperFleet, run_id: str, kind: str) -> int:
        """Return how often the run's file says that this happened."""
        return (fleet.state / "runs" / run_id / "events.jsonl").read_text().count(f'"type":"{kind}"')

    async def _hit(self, fleet: PaperFleet, plan: Plan, tally: Tally, deadline: float) -> None:
        async with self._letting_go():
            # Before the first run is open there is nothing to lose, only a start to delay.
            await self._until(lambda: any((fleet.state / "runs").glob("*/events.jsonl")) or time.monotonic() > deadline)
            while not plan.is_done and time.monotonic() < deadline:
                fault = plan.next()
                await asyncio.sleep(fault.pause_s)
                if self._strike(fleet, fault):
                    tally.count(LEVEL, fault)
                    self._say(f"{LEVEL}: {fault.line()}")
                else:
                    plan.put_back(fault)

    def _strike(self, fleet: PaperFleet, fault: Fault) -> bool:
        still = {pid for pid, _ in self._stopped}
        victims = [pid for pid in self._victims(fleet, fault) if pid not in still]
        if not victims:
            return False
        pid = victims[int(fault.pick * len(victims))]
        try:
            os.kill(pid, fault.signal)
        except ProcessLookupError:
            return False
        if fault.signal is signal.SIGSTOP:
            self._stopped.append((pid, time.monotonic() + fault.stop_s))
        if fault.victim == "supervisor":
            self._supervisor_rests_until = time.monotonic() + fault.stop_s + SUPERVISOR_REST_S
        if fault.victim == "broker" and fault.kind == "kill -9":
            self._broker_deaths.append(time.monotonic())
        return True

    def _victims(self, fleet: PaperFleet, fault: Fault) -> list[int]:
        match fault.victim:
            case "supervisor" if time.monotonic() < self._supervisor_rests_until:
                return []
            case "supervisor":
                return [each.process.pid for each in fleet.supervisors if each.process.poll() is None]
            case "executor":
                return [each.process.pid for each in fleet.executors if each.process.poll() is None]
            case "container":
                return sorted(pid for pid in paper_processes() if self._is_ours(pid))
            case "broker":
                often = len(self._broker_deaths) == BROKER_DEATHS_MAX and time.monotonic() - self._broker_deaths[0] < BROKER_WINDOW_S
                return [] if often and fault.kind == "kill -9" else [fleet.broker.pid]
            case _:
                return []

    def _is_ours(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return os.fsencode(self._home) in Path(f"/proc/{pid}/environ").read_bytes()
        return False

    @asynccontextmanager
    async def _letting_go(self) -> AsyncIterator[None]:
        """Let stopped processes go on when their time is over, all of them at the end."""

        async def let_go() -> None:
            while True:
                self._let_go(time.monotonic())
                await asyncio.sleep(0.05)

        task = asyncio.create_task(let_go())
        try:
            yield
            await self._until(lambda: not self._stopped)
        finally:
            task.cancel()
            self._let_go(float("inf"))

    def _let_go(self, now: float) -> None:
        for pid, until in [one for one in self._stopped if one[1] <= now]:
            self._stopped.remove((pid, until))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _settle(self, fleet: PaperFleet) -> None:
        """Wait until every attempt's work is where it belongs, at most `END_S`: the last executors may only just be back."""
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline and any(self._lost_work(fleet, *one) for one in self._runs):
            await asyncio.sleep(1)

    def _lost_work(self, fleet: PaperFleet, _: scene.Before, __: str, result: dict[str, Any]) -> list[str]:
        places = [result["commit"]] if result["commit"] else []
        found = []
        for mirror in (fleet.state / "mirrors").glob("*.git"):
            found += scene.problems_of_work(self._provider.server.begun, result["run_id"], mirror, places)
        return found

    def _judge(self, fleet: PaperFleet, before: scene.Before, slug: str, result: dict[str, Any]) -> list[str]:
        found = scene.problems_of_repository(before, f"andon/{slug}", landed=result["state"] == "landed")
        found += scene.problems_of_bill(self._provider.server.begun, result["run_id"], result["cost_usd"])
        found += self._lost_work(fleet, before, slug, result)
        return [f"{slug} ({result['run_id']}): {problem}" for problem in found]

    def _left(self) -> list[str]:
        left = [f"paper sandbox {pid}" for pid in paper_processes() if self._is_ours(pid)]
        left += [f"mount {path}" for path in mounts_below(self._home)]
        left += [f"lease {path}" for path in self._home.glob("paper-*/slots/*/lease.json")]
        left += [f"undelivered {path}" for path in self._home.glob("paper-*/results/*")]
        return left


class Refused(Exception):
    """A submission was answered, with a no."""


async def submitted(fleet: PaperFleet, repository: Path, slug: str) -> str:
    """Open a run of the chaos pipeline over the bus, as the command does, asking until it is answered; return its id.

    Raises:
        Refused: The supervisor said no.
    """
    taken = await snapshot(repository, None)
    name = f"base/{taken.commit}/{hashlib.sha256(taken.pack).hexdigest()}"

    async def put(client: NatsFleetClient) -> BlobRef:
        return await client.put_blob(name, taken.pack)

    request = SubmitRequest(
        request=f"Add chaos: {slug}",
        slug=slug,
        repository=str(repository),
        base_name=taken.base_name,
        base_commit=taken.commit,
        base_pack=await _patiently(fleet, put),
        branches=taken.branches,
        author_name=taken.author_name,
        author_email=taken.author_email,
        pipeline_yaml=scene.PIPELINE,
        pipeline_source="chaos",
        baseline=False,
        budget_nano_usd=50 * 10**9,
        warn_nano_usd=40 * 10**9,
        request_id=secrets.token_hex(8),
    )
    reply = await _asked(fleet, subjects.RPC_INTENT, request, SubmitReply)
    if reply.run_id is None:
        raise Refused(f"exit {reply.exit_code}: {reply.error}")
    return reply.run_id


async def _asked(fleet: PaperFleet, subject: str, request: BaseModel, reply: type[Reply]) -> Reply:
    async def ask(client: NatsFleetClient) -> bytes:
        return await client.request(subject, request.model_dump_json().encode(), timeout_s=ASK_S)

    return reply.model_validate_json(await _patiently(fleet, ask))


async def _patiently(fleet: PaperFleet, call: Callable[[NatsFleetClient], Awaitable[T]]) -> T:
    """Make a call again until it is answered: a submission has an id, so that it opens one run however often it is made."""
    while True:
        try:
            async with NatsFleetClient.connect(fleet.broker.supervisor) as client:
                return await call(client)
        except BrokerError:
            await asyncio.sleep(1)


def a_sample_here(path: Path) -> Path:
    """Make the sample repository from a thread: it starts a loop of its own."""
    return a_sample(path)
