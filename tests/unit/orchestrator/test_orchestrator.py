"""The single writer over a bus in memory: happy line, rework, duplicates, wrong tokens, crashes, claims."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from sandbox.contract.result import AttemptResult, Outcome
from sandbox.contract.wire import ClaimReply, ClaimRequest, Delivery
from supervisor.pipeline import events as ev
from tests.fakes.line_world import SPEED, Worker, a_result, a_world, ending, wait_until


def types(log: list[ev.AnyEvent]) -> list[str]:
    return [event.type for event in log]


async def test_the_happy_line_lands_and_is_delivered_once():
    """Every stage has one attempt; the run ends landed, delivered, with the trace of its id."""
    async with a_world() as world, world.supervisor(), world.worker(), world.worker(name="host-2"):
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert (state.state, state.exit_code, world.integrator.landings, world.delivered) == ("landed", 0, 1, [state.branch])
    assert [job.stage for job in state.jobs.values()][-2:] == ["validate", "docs"]
    assert {len(job.attempts) for job in state.jobs.values()} == {1}
    log = await world.events(run)
    assert types(world.observed) == types(log)
    assert all(event.at > 0 for event in log)


async def test_implement_and_test_run_at_the_same_time():
    """Neither waits for the other; the third worker has nothing to do."""
    at_once: list[set[str]] = []
    running: set[str] = set()

    async def work(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        running.add(delivery.job.stage)
        if delivery.job.stage in {"implement", "test"}:
            await wait_until(lambda: {"implement", "test"} <= running, "both run")
        at_once.append(set(running))
        return a_result(worker, delivery, reply)

    async with a_world() as world, world.supervisor(), world.worker(work), world.worker(work, "host-2"):
        run = await world.submit()
        await world.until(run, lambda state: state.delivered, "it is delivered")

    assert any({"implement", "test"} <= stages for stages in at_once)


async def test_rework_goes_round_until_validate_is_green():
    """Two reds, then green: three implement jobs and three joins."""
    async with a_world() as world, world.supervisor(), world.worker():
        world.integrator.verdicts = {"validate-1": "fail", "validate-2": "fail"}
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert [job.round for job in state.jobs.values() if job.stage == "implement"] == [1, 2, 3]
    assert types(await world.events(run)).count("joined") == 3


async def test_a_failed_gate_ends_the_run_and_nothing_lands():
    """The end names stage, check and finding."""
    async with a_world() as world, world.supervisor() as supervisor, world.worker():
        world.integrator.verdicts = {"interface-1": "fail"}
        run = await world.submit()
        state = await world.until(run, lambda state: state.state == "failed", "it has failed")
        await wait_until(lambda: not supervisor.busy_runs, "the run is let go")

    assert (state.exit_code, state.end_stage, state.end_check, state.end_reason) == (1, "interface", "pytest", "interface is wrong")
    assert world.integrator.landings == 0


@pytest.mark.abuse("N10")
@pytest.mark.abuse("N10")
async def test_a_result_counts_once():
    """The same result twice, by republication and by redelivery, is one end and one verdict."""

    async def twice(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        result = a_result(worker, delivery, reply)
        await worker.link.publish_result(result)
        worker.link._broker.is_repeated = lambda _dedupe: False  # type: ignore[method-assign, assignment] # the window is over
        return result

    async with a_world() as world, world.supervisor(), world.worker(twice):
        run = await world.submit()
        await world.until(run, lambda state: state.delivered, "it is delivered")
        await wait_until(lambda: all(stored.confirmed for stored in world.broker.results), "every result is confirmed")

    log = await world.events(run)
    assert types(log).count("attempt_ended") == types(log).count("attempt_started") == 7


@pytest.mark.abuse("N01", "N10")
@pytest.mark.abuse("N10")
async def test_a_result_with_a_wrong_token_is_ignored():
    """A zombie's result changes nothing; the right one after it does."""

    async def forged(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        await worker.link.publish_result(a_result(worker, delivery, reply, token="stolen", outcome=Outcome.BLOCKED))
        await wait_until(lambda: all(stored.confirmed for stored in worker.link._broker.results), "the forged one is taken")
        return a_result(worker, delivery, reply)

    async with a_world() as world, world.supervisor(), world.worker(forged):
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert {attempt.outcome for job in state.jobs.values() for attempt in job.attempts} == {Outcome.SUBMITTED}


async def test_no_token_is_in_the_log_or_in_a_stored_result():
    """The log holds its hash, the kept result an empty one."""
    async with a_world() as world, world.supervisor(), world.worker() as worker:
        run = await world.submit()
        await world.until(run, lambda state: state.delivered, "it is delivered")

    kept = b"".join(ev.encode(event) for event in await world.events(run)) + b"".join(world.broker.blobs.values())
    assert worker.tokens
    assert not [token for token in worker.tokens if token.encode() in kept]


async def test_a_job_dispatched_but_not_published_is_published_by_the_next_supervisor():
    """A crash between the event and the publication loses nothing and doubles nothing."""

    class DeadQueue:
        def put(self, *_: object) -> None:
            return

        def kick(self) -> None:
            return

        def count_held(self, _held: object) -> None:
            return

        def is_waiting(self, _dedupe: str) -> bool:
            return True

        async def run(self) -> None:
            await asyncio.Event().wait()

    async with a_world() as world, world.worker() as worker:
        async with world.supervisor(queue=DeadQueue()):
            run = await world.submit()
            await world.until(run, lambda state: bool(state.jobs), "a job is dispatched")
        assert not worker.log
        async with world.supervisor():
            state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert {len(job.attempts) for job in state.jobs.values()} == {1}


@pytest.mark.parametrize("seed", range(4))
async def test_a_supervisor_killed_at_any_moment_lands_the_run_once(seed: int):
    """Crash after crash, each at another event: one landing, one verdict a job, the work of no attempt is lost."""
    async with a_world() as world, world.worker(), world.worker(name="host-2"):
        world.integrator.verdicts = {"validate-1": "fail", "red-check-1": "fail"}
        run, generation = "", 0
        while not run or not (await world.state(run)).delivered:
            generation += 1
            assert generation < 80
            async with world.supervisor():
                run = run or await world.submit()
                seen = len(await world.events(run))
                goal = seen + 1 + (generation * 7 + seed) % 4
                for _ in range(400):
                    if len(await world.events(run)) >= goal or (await world.state(run)).delivered:
                        break
                    await asyncio.sleep(0.001)

    log = await world.events(run)
    judged = [event.job_id for event in log if isinstance(event, ev.JobJudged)]
    assert generation > 5
    assert world.integrator.landings == 1
    assert types(log).count("run_landed") == types(log).count("run_delivered") == 1
    assert len(judged) == len(set(judged))


async def test_two_claims_of_one_job_give_one_attempt():
    """The second executor is told busy, whatever it says; the first is granted its own again, and by another token nothing goes on."""
    replies: list[ClaimReply] = []

    async def work(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        if not replies:
            assert world.broker.desk is not None
            other = world.broker.desk.claim
            same = {"job_id": delivery.job.job_id, "ack_subject": delivery.ack_subject}
            replies.append(await other(ClaimRequest(executor="host-9", **same)))
            replies.append(await other(ClaimRequest(executor="host-9", token=reply.token, **same)))
            replies.append(await other(ClaimRequest(executor="host-9", token=reply.token, goes_on=True, **same)))
            replies.append(await worker.claim(delivery, token=reply.token))
            replies.append(await worker.claim(delivery, token=reply.token, goes_on=True))
            replies.append(await worker.claim(delivery, goes_on=True))
        return a_result(worker, delivery, reply)

    async with a_world() as world, world.supervisor(), world.worker(work):
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert [reply.decision for reply in replies] == ["busy", "busy", "gone", "granted", "granted", "gone"]
    again = replies[3]
    assert (again.attempt, again.token) == (replies[4].attempt, replies[4].token)
    assert again.traceparent == replies[4].traceparent
    assert again.traceparent.startswith(f"00-{state.trace_id}-")
    assert again.traceparent.endswith("-01")
    assert 0 < again.wall_left_s <= 1800


async def test_a_claim_whose_answer_was_lost_with_its_supervisor_costs_no_attempt():
    """The grant is in the log; the next supervisor knows the token by its hash, and gives the same answer."""
    replies: list[ClaimReply] = []

    async def work(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        if not replies:
            crash = stack.pop_all()
            await crash.aclose()
            await stack.enter_async_context(world.supervisor())
            replies.append(reply)
            replies.append(await worker.claim(delivery, token=reply.token))
        return a_result(worker, delivery, reply)

    async with a_world() as world, AsyncExitStack() as stack:
        await stack.enter_async_context(world.supervisor())
        async with world.worker(work):
            run = await world.submit()
            state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert [(reply.decision, reply.attempt) for reply in replies] == [("granted", 1), ("granted", 1)]
    assert {len(job.attempts) for job in state.jobs.values()} == {1}


async def test_an_executor_that_comes_back_without_its_attempt_gets_a_new_one():
    """A claim by another token of the same executor means that it lost the attempt: the next one is granted."""
    decisions: list[tuple[str, int, str]] = []

    async def forgetful(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult | None:
        again = delivery.model_copy(update={"ack_subject": delivery.ack_subject.replace(".1.", ".2.", 1)})
        if not decisions:
            new = await worker.claim(again)
            decisions.append((new.decision, new.attempt, (await worker.claim(delivery, token=reply.token, goes_on=True)).decision))
            return a_result(worker, delivery, new)
        return a_result(worker, delivery, reply)

    async with a_world() as world, world.supervisor(), world.worker(forgetful):
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert decisions == [("granted", 2, "gone")]
    assert [attempt.outcome for attempt in state.jobs[f"{run}-spec-1"].attempts] == [Outcome.LOST, Outcome.SUBMITTED]


async def test_another_protocol_version_is_refused_with_a_reason():
    """The executor is told what to do."""
    async with a_world() as world, world.supervisor():
        run = await world.submit()
        assert world.broker.desk is not None
        reply = await world.broker.desk.claim(ClaimRequest(executor="old", job_id=f"{run}-spec-1", ack_subject="a", version=0))

    assert (reply.decision, "version 0" in reply.reason) == ("refused", True)


async def test_a_delivery_of_another_pool_gets_no_attempt():
    """What the executor names as its delivery is acked by us when the attempt is lost, so it has to be of the job's pool."""
    async with a_world() as world, world.supervisor():
        run = await world.submit()
        await world.until(run, lambda state: bool(state.jobs), "a job is dispatched")
        assert world.broker.desk is not None
        replies = [
            await world.broker.desk.claim(ClaimRequest(executor="h", job_id=f"{run}-spec-1", ack_subject=f"$JS.ACK.JOBS.{pool}.1.1.1.1.0"))
            for pool in ("gpu", "default")
        ]

    assert [reply.decision for reply in replies] == ["refused", "granted"]


async def test_a_claim_of_an_unknown_job_is_gone():
    """So that a copy left on the bus is taken off it."""
    async with a_world() as world, world.supervisor():
        assert world.broker.desk is not None
        reply = await world.broker.desk.claim(ClaimRequest(executor="h", job_id="0000000000-spec-1", ack_subject="a"))

    assert reply.decision == "gone"


async def test_an_infrastructure_fault_is_retried_and_counted():
    """Lost twice, done at the third attempt."""
    async with a_world() as world, world.supervisor(), world.worker(ending(Outcome.LOST, times=2)):
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert [attempt.outcome for attempt in state.jobs[f"{run}-spec-1"].attempts] == [Outcome.LOST, Outcome.LOST, Outcome.SUBMITTED]


async def test_another_copy_of_a_job_that_is_worked_on_is_taken_off_the_bus():
    """Of the same message a peer is busy; a copy that was taken back from an executor's lane would only come again and again."""
    async with a_world() as world, world.supervisor():
        run = await world.submit()
        await world.until(run, lambda state: bool(state.jobs), "a job is dispatched")
        assert world.broker.desk is not None
        claims = [
            ("one", "default.1.7.1.1.0"),
            ("two", "default.2.7.2.1.0"),
            ("two", "default@two.1.8.1.1.0"),
            ("one", "default.1.9.1.1.0"),
        ]
        replies = [
            await world.broker.desk.claim(ClaimRequest(executor=name, job_id=f"{run}-spec-1", ack_subject=f"$JS.ACK.JOBS.{ack}"))
            for name, ack in claims
        ]
        state = await world.state(run)

    assert [reply.decision for reply in replies] == ["granted", "busy", "gone", "gone"]
    assert len(state.jobs[f"{run}-spec-1"].attempts) == 1


async def test_a_job_of_an_executor_that_dies_runs_elsewhere():
    """It vanishes with the job in hand; the broker says so, and after the grace and a second another executor does it."""
    async with a_world() as world, AsyncExitStack() as stack:
        await stack.enter_async_context(world.supervisor(monotonic=lambda: SPEED * time.monotonic()))

        async def vanish(_worker: Worker, _delivery: Delivery, _reply: ClaimReply) -> AttemptResult | None:
            await asyncio.Event().wait()
            return None

        async with world.worker(vanish, "host-1"):
            run = await world.submit()
            await world.until(run, lambda state: any(job.current for job in state.jobs.values()), "it is claimed")
        async with world.worker(name="host-2"):
            state = await world.until(run, lambda state: state.delivered, "it is delivered")

    attempts = state.jobs[f"{run}-spec-1"].attempts
    assert [(attempt.executor, attempt.outcome) for attempt in attempts] == [("host-1", Outcome.LOST), ("host-2", Outcome.SUBMITTED)]
