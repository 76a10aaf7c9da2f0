"""Jobs as the queue releases them: by credit, in turn, to the lane of whoever can take them."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from sandbox.contract.blob import BlobRef
from sandbox.contract.errors import BrokerError, InfrastructureError
from sandbox.contract.ids import run_id
from sandbox.contract.job import JobSpec
from sandbox.contract.wire import Heartbeat
from supervisor import dispatch
from supervisor.dispatch import JobQueue
from tests.fakes.line_driver import RUN
from tests.fakes.line_world import wait_until
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink, MemorySupervisorLink


def a_run(number: int) -> str:
    """Return the id of one of several runs."""
    return run_id(1_750_000_000_000 + 64 * number, b"\0\0")


def a_job(number: int, priority: int = 5, pool: str = "default", *, run: str = RUN, labels: dict[str, str] | None = None) -> JobSpec:
    """Return a checks job."""
    values: dict[str, object] = {
        "labels": labels or {},
        "job_id": f"{run}-s-{number}",
        "run_id": run,
        "feature": "f",
        "stage": "s",
        "role": "docs",
        "round": number,
        "kind": "checks",
        "pool": pool,
        "priority": priority,
        "base_commit": "b" * 40,
        "input_pack": BlobRef(bucket="IN", name="x", sha256="0" * 64, size_bytes=0),
    }
    return JobSpec.model_validate(values)


@asynccontextmanager
async def a_queue(
    link_of: type[MemorySupervisorLink] = MemorySupervisorLink, broker: MemoryBroker | None = None
) -> AsyncIterator[tuple[JobQueue, MemoryBroker]]:
    broker = broker or MemoryBroker()
    async with link_of.connect(broker) as link:
        queue = JobQueue(link)
        task = asyncio.create_task(queue.run())
        try:
            yield queue, broker
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_jobs_are_released_by_credit_highest_priority_first():
    """Nothing is on the bus before an executor waits, and then only as much as it can take."""
    async with a_queue() as (queue, broker), MemoryExecutorLink.connect(broker, "host-1") as link:
        for number, priority in ((1, 5), (2, 1), (3, 9), (4, 5)):
            queue.put(a_job(number, priority), f"j:{number}", lambda: True)
        await asyncio.sleep(0.05)
        assert (len(broker.jobs), len(queue)) == (0, 4)
        rounds = []
        for _ in range(4):
            delivery = await link.next_job(5)
            assert delivery is not None
            rounds.append(delivery.job.round)
            await link.ack(delivery.ack_subject)

    assert rounds == [3, 1, 4, 2]


async def test_a_job_nobody_wants_any_more_is_never_published():
    """The run was stopped while the job waited."""
    wanted = [True]
    async with a_queue() as (queue, broker), MemoryExecutorLink.connect(broker, "host-1") as link:
        queue.put(a_job(1, 9), "j:1", lambda: wanted[0])
        queue.put(a_job(2), "j:2", lambda: True)
        wanted.clear()
        wanted.append(False)
        delivery = await link.next_job(5)
        assert delivery is not None
        await wait_until(lambda: len(queue) == 0, "the queue is empty")

    assert delivery.job.round == 2


async def test_the_same_copy_is_put_once_and_a_pool_does_not_wait_for_another():
    """A pool without executors keeps its jobs; the others' go out."""
    async with a_queue() as (queue, broker), MemoryExecutorLink.connect(broker, "host-1") as link:
        queue.put(a_job(1, 9, "gpu"), "j:1", lambda: True)
        queue.put(a_job(2), "j:2", lambda: True)
        queue.put(a_job(2), "j:2", lambda: True)
        assert len(queue) == 2
        first = await link.next_job(5)
        assert first is not None
        await link.ack(first.ack_subject)
        assert await link.next_job(0.1) is None
        assert len(queue) == 1


async def test_a_broker_that_is_away_is_waited_for():
    """The job stays in the queue until it is published."""

    class Away(MemorySupervisorLink):
        failures = 2

        async def credit(self, pool: str, executor: str = "") -> int:
            if self.failures:
                self.failures -= 1
                raise BrokerError("away")
            return 1

    async with Away.connect(MemoryBroker()) as link:
        queue = JobQueue(link)
        queue.put(a_job(1), "j:1", lambda: True)
        task = asyncio.create_task(queue.run())
        await wait_until(lambda: len(queue) == 0, "it is published")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_queue_is_bounded():
    """Beyond its bound a run is parked rather than memory filled."""
    async with MemorySupervisorLink.connect(MemoryBroker()) as link:
        queue = JobQueue(link)
        job = a_job(1)
        for number in range(dispatch.QUEUE_MAX):
            queue.put(job, f"j:{number}", lambda: True)

        with pytest.raises(InfrastructureError, match="wait for an executor"):
            queue.put(job, "one more", lambda: True)


@asynccontextmanager
async def an_executor(broker: MemoryBroker, name: str, **beat: object) -> AsyncIterator[MemoryExecutorLink]:
    """Connect an executor that has said what it is."""
    async with MemoryExecutorLink.connect(broker, name) as link:
        said: dict[str, object] = {"executor": name, "release": "1", "pools": ("default",), "slots": 1, "busy": 0, "model": "none"}
        await link.heartbeat(Heartbeat.model_validate(said | beat))
        yield link


async def test_a_job_with_labels_goes_to_an_executor_that_has_them():
    """The other one waits just as long and is passed over; what nobody has waits and is not on the bus."""
    async with (
        a_queue() as (queue, broker),
        an_executor(broker, "small", labels={"mem": "8"}) as small,
        an_executor(broker, "large", labels={"mem": "64"}) as large,
    ):
        queue.put(a_job(1, labels={"mem": ">=16"}), "j:1", lambda: True)
        queue.put(a_job(2, labels={"mem": ">=128"}), "j:2", lambda: True)
        pulls = asyncio.gather(small.next_job(0.5), large.next_job(5))
        at_small, at_large = await pulls
        assert at_large is not None
        assert (at_small, at_large.job.round, queue.is_waiting("j:2"), len(broker.jobs)) == (None, 1, True, 1)
        assert (queue.directed_to("j:1"), queue.directed_to("j:2")) == ("large", "")


async def test_an_executor_that_takes_no_jobs_is_passed_over():
    """A draining one pulls no more, whatever its slots say."""
    async with a_queue() as (queue, broker), an_executor(broker, "one", labels={"gpu": "1"}, held="draining") as one:
        queue.put(a_job(1, labels={"gpu": "1"}), "j:1", lambda: True)
        assert await one.next_job(0.1) is None
        assert queue.is_waiting("j:1")


async def test_one_idle_slot_is_one_place_although_it_pulls_on_two_lanes():
    """A directed and a shared job wait for the same slot: one goes, the other is not put on the bus behind it."""
    async with a_queue() as (queue, broker), an_executor(broker, "one", labels={"gpu": "1"}) as one:
        queue.put(a_job(1, 9, labels={"gpu": "1"}), "j:1", lambda: True)
        queue.put(a_job(2, 5), "j:2", lambda: True)
        delivery = await one.next_job(5)
        assert delivery is not None
        await one.ack(delivery.ack_subject)
        assert (delivery.job.round, len(broker.jobs), queue.is_waiting("j:2")) == (1, 0, True)


async def test_what_is_claimed_neither_waits_nor_counts():
    """The claim came by an older copy: the newer one is not published."""
    async with a_queue() as (queue, broker), MemoryExecutorLink.connect(broker, "host-1") as link:
        queue.put(a_job(1), "j:2", lambda: True)
        queue.taken("j:2")
        assert await link.next_job(0.1) is None
        assert (len(queue), queue.directed_to("j:2")) == (0, "")


async def test_a_feature_with_many_jobs_does_not_keep_another_waiting():
    """At equal rank the feature with the fewest jobs out goes first, so the second feature's jobs are not behind all of the first's."""
    async with a_queue() as (queue, broker), MemoryExecutorLink.connect(broker, "host-1") as link:
        for number in range(1, 7):
            queue.put(a_job(number, run=a_run(1)), f"a:{number}", lambda: True)
        for number in range(1, 4):
            queue.put(a_job(number, run=a_run(2)), f"b:{number}", lambda: True)
        order = []
        for _ in range(9):
            delivery = await link.next_job(5)
            assert delivery is not None
            order.append(delivery.job.run_id)
            await link.ack(delivery.ack_subject)

    assert Counter(order[:6]) == {a_run(1): 3, a_run(2): 3}


class WatchedBroker(MemoryBroker):
    """Notes when a job is released before one of higher priority."""

    def __init__(self) -> None:
        super().__init__()
        self.left: Counter[int] = Counter()
        self.inversions: list[tuple[int, int]] = []

    def enqueue(self, job: JobSpec, lane: str) -> None:
        """Store a job for a lane."""
        self.left[job.priority] -= 1
        self.inversions += [(job.priority, higher) for higher in range(job.priority + 1, 11) if self.left[higher]]
        super().enqueue(job, lane)


async def test_two_hundred_jobs_of_random_priority_on_four_executors_start_in_order():
    """No job starts while one of higher priority waits that was not published yet, and at most the lookahead (4) apart."""
    dice = random.Random(4)
    started: list[int] = []
    watched = WatchedBroker()
    async with a_queue(broker=watched) as (queue, broker), AsyncExitStack() as stack:
        for number in range(1, 201):
            priority = dice.randint(1, 10)
            watched.left[priority] += 1
            queue.put(a_job(number, priority), f"j:{number}", lambda: True)

        async def work(link: MemoryExecutorLink) -> None:
            while len(started) < 200:
                delivery = await link.next_job(0.2)
                if delivery is not None:
                    started.append(delivery.job.priority)
                    await asyncio.sleep(0.001 * dice.random())
                    await link.ack(delivery.ack_subject)

        links = [await stack.enter_async_context(MemoryExecutorLink.connect(broker, f"host-{each}")) for each in range(4)]
        await asyncio.gather(*(work(link) for link in links))

    ideal = sorted(started, reverse=True)
    assert watched.inversions == []
    assert all(ideal.index(priority) - 4 <= at for at, priority in enumerate(started))


async def test_a_look_asks_for_the_credit_of_a_lane_once_however_many_jobs_wait():
    """250 jobs a second are released with far fewer questions."""

    class Counting(MemorySupervisorLink):
        asked = 0

        async def credit(self, pool: str, executor: str = "") -> int:
            Counting.asked += 1
            return 50

    async with a_queue(Counting) as (queue, _):
        for number in range(1, 501):
            queue.put(a_job(number), f"j:{number}", lambda: True)
        await wait_until(lambda: len(queue) == 0, "all are released")

    assert Counting.asked <= 12


async def test_who_is_ahead_is_counted_in_the_same_pool_only():
    """By rank, then by who came first."""
    async with MemorySupervisorLink.connect(MemoryBroker()) as link:
        queue = JobQueue(link)
        for number, priority, pool in ((1, 5, "default"), (2, 9, "default"), (3, 10, "gpu"), (4, 5, "default")):
            queue.put(a_job(number, priority, pool), f"j:{number}", lambda: True)

        assert [queue.ahead_of(f"j:{number}") for number in (1, 2, 3, 4, 5)] == [1, 0, 0, 2, 0]


async def test_what_nobody_wants_any_more_makes_room_in_a_full_queue():
    """Jobs of runs that were stopped while no executor was there."""
    wanted = [True]
    async with MemorySupervisorLink.connect(MemoryBroker()) as link:
        queue = JobQueue(link)
        for number in range(dispatch.QUEUE_MAX):
            queue.put(a_job(1), f"j:{number}", lambda: wanted[0])
        wanted[0] = False
        queue.put(a_job(1), "one more", lambda: True)

        assert len(queue) == 1
