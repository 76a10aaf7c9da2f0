"""What both ends of the wire promise (`contract.wire`), shown on the fake and over NATS."""

import asyncio
import time

import pytest

from sandbox.contract.errors import BrokerError, Rejected, UsageError
from sandbox.contract.subjects import pool_of_ack
from sandbox.contract.wire import BudgetReply, BudgetRequest, ClaimReply, ClaimRequest, JoinReply, JoinRequest, Notice, SupervisorLink
from tests.fakes.paper_desk import PaperDesk
from tests.fakes.wire_data import (
    RUN,
    a_claim,
    a_heartbeat,
    a_job,
    a_progress,
    a_reservation,
    a_result,
    grant,
    opened,
    pay,
    take,
    wait_until,
)
from tests.fakes.wires import LEASE_S, Wire

ACK = "$JS.ACK.JOBS.default.1.1.1.1.0"


async def test_a_job_reaches_one_executor_unchanged(wire: Wire) -> None:
    """A job is handed to one of its pool's executors, with a handle to acknowledge it."""
    job = a_job(priority=9)

    async with wire.supervisor() as supervisor, wire.executor("ex1") as first, wire.executor("ex2") as second:
        await supervisor.publish_job(job, "d1")
        delivery = await first.next_job(5)
        nothing = await second.next_job(0.2)

    assert delivery is not None
    assert (delivery.job, delivery.deliveries, nothing) == (job, 1, None)
    assert abs(delivery.published_at - time.time()) < 60


async def test_a_waiting_executor_gets_a_job_when_it_comes(wire: Wire) -> None:
    """A pull waits for a job instead of asking again."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        pulling = asyncio.create_task(executor.next_job(10))
        await wait_until(lambda: _has_credit(supervisor, 1), "the pull waits")

        await supervisor.publish_job(a_job(), "d1")

        assert (await pulling) is not None


async def test_jobs_of_a_pool_come_in_the_order_they_were_published(wire: Wire) -> None:
    """The transport has no priority of its own; the supervisor orders."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        for stage in ("one", "two", "three"):
            await supervisor.publish_job(a_job(stage), stage)

        deliveries = [await executor.next_job(5) for _ in range(3)]

    assert [delivery.job.stage for delivery in deliveries if delivery] == ["one", "two", "three"]


async def test_the_same_dedupe_stores_a_job_once(wire: Wire) -> None:
    """Publishing again after a lost answer does not make a second job."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        await supervisor.publish_job(a_job(), "d1")
        await supervisor.publish_job(a_job(), "d1")
        await supervisor.publish_job(a_job(), "d2")

        found = [await executor.next_job(0.3) is not None for _ in range(3)]

    assert found == [True, True, False]


async def test_an_executor_cannot_pull_from_another_pool(wire: Wire) -> None:
    """A pool is the trust boundary: its jobs are for its executors only."""
    async with wire.supervisor() as supervisor, wire.executor("ex1", ("gpu",)) as gpu, wire.executor("ex2", ("cpu", "gpu")) as both:
        await supervisor.publish_job(a_job(pool="cpu"), "d1")

        nothing = await gpu.next_job(0.3)
        delivery = await both.next_job(5)

    assert nothing is None
    assert delivery is not None


async def test_a_job_for_one_executor_reaches_only_that_one(wire: Wire) -> None:
    """A directed job waits for its executor, which finds it beside its pool's, and goes when the executor is forgotten."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as first, wire.executor("ex2") as second:
        await supervisor.admit("ex2", ("default",))
        pulling = asyncio.create_task(second.next_job(10))
        await wait_until(lambda: _has_credit(supervisor, 1, "ex2"), "the pull is counted on both lanes")
        shared = await supervisor.credit("default")
        await supervisor.publish_job(a_job(), "d1", executor="ex2")
        nothing = await first.next_job(0.3)
        delivery = await pulling
        await supervisor.publish_job(a_job("two"), "d2", executor="ex2")
        await supervisor.forget("ex2", ("default",))
        await supervisor.admit("ex2", ("default",))
        forgotten = await second.next_job(0.3)

    assert shared == 1
    assert (nothing, forgotten) == (None, None)
    assert delivery is not None
    assert pool_of_ack(delivery.ack_subject) == "default"


async def test_an_executor_joins_in_its_own_name(wire: Wire) -> None:
    """What the supervisor's desk says comes back; a request in another's name never reaches it."""
    asked: list[JoinRequest] = []

    async def join(request: JoinRequest) -> JoinReply:
        asked.append(request)
        return JoinReply(accepted=False, reason="too old", release="9")

    own, other = (JoinRequest(executor=name, release="1", pools=("default",), slots=1) for name in ("ex1", "ex2"))
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        await supervisor.serve(PaperDesk(grant, pay, join), {})
        reply = await executor.join(own)
        refused = await executor.join(other)

    assert reply == JoinReply(accepted=False, reason="too old", release="9")
    assert not refused.accepted
    assert asked == [own]


async def test_the_broker_tells_of_executors_that_come_and_go(wire: Wire) -> None:
    """A closed connection is told at once, without waiting for a life sign to expire."""
    async with wire.supervisor() as supervisor, opened(supervisor.notices()) as notices:
        seen = asyncio.create_task(take(notices, 2))
        await asyncio.sleep(0.1)
        async with wire.executor("ex1"):
            pass

        assert await seen == [Notice(executor="ex1", is_connected=True), Notice(executor="ex1", is_connected=False)]


async def test_a_job_nobody_renews_is_delivered_again(wire: Wire) -> None:
    """A dead executor's job goes to another one when its lease is over."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as dead, wire.executor("ex2") as heir:
        await supervisor.publish_job(a_job(), "d1")
        first = await dead.next_job(5)
        again = await heir.next_job(3 * LEASE_S)

    assert first is not None
    assert again is not None
    assert (again.job, again.deliveries) == (first.job, 2)


async def test_a_renewed_job_stays_where_it_is(wire: Wire) -> None:
    """Renewals hold a job for longer than one lease."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as busy, wire.executor("ex2") as idle:
        await supervisor.publish_job(a_job(), "d1")
        delivery = await busy.next_job(5)
        assert delivery is not None
        stealing = asyncio.create_task(idle.next_job(2.5 * LEASE_S))

        until = time.monotonic() + 2.2 * LEASE_S
        while time.monotonic() < until:
            await busy.in_progress(delivery.ack_subject)
            await asyncio.sleep(LEASE_S / 4)
        await busy.ack(delivery.ack_subject)

        assert await stealing is None


async def test_an_acknowledged_job_never_comes_back(wire: Wire) -> None:
    """After the ack the queue is empty, and a second ack is harmless."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        await supervisor.publish_job(a_job(), "d1")
        delivery = await executor.next_job(5)
        assert delivery is not None
        await executor.ack(delivery.ack_subject)
        await executor.ack(delivery.ack_subject)

        assert await executor.next_job(1.5 * LEASE_S) is None


async def test_the_supervisor_hands_a_dead_executors_job_out_at_once(wire: Wire) -> None:
    """Redelivery by the supervisor does not wait for the lease."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as dead, wire.executor("ex2") as heir:
        await supervisor.publish_job(a_job(), "d1")
        delivery = await dead.next_job(5)
        assert delivery is not None

        await supervisor.redeliver(delivery.ack_subject)
        began = time.monotonic()
        again = await heir.next_job(5)

    assert again is not None
    assert time.monotonic() - began < LEASE_S / 2


async def test_a_withdrawn_job_is_gone(wire: Wire) -> None:
    """A cancelled run's delivered job is not handed out again, and taking it off twice is harmless."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        await supervisor.publish_job(a_job(), "d1")
        delivery = await executor.next_job(5)
        assert delivery is not None

        await supervisor.withdraw(delivery.ack_subject)
        await supervisor.withdraw(delivery.ack_subject)
        await supervisor.redeliver(delivery.ack_subject)

        assert await executor.next_job(1.5 * LEASE_S) is None


@pytest.mark.parametrize("subject", ["andon.job.gpu", "$JS.ACK.JOBS.default", "$JS.ACK.RESULTS.sup.1.1.1.1.0", ACK + ".x", ""])
async def test_the_supervisor_publishes_on_nothing_but_a_jobs_ack_subject(wire: Wire, subject: str) -> None:
    """An executor chooses the ack subject it claims with; it must not steer what the supervisor writes to."""
    async with wire.supervisor() as supervisor:
        with pytest.raises(Rejected):
            await supervisor.redeliver(subject)
        with pytest.raises(Rejected):
            await supervisor.withdraw(subject)


async def test_credit_is_waiting_pulls_less_undelivered_jobs(wire: Wire) -> None:
    """The supervisor releases as many jobs as executors wait for; a pull that was given up does not count."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        none = await supervisor.credit("default")
        pulls = [asyncio.create_task(executor.next_job(10)) for _ in range(2)]
        await wait_until(lambda: _has_credit(supervisor, 2), "two pulls wait")
        pulls[0].cancel()
        await wait_until(lambda: _has_credit(supervisor, 1), "one pull waits")
        await supervisor.publish_job(a_job(), "d1")
        delivered = await pulls[1]
        await supervisor.publish_job(a_job("two"), "d2")

        assert none == 0
        assert delivered is not None
        assert await supervisor.credit("default") == 0
        assert await supervisor.credit("elsewhere") == 0


async def test_a_cancelled_pull_does_not_swallow_a_job(wire: Wire) -> None:
    """What was on its way to a pull that is given up goes to the next one, without waiting for the lease."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        pulling = asyncio.create_task(executor.next_job(10))
        await wait_until(lambda: _has_credit(supervisor, 1), "the pull waits")
        pulling.cancel()
        await asyncio.wait({pulling})
        await supervisor.publish_job(a_job(), "d1")

        assert await executor.next_job(LEASE_S / 2) is not None


async def test_a_claim_is_answered_by_the_supervisor(wire: Wire) -> None:
    """Only the supervisor's answer allows work."""
    asked: list[ClaimRequest] = []

    async def claims(request: ClaimRequest) -> ClaimReply:
        asked.append(request)
        return await grant(request)

    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        await supervisor.serve(PaperDesk(claims, pay), {})
        claim = a_claim(ACK)
        reply = await executor.claim(claim)

    assert (reply.decision, reply.attempt) == ("granted", 1)
    assert asked == [claim]


@pytest.mark.parametrize("claim", [a_claim(ACK, executor="ex2"), a_claim("andon.job.gpu"), a_claim(ACK.replace("JOBS", "RESULTS"))])
async def test_a_claim_for_another_or_of_no_job_is_refused(wire: Wire, claim: ClaimRequest) -> None:
    """The handler never sees a claim that names another executor or a subject that is no job's."""

    async def claims(request: ClaimRequest) -> ClaimReply:
        raise AssertionError("not to be asked")

    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        await supervisor.serve(PaperDesk(claims, pay), {})

        assert (await executor.claim(claim)).decision == "refused"


async def test_money_is_asked_of_the_supervisor(wire: Wire) -> None:
    """A reservation is the supervisor's answer; in another executor's name it is not granted."""
    asked: list[BudgetRequest] = []

    async def budgets(request: BudgetRequest) -> BudgetReply:
        asked.append(request)
        return await pay(request)

    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        await supervisor.serve(PaperDesk(grant, budgets), {})
        own = await executor.budget(a_reservation())
        foreign = await executor.budget(a_reservation(executor="ex2"))

    assert own == BudgetReply(granted=True, remaining_nano_usd=95)
    assert not foreign.granted
    assert [request.executor for request in asked] == ["ex1"]


async def test_without_a_supervisor_nothing_is_granted(wire: Wire) -> None:
    """A claim or reservation nobody answers is a broker error, and soon."""
    began = time.monotonic()

    async with wire.executor("ex1") as executor:
        with pytest.raises(BrokerError):
            await executor.claim(a_claim(ACK))
        with pytest.raises(BrokerError):
            await executor.budget(a_reservation())

    assert time.monotonic() - began < 11


async def test_claims_are_answered_side_by_side(wire: Wire) -> None:
    """A slow answer to one executor does not hold up another."""
    release = asyncio.Event()

    async def claims(request: ClaimRequest) -> ClaimReply:
        if request.executor == "ex1":
            await release.wait()
        return await grant(request)

    async with wire.supervisor() as supervisor, wire.executor("ex1") as slow, wire.executor("ex2") as quick:
        await supervisor.serve(PaperDesk(claims, pay), {})
        waiting = asyncio.create_task(slow.claim(a_claim(ACK)))

        assert (await quick.claim(a_claim(ACK, executor="ex2"))).decision == "granted"
        release.set()
        assert (await waiting).decision == "granted"


async def test_a_result_arrives_until_it_is_confirmed(wire: Wire) -> None:
    """A supervisor that dies before it wrote the event sees the result again; one that confirmed does not."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        await executor.publish_result(a_result())
        async with opened(supervisor.results()) as results:
            [first] = await take(results, 1)
            [again] = await take(results, 1, within_s=5 * LEASE_S)
            await again.confirm()
            await executor.publish_result(a_result(stage="two"))
            [other] = await take(results, 1)
            await other.confirm()

            assert first.result == again.result == a_result()
            assert other.result == a_result(stage="two")
            with pytest.raises(TimeoutError):
                await take(results, 1, within_s=1.5 * LEASE_S)


async def test_results_come_in_order_and_outlive_the_supervisors_connection(wire: Wire) -> None:
    """What was published while no supervisor was there is waiting for the next one."""
    async with wire.executor("ex1") as executor:
        for stage in ("one", "two", "three"):
            await executor.publish_result(a_result(stage=stage))
    async with wire.supervisor() as supervisor, opened(supervisor.results()) as results:
        stored = await take(results, 3)
        for result in stored:
            await result.confirm()

    assert [result.result.stage for result in stored] == ["one", "two", "three"]


async def test_a_result_published_twice_is_stored_once(wire: Wire) -> None:
    """An executor repeats itself after a lost answer; another attempt is another result."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        await executor.publish_result(a_result())
        await executor.publish_result(a_result())
        await executor.publish_result(a_result(attempt=2, token="other"))
        async with opened(supervisor.results()) as results:
            stored = await take(results, 2)
            for result in stored:
                await result.confirm()

            assert [result.result.attempt for result in stored] == [1, 2]
            with pytest.raises(TimeoutError):
                await take(results, 1, within_s=1.5 * LEASE_S)


async def test_nobody_speaks_for_another_executor(wire: Wire) -> None:
    """A result or life sign in another's name is our own bug, said at once."""
    async with wire.executor("ex1") as executor:
        with pytest.raises(ValueError, match="ex2"):
            await executor.publish_result(a_result(executor="ex2"))
        with pytest.raises(ValueError, match="ex2"):
            await executor.heartbeat(a_heartbeat(executor="ex2"))


async def test_progress_is_seen_by_whoever_watches_and_lost_otherwise(wire: Wire) -> None:
    """Progress is droppable: nothing keeps it, and nobody has to listen."""
    async with wire.supervisor() as supervisor, wire.fleet() as cli, wire.executor("ex1") as executor:
        await executor.publish_progress(a_progress(turn=1))
        await executor.publish_telemetry(b"stored")  # answered, so what went before it on the same connection is through
        async with opened(supervisor.progress()) as seen, opened(cli.progress()) as seen_by_cli:
            watching = [asyncio.create_task(take(seen, 1)), asyncio.create_task(take(seen_by_cli, 1))]
            while not all(task.done() for task in watching):
                await executor.publish_progress(a_progress(turn=2))
                await asyncio.wait(watching, timeout=0.05)

    assert [await task for task in watching] == [[a_progress(turn=2)]] * 2


async def test_telemetry_reaches_the_supervisor_once(wire: Wire) -> None:
    """Spans sent while no supervisor listens are kept for it."""
    async with wire.executor("ex1") as executor:
        await executor.publish_telemetry(b"one")
        await executor.publish_telemetry(b"two")
    async with wire.supervisor() as supervisor, opened(supervisor.telemetry()) as payloads:
        assert await take(payloads, 2) == [b"one", b"two"]
        with pytest.raises(TimeoutError):
            await take(payloads, 1, within_s=0.2)


async def test_executors_are_those_with_a_life_sign(wire: Wire) -> None:
    """The newest life sign of each executor is listed."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as first, wire.executor("ex2") as second, wire.fleet() as cli:
        nobody = await supervisor.executors()
        await second.heartbeat(a_heartbeat("ex2", busy=1))
        await first.heartbeat(a_heartbeat("ex1", busy=0))
        await first.heartbeat(a_heartbeat("ex1", busy=1))

        assert nobody == []
        listed = await supervisor.executors()
        assert [beat.model_copy(update={"seen_at": 0.0}) for beat in listed] == [a_heartbeat("ex1", busy=1), a_heartbeat("ex2", busy=1)]
        assert all(abs(beat.seen_at - time.time()) < 60 for beat in listed)
        assert await cli.executors() == await supervisor.executors()


async def test_a_cancel_reaches_its_executor_only(wire: Wire) -> None:
    """What the supervisor says to one executor is not heard by another."""
    async with (
        wire.supervisor() as supervisor,
        wire.executor("ex1") as first,
        wire.executor("ex2") as second,
        opened(first.controls()) as heard,
        opened(second.controls()) as overheard,
    ):
        listening = asyncio.create_task(take(heard, 1))
        eavesdropping = asyncio.create_task(take(overheard, 1, within_s=0.5))
        while not listening.done():
            await supervisor.cancel("ex1", f"{RUN}-spec-1", "stopped")
            await asyncio.wait({listening}, timeout=0.05)

        [control] = await listening
        with pytest.raises(TimeoutError):
            await eavesdropping

    assert (control.verb, control.job_id, control.reason) == ("cancel", f"{RUN}-spec-1", "stopped")


async def test_a_cli_drains_one_executor(wire: Wire) -> None:
    """A person with a client's key asks one executor to leave; the others do not hear it."""
    async with (
        wire.fleet() as cli,
        wire.executor("ex1") as first,
        wire.executor("ex2") as second,
        opened(first.controls()) as heard,
        opened(second.controls()) as overheard,
    ):
        listening = asyncio.create_task(take(heard, 1))
        eavesdropping = asyncio.create_task(take(overheard, 1, within_s=0.5))
        while not listening.done():
            await cli.drain("ex1", "maintenance")
            await asyncio.wait({listening}, timeout=0.05)

        [control] = await listening
        with pytest.raises(TimeoutError):
            await eavesdropping

    assert (control.verb, control.job_id, control.reason) == ("drain", None, "maintenance")


async def test_a_cli_is_answered_by_the_supervisor(wire: Wire) -> None:
    """Requests of the fleet account get the handler's answer, or its reason."""

    async def intent(payload: bytes) -> bytes:
        return b"got " + payload

    async def stop(payload: bytes) -> bytes:
        raise UsageError("no such run")

    async with wire.supervisor() as supervisor, wire.fleet() as cli:
        await supervisor.serve(PaperDesk(grant, pay), {"andon.rpc.intent": intent, "andon.rpc.stop": stop})

        assert await cli.request("andon.rpc.intent", b"this") == b"got this"
        with pytest.raises(BrokerError, match="no such run"):
            await cli.request("andon.rpc.stop", b"{}")
        with pytest.raises(BrokerError):
            await cli.request("andon.rpc.resume", b"{}", timeout_s=2)


async def test_a_closed_link_refuses(wire: Wire) -> None:
    """After its context a link does nothing any more."""
    async with wire.supervisor() as supervisor:
        pass

    with pytest.raises(BrokerError):
        await supervisor.publish_job(a_job(), "d1")


async def _has_credit(supervisor: SupervisorLink, expected: int, executor: str = "") -> bool:
    return await supervisor.credit("default", executor) == expected
