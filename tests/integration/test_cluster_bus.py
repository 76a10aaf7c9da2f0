"""Three brokers as one: one of them is killed while everything flows; nothing is lost, nothing doubled, calls go on."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from sandbox.bus import Connection, NatsExecutorLink, NatsSupervisorLink
from sandbox.contract.blob import input_bucket
from sandbox.contract.credentials import ExecutorCredentials
from sandbox.contract.errors import BrokerError
from sandbox.contract.wire import ClaimReply, ClaimRequest
from supervisor.store.client import NatsFleetClient
from supervisor.store.log.event_log import StaleWriter
from supervisor.store.log.jetstream import JetStreamEventLog
from tests.fakes.cluster import SERVERS, NatsCluster
from tests.fakes.paper_desk import PaperDesk
from tests.fakes.wire_data import RUN, a_claim, a_heartbeat, a_job, a_result, an_event, grant, number_of, pay

T = TypeVar("T")

GOES_ON_S = 40.0
"""A leader is elected in one or two tries of 4 to 9 s; two elections may follow each other."""
JOBS = 40
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[NatsCluster]:
    async with NatsCluster.run(tmp_path) as cluster:
        yield cluster


async def test_everything_is_kept_three_times(cluster: NatsCluster) -> None:
    """Streams and consumers have three copies, an executor's life sign as well; a supervisor that starts again takes none away."""
    for lost in ([], [2]):
        for number in lost:
            await cluster.kill(number)
        async with NatsSupervisorLink.connect(cluster.supervisor) as link:
            await _again(lambda: link.admit("ex1", ("default",)))
            names = (await _again(lambda: link.connection.api("STREAM.NAMES")))["streams"]
            streams = [await _again(lambda name=name: link.connection.api(f"STREAM.INFO.{name}")) for name in names]  # type: ignore[misc]
            consumer = await _again(lambda: link.connection.api("CONSUMER.INFO.JOBS.default"))
        assert {stream["config"]["num_replicas"] for stream in streams} == {SERVERS}
        assert len(consumer["cluster"]["replicas"]) == SERVERS - 1
        assert {"EVENTS", "JOBS", "RESULTS", "TEL", "KV_EXECUTORS", "KV_LEASES", "OBJ_IN", "OBJ_OUT_ex1"} <= set(names)


@pytest.mark.parametrize("victim", ["JOBS", "EVENTS"])
async def test_a_server_is_killed_while_everything_flows(cluster: NatsCluster, victim: str) -> None:
    """Jobs, claims, results, events and objects go on over the other two; every job is done once, every event stored once."""
    async with NatsSupervisorLink.connect(cluster.supervisor, lease_s=20) as link:
        desk = _Desk()
        await link.serve(PaperDesk(desk.claim, pay), {})
        work = _Work(link)
        for number in range(2):
            await link.admit(f"ex{number}", ("default",))
        async with asyncio.TaskGroup() as tasks:
            workers = [tasks.create_task(_worker(await cluster.executor(f"ex{number}"), f"ex{number}")) for number in range(2)]
            flow = [tasks.create_task(work.publish()), tasks.create_task(work.collect()), tasks.create_task(work.log())]
            await _until(lambda: len(work.results) >= JOBS // 4, "a quarter is done")
            await cluster.kill(await cluster.leader(link.connection, victim))
            began = time.monotonic()
            at_the_kill = len(work.results)
            await _until(lambda: len(work.results) > at_the_kill + 4, "results come again")
            went_on_s = time.monotonic() - began
            await asyncio.wait(flow)
            for worker in workers:
                worker.cancel()
        stored = [number_of(event) for event in await JetStreamEventLog(link.connection).read(RUN)]

    assert went_on_s < GOES_ON_S
    assert Counter(work.results) == Counter({f"s{number}": 1 for number in range(JOBS)})
    assert stored == list(range(JOBS))
    assert desk.attempts == {f"{RUN}-s{number}-1": 1 for number in range(JOBS)}
    assert cluster.lost != []


async def test_a_killed_server_comes_back_with_what_it_missed(cluster: NatsCluster) -> None:
    """Then another one may be killed."""
    async with NatsSupervisorLink.connect(cluster.supervisor) as link:
        log, seq = JetStreamEventLog(link.connection), 0
        for victim in range(SERVERS):
            seq = await log.append(an_event(2 * victim), seq)
            await cluster.kill(victim)
            seq = await _again(lambda seq=seq, victim=victim: log.append(an_event(2 * victim + 1), seq))  # type: ignore[misc]
            await cluster.start(victim)
            await _until_current(link.connection)

        assert [number_of(event) for event in await log.read(RUN)] == list(range(2 * SERVERS))


async def test_a_client_far_away_goes_on_too(cluster: NatsCluster) -> None:
    """Whoever has all addresses finds another server, whichever is gone; also the one it starts with."""
    async with NatsSupervisorLink.connect(cluster.supervisor) as link:
        client, executor = await cluster.client("laptop"), await cluster.executor("ex1")
        async with NatsFleetClient.connect(client) as cli, NatsExecutorLink.connect(executor) as worker:
            await cluster.kill(0)
            ref = await _again(lambda: cli.put_blob(f"{RUN}/base", bytes(3 << 20)))
            given = await _again(lambda: link.put_blob(f"{RUN}/in", bytes(3 << 20), input_bucket("default")))
            assert len(await _again(lambda: link.get_blob(ref))) == len(await _again(lambda: worker.get_blob(given))) == 3 << 20
            await _again(lambda: worker.heartbeat(a_heartbeat()))
            assert [beat.executor for beat in await _again(cli.executors)] == ["ex1"]
        async with NatsFleetClient.connect(client):
            pass


class _Desk:
    """Grants each job's claim once for each delivery that asks, and counts attempts as a supervisor does."""

    def __init__(self) -> None:
        self.attempts: dict[str, int] = {}
        self._holders: dict[str, str] = {}

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Answer one claim: its holder may go on, another one is too late."""
        holder = self._holders.setdefault(request.job_id, request.executor)
        if holder != request.executor:
            return ClaimReply(decision="busy")
        self.attempts[request.job_id] = 1
        return await grant(request)


class _Work:
    """What a supervisor does with its end of the wire, each step again until it is through."""

    def __init__(self, link: NatsSupervisorLink) -> None:
        self._link = link
        self.results: list[str] = []

    async def publish(self) -> None:
        for number in range(JOBS):
            job = a_job(f"s{number}")
            await _again(lambda job=job: self._link.publish_job(job, job.job_id))  # type: ignore[misc]
            await asyncio.sleep(0.02)

    async def collect(self) -> None:
        async with aclosing(self._link.results()) as results:  # type: ignore[type-var]
            async for stored in results:
                if stored.result.stage not in self.results:  # it comes again until it is confirmed
                    self.results.append(stored.result.stage)
                await _again(stored.confirm)
                if len(self.results) == JOBS:
                    return

    async def log(self) -> None:
        log, seq = JetStreamEventLog(self._link.connection), 0
        for number in range(JOBS):
            event = an_event(number)
            while True:
                try:
                    seq = await log.append(event, seq)
                    break
                except StaleWriter:  # a try that was not answered was stored: read, then go on
                    seq = (await _again(lambda: log.read(RUN)))[-1].seq
                    break
                except BrokerError:
                    await asyncio.sleep(0.2)
            await asyncio.sleep(0.02)


async def _worker(credentials: ExecutorCredentials, name: str) -> None:
    """Pull, claim, work on an object, publish, acknowledge: what an executor does."""
    async with NatsExecutorLink.connect(credentials) as link:
        while True:
            try:
                delivery = await link.next_job(3)
            except BrokerError:
                await asyncio.sleep(0.2)
                continue
            if delivery is None:
                continue
            claim = a_claim(delivery.ack_subject, name, job_id=delivery.job.job_id)
            if (await _again(lambda claim=claim: link.claim(claim))).decision == "granted":  # type: ignore[misc]
                await _again(lambda stage=delivery.job.stage: link.put_blob(f"{RUN}/{stage}", b"out"))  # type: ignore[misc]
                result = a_result(name, delivery.job.stage)
                await _again(lambda result=result: link.publish_result(result))  # type: ignore[misc]
                with suppress(BrokerError):  # it is delivered again, and known then
                    await link.ack(delivery.ack_subject)


async def _again(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call until it is answered, within the time calls have to go on in."""
    until = time.monotonic() + GOES_ON_S
    while True:
        try:
            return await call()
        except BrokerError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.2)


async def _until(holds: Callable[[], bool], description: str) -> None:
    until = time.monotonic() + 2 * GOES_ON_S
    while not holds():
        assert time.monotonic() < until, description
        await asyncio.sleep(0.02)


async def _until_current(connection: Connection) -> None:
    """Wait until all copies of the event log are."""
    until = time.monotonic() + GOES_ON_S
    while True:
        info = await _again(lambda: connection.api("STREAM.INFO.EVENTS"))
        replicas = info["cluster"].get("replicas", [])
        if (
            info["cluster"].get("leader")
            and len(replicas) == SERVERS - 1
            and all(each["current"] and not each.get("offline") for each in replicas)
        ):
            return
        assert time.monotonic() < until, f"not current: {info['cluster']}"
        await asyncio.sleep(0.1)
