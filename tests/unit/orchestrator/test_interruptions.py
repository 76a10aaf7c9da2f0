"""What interrupts a run: stop and resume, budget, broken gates, our own bugs, a second writer, what is read from an old log."""

import asyncio

import pytest

from sandbox.contract.errors import BrokerError, ConfigError, ConflictError, GitError
from sandbox.contract.result import AttemptResult, Outcome
from sandbox.contract.wire import LEASE_DOUBT_S, BudgetRequest, ClaimReply, ClaimRequest, Delivery
from supervisor.orchestrator import Orchestrator
from supervisor.pipeline import events as ev
from supervisor.pipeline.run import JobState, RunState
from supervisor.store.log.event_log import StaleWriter
from tests.fakes.line_world import Worker, a_result, a_submission, a_world, submit_at_once, wait_until
from tests.fakes.memory_log import MemoryEventLog


def types(log: list[ev.AnyEvent]) -> list[str]:
    return [event.type for event in log]


async def test_park_and_resume():
    """Parked while an agent works: its attempt is cancelled and salvaged, resume starts the stage again and the run lands."""
    first = [True]

    async def until_cancelled(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        if not first:
            return a_result(worker, delivery, reply)
        first.clear()
        async for control in worker.link.controls():
            assert (control.verb, control.job_id) == ("cancel", delivery.job.job_id)
            break
        return a_result(worker, delivery, reply, Outcome.KILLED, cause="cancelled")

    async with a_world() as world, world.supervisor() as supervisor, world.worker(until_cancelled):
        run = await world.submit()
        await world.until(run, lambda state: any(job.current for job in state.jobs.values()), "an agent works")
        assert (await world.stop(run)).ok
        parked = await world.until(run, lambda state: state.state == "parked", "it is parked")
        assert supervisor.busy_runs == ()
        assert (await world.stop(run)).ok
        assert (await world.resume(run)).ok
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert parked.exit_code == 130
    assert world.integrator.salvaged[0] == f"refs/andon/salvage/{run}/spec/1/1"
    ended = state.jobs[f"{run}-spec-1"].attempts[0].ended
    assert ended is not None
    assert ended.salvage_ref == world.integrator.salvaged[0]


async def test_a_parked_run_is_taken_up_by_the_next_supervisor_and_stays_parked():
    """Nothing starts until a person says so."""
    async with a_world() as world, world.worker():
        async with world.supervisor():
            run = await world.submit()
            await world.stop(run)
            await world.until(run, lambda state: state.state == "parked", "it is parked")
        before = len(await world.events(run))
        async with world.supervisor() as supervisor:
            assert supervisor.busy_runs == ()
            assert len(await world.events(run)) == before
            await world.resume(run)
            await world.until(run, lambda state: state.delivered, "it is delivered")


async def test_an_executor_that_ignores_a_cancel_is_declared_dead():
    """A minute after the first word its token is void and the run ends."""

    async def deaf(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        await asyncio.sleep(1)
        return a_result(worker, delivery, reply)

    async with a_world() as world, world.supervisor(), world.worker(deaf):
        run = await world.submit()
        await world.until(run, lambda state: any(job.current for job in state.jobs.values()), "an agent works")
        await world.stop(run, "cancel")
        state = await world.until(run, lambda state: state.state == "cancelled", "it is cancelled")
        await wait_until(lambda: bool(world.integrator.salvaged), "what it reports later is salvaged")

    ended = state.jobs[f"{run}-spec-1"].attempts[0].ended
    assert ended is not None
    assert (ended.outcome, "did not stop" in ended.reason) == (Outcome.LOST, True)


async def test_stop_and_resume_of_what_is_over_or_unknown_say_so():
    """Exit 2, one line."""
    async with a_world() as world, world.supervisor() as supervisor, world.worker():
        run = await world.submit()
        await world.until(run, lambda state: state.delivered, "it is delivered")
        await wait_until(lambda: not supervisor.busy_runs, "the run is let go")
        answers = [await world.stop(run), await world.resume(run), await world.stop("0000000000"), await world.resume("0000000000")]

    assert {answer.exit_code for answer in answers} == {2}
    assert "is landed" in answers[0].error
    assert answers[3].error == "there is no run 0000000000"


async def test_a_stop_during_the_landing_finds_a_landed_run():
    """Once the branch moves, the run is won: the stop is refused, not recorded."""
    async with a_world() as world:
        land, moved, go = world.integrator.land, asyncio.Event(), asyncio.Event()

        async def slow_land(run: object, commit: str) -> ev.RunLanded:
            landed = await land(run, commit)  # type: ignore[arg-type]
            moved.set()
            await go.wait()
            return landed

        world.integrator.land = slow_land  # type: ignore[method-assign]
        async with world.supervisor(), world.worker(), asyncio.TaskGroup() as tasks:
            run = await world.submit()
            await moved.wait()
            stop = tasks.create_task(world.stop(run, "cancel"))
            await asyncio.sleep(0.05)
            assert not stop.done()
            go.set()
            state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert (state.state, stop.result().ok) == ("landed", False)


async def test_the_budget_holds_and_the_run_parks_with_4_and_goes_on_with_more():
    """The third call would pass the limit; after the raise it goes through."""

    async def spender(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        if delivery.job.kind == "agent":
            for call in ("a", "b", "c"):
                if not await worker.spend(delivery, reply, call, 20_000):
                    return a_result(worker, delivery, reply, Outcome.BUDGET)
        return a_result(worker, delivery, reply)

    async with a_world() as world, world.supervisor(), world.worker(spender):
        run = await world.submit()
        parked = await world.until(run, lambda state: state.state == "parked", "it is parked")
        assert not (await world.resume(run, 40_000)).ok
        assert (await world.resume(run, 1_000_000)).ok
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert (parked.exit_code, parked.budget.settled_nano_usd, parked.budget.held_nano_usd) == (4, 40_000, 0)
    assert state.budget.settled_nano_usd == 40_000 + 5 * 60_000
    assert types(await world.events(run)).count("budget_warned") == 1


async def test_money_is_given_to_the_current_attempt_only():
    """A wrong token, a wrong executor and an ended attempt get nothing, and nothing is recorded."""
    answers: list[bool] = []

    async def work(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        if not answers:
            answers.append(await worker.spend(delivery, reply.model_copy(update={"token": "wrong"}), "a", 1))
            answers.append(await worker.spend(delivery, reply.model_copy(update={"attempt": 7}), "a", 1))
            answers.append(await worker.spend(delivery, reply, "a", 1))
            await worker.link.publish_result(a_result(worker, delivery, reply))
            await wait_until(lambda: all(stored.confirmed for stored in worker.link._broker.results), "the result is taken")
            answers.append(await worker.spend(delivery, reply, "b", 1))
        return a_result(worker, delivery, reply)

    async with a_world() as world, world.supervisor(), world.worker(work):
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert answers == [False, False, True, False]
    assert state.budget.settled_nano_usd == 1


async def test_a_gate_whose_infrastructure_fails_is_tried_again():
    """Twice broken, then judged: nobody notices."""
    async with a_world() as world, world.supervisor(), world.worker():
        world.integrator.failures = [GitError("disk"), GitError("disk")]
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert state.step_failed is None


async def test_a_gate_that_stays_broken_parks_the_run_and_resume_judges_again():
    """Exit 5, the work is kept, and nothing runs again that was done."""
    async with a_world() as world, world.supervisor(), world.worker():
        world.integrator.failures = [GitError("disk full")] * 4
        run = await world.submit()
        parked = await world.until(run, lambda state: state.state == "parked", "it is parked")
        await world.resume(run)
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert (parked.exit_code, parked.end_reason) == (5, "disk full")
    assert len(state.jobs[f"{run}-spec-1"].attempts) == 1


async def test_our_own_bug_in_one_run_parks_it_and_leaves_the_others_alone():
    """The first run's gate breaks in a way nobody foresaw; the second one lands."""
    async with a_world() as world, world.supervisor(), world.worker():
        world.integrator.failures = [ZeroDivisionError("gate")]
        broken = await world.submit()
        parked = await world.until(broken, lambda state: state.state == "parked", "it is parked")
        world.integrator.branch = None
        fine = await world.submit(repository="/other")
        await world.until(fine, lambda state: state.delivered, "the other is delivered")

    assert (parked.exit_code, "internal error in judge" in parked.end_reason) == (5, True)


async def test_a_wrong_configuration_found_at_dispatch_fails_the_run():
    """Trying again would not help: exit 2."""
    async with a_world() as world, world.supervisor(), world.worker():
        world.dispatcher.failures = [ConfigError("quality.toml: tests: no such key")]
        run = await world.submit()
        state = await world.until(run, lambda state: state.state == "failed", "it has failed")

    assert (state.exit_code, state.end_stage, state.end_reason) == (2, "spec", "quality.toml: tests: no such key")


async def test_a_branch_that_was_taken_meanwhile_leaves_the_run_landed_and_says_6():
    """The mirror has it; resume delivers when the way is free."""
    async with a_world() as world, world.supervisor() as supervisor, world.worker():
        world.delivery_failures = [ConflictError("branch andon/x exists")]
        run = await world.submit()
        failed = await world.until(run, lambda state: state.delivery_failed, "its delivery failed")
        await wait_until(lambda: not supervisor.busy_runs, "the run is let go")
        assert (await world.resume(run)).ok
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert (failed.state, failed.exit_code, failed.end_reason) == ("landed", 6, "branch andon/x exists")
    assert (state.exit_code, world.integrator.landings) == (0, 1)


async def test_without_a_delivery_of_its_own_the_supervisor_is_done_at_the_landing():
    """A CLI on the repository's host delivers (DECISIONS D1)."""
    async with a_world() as world, world.supervisor(deliver=None) as supervisor, world.worker():
        run = await world.submit()
        state = await world.until(run, lambda state: state.state == "landed", "it has landed")
        await wait_until(lambda: not supervisor.busy_runs, "the run is let go")

    assert not state.delivered


async def test_a_run_of_a_client_elsewhere_is_left_to_it_to_deliver():
    """Its repository's path means nothing on the supervisor's host, where another repository may be."""
    async with a_world() as world, world.supervisor() as supervisor, world.worker():
        run = await world.submit(delivery="client")
        state = await world.until(run, lambda state: state.state == "landed", "it has landed")
        await wait_until(lambda: not supervisor.busy_runs, "the run is let go")

    assert (state.delivered, world.delivered) == (False, [])


async def test_claims_at_the_same_moment_give_one_attempt():
    """One is granted, the others are busy."""
    async with a_world() as world, world.supervisor():
        run = await world.submit()
        await world.until(run, lambda state: bool(state.jobs), "a job is dispatched")
        assert world.broker.desk is not None
        claim = world.broker.desk.claim
        requests = [ClaimRequest(executor=f"host-{number}", job_id=f"{run}-spec-1", ack_subject="a") for number in range(5)]
        replies = await asyncio.gather(*(claim(request) for request in requests))
        state = await world.state(run)

    assert sorted(reply.decision for reply in replies) == ["busy"] * 4 + ["granted"]
    assert len(state.jobs[f"{run}-spec-1"].attempts) == 1


async def test_a_verdict_that_comes_with_the_end_of_its_run_holds_nothing_up():
    """The run is over before the verdict's turn: it is dropped, and the run is let go."""
    async with a_world() as world:
        judge, judging, go = world.integrator.judge, asyncio.Event(), asyncio.Event()

        async def slow_judge(run: RunState, job: JobState) -> ev.JobJudged:
            verdict = await judge(run, job)
            judging.set()
            await go.wait()
            return verdict

        world.integrator.judge = slow_judge  # type: ignore[method-assign]
        async with world.supervisor() as supervisor, world.worker():
            run = await world.submit()
            await judging.wait()
            go.set()
            assert (await world.stop(run, "cancel")).ok
            await wait_until(lambda: not supervisor._actors, "the run is let go")

    assert types(await world.events(run))[-1] == "run_cancelled"


async def test_an_event_that_arrives_after_its_answer_was_given_up_is_taken_in():
    """The client sends what it buffered once it is connected again: our own late event is no other writer's."""

    class LateLog(MemoryEventLog):
        late: ev.AnyEvent | None = None
        calls = 0

        async def append(self, event: ev.AnyEvent, expected_seq: int) -> int:
            self.calls += 1
            if self.late is not None:
                late, self.late = self.late, None
                await super().append(late, expected_seq)
            elif self.calls % 4 == 3:
                self.late = event
                raise BrokerError("away")
            return await super().append(event, expected_seq)

    async with a_world(LateLog()) as world, world.supervisor(), world.worker():
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    log = await world.events(run)
    judged = [event.job_id for event in log if isinstance(event, ev.JobJudged)]
    assert len(judged) == len(set(judged)) == len(state.jobs)
    assert (world.integrator.landings, types(log).count("run_landed")) == (1, 1)


async def test_a_second_writer_makes_the_first_stand_down():
    """What it does not know it must not build on: it ends, and a supervisor that folds the whole log takes over."""
    async with a_world() as world:
        orchestrator = Orchestrator(world.ports())
        task = asyncio.create_task(orchestrator.run())
        await orchestrator.ready.wait()
        run = await world.submit()
        state = await world.until(run, lambda state: bool(state.jobs), "a job is dispatched")
        await world.log.append(ev.StopRequested(run_id=run, at=1, how="park", reason="the other"), state.seq)
        assert world.broker.desk is not None
        with pytest.raises(BrokerError):
            await world.broker.desk.claim(ClaimRequest(executor="h", job_id=f"{run}-spec-1", ack_subject="a"))
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, BaseExceptionGroup)
        assert ended.subgroup(StaleWriter) is not None
        async with world.supervisor():
            await world.until(run, lambda state: state.state == "parked", "the other's word is done")


async def test_a_second_run_is_told_the_branches_of_open_ones():
    """Intake decides with them; another repository's do not matter."""
    async with a_world() as world, world.supervisor():
        await world.submit()
        second = await world.broker.rpcs["andon.rpc.intent"](_submission("/repo"))
        third = await world.broker.rpcs["andon.rpc.intent"](_submission("/elsewhere"))

    assert b'"notices":["andon/add-rate-limiting"]' in second
    assert b'"notices":[]' in third


def _submission(repository: str) -> bytes:
    return a_submission(repository=repository).model_dump_json().encode()


async def test_a_malformed_request_is_answered_not_fatal():
    """Exit 2 with the first problem."""
    async with a_world() as world, world.supervisor():
        answers = [await world.broker.rpcs[f"andon.rpc.{name}"](b'{"x": 1}') for name in ("intent", "stop", "resume")]

    assert all(b'"exit_code":2' in answer for answer in answers)
    assert all(b"understands" in answer for answer in answers)


async def test_an_unreadable_log_of_one_run_does_not_keep_the_others_from_being_taken_up():
    """A log that begins in the middle is reported and left alone."""
    async with a_world() as world, world.worker():
        await world.log.append(ev.RunParked(run_id="0000000000", at=1, reason="", exit_code=5), 0)
        async with world.supervisor():
            run = await world.submit()
            await world.until(run, lambda state: state.delivered, "it is delivered")


async def test_submit_at_once_is_what_workers_do_by_default():
    """The fake is a worker like any other: what it published is acked."""
    async with a_world() as world, world.supervisor(), world.worker(submit_at_once):
        run = await world.submit()
        await world.until(run, lambda state: state.delivered, "it is delivered")
        await wait_until(lambda: not world.broker.jobs, "nothing is left on the bus")


async def test_a_log_that_cannot_be_written_for_a_while_only_delays():
    """Appends fail, and one is stored although its answer was lost: the run lands as if nothing had happened."""

    class FlakyLog(MemoryEventLog):
        calls = 0

        async def append(self, event: ev.AnyEvent, expected_seq: int) -> int:
            self.calls += 1
            if self.calls % 5 == 3:
                raise BrokerError("away")
            seq = await super().append(event, expected_seq)
            if self.calls % 7 == 4:
                raise BrokerError("the answer was lost")
            return seq

    async with a_world(FlakyLog()) as world, world.supervisor(), world.worker():
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert world.integrator.landings == 1
    log = await world.events(run)
    judged = [event.job_id for event in log if isinstance(event, ev.JobJudged)]
    assert len(judged) == len(set(judged)) == len(state.jobs)


@pytest.mark.parametrize(("held_s", "decision"), [(LEASE_DOUBT_S - 1, "busy"), (LEASE_DOUBT_S, "granted")])
async def test_a_job_that_is_handed_out_again_after_its_lease_is_the_next_executors(held_s: float, decision: str):
    """An executor that was killed right after its grant lives again and knows nothing of it: without this nobody would have the job."""
    clock = [1000.0]
    replies: list[ClaimReply] = []

    async def forgets(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult | None:
        if not replies:
            assert world.broker.desk is not None
            clock[0] += held_s
            same = {"job_id": delivery.job.job_id, "ack_subject": delivery.ack_subject}
            replies.append(await world.broker.desk.claim(ClaimRequest(executor="host-9", **same)))
        return a_result(worker, delivery, reply)

    async with a_world() as world, world.supervisor(monotonic=lambda: clock[0]), world.worker(forgets):
        await world.submit()
        await wait_until(lambda: bool(replies), "the second executor is answered")

    assert replies[0].decision == decision
    assert (replies[0].attempt == 2) is (decision == "granted")


class StuckLog(MemoryEventLog):
    is_stuck = False

    async def append(self, event: ev.AnyEvent, expected_seq: int) -> int:
        if self.is_stuck:
            await asyncio.Event().wait()
        return await super().append(event, expected_seq)


async def test_a_supervisor_that_stands_down_does_not_say_that_the_run_is_over():
    """Told so, an executor ends its attempt for want of budget, although the next supervisor would have granted the call."""
    log = StuckLog()

    def reserves(run: RunState) -> ev.AnyEvent:
        names = {"run_id": run.run_id, "job_id": f"{run.run_id}-spec-1", "attempt": 1, "call_id": "1.1"}
        return ev.BudgetReserved(at=0, nano_usd=1, model="claude-sonnet-5-5", **names)

    async with a_world(log=log) as world:
        async with world.supervisor() as supervisor:
            run = await world.submit()
            await wait_until(lambda: run in supervisor._actors, "the run is open")
            log.is_stuck = True
            actor = supervisor._actors[run]
            asked = [asyncio.create_task(actor.record(reserves)) for _ in range(3)]
            await asyncio.wait(asked, timeout=0.05)
            assert not any(task.done() for task in asked)
        answers = await asyncio.gather(*asked, return_exceptions=True)

    assert isinstance(answers[0], asyncio.CancelledError)
    assert [type(answer) for answer in answers[1:]] == [BrokerError, BrokerError]


async def test_a_supervisor_that_stands_down_does_not_say_that_the_run_is_unknown():
    """Asked after its runs have ended their tasks, and before its connection is closed, it lets the executor ask again."""
    async with a_world() as world:
        async with world.supervisor() as supervisor:
            run = await world.submit()
            await world.until(run, lambda state: bool(state.jobs), "a job is dispatched")
            desk = world.broker.desk
            assert desk is not None
            job = f"{run}-spec-1"
            granted = await desk.claim(ClaimRequest(executor="host-1", job_id=job, ack_subject="$JS.ACK.JOBS.default.1.1.1.1.0"))
        assert run in supervisor._actors

        for op in ("reserve", "settle"):
            money = {"run_id": run, "job_id": job, "attempt": 1, "token": granted.token, "op": op, "call_id": "1.1", "nano_usd": 1}
            with pytest.raises(BrokerError):
                await desk.budget(BudgetRequest.model_validate({"executor": "host-1"} | money))
        claim = {"executor": "host-1", "job_id": job, "ack_subject": "$JS.ACK.JOBS.default.1.1.1.1.0", "token": granted.token}
        again = await desk.claim(ClaimRequest.model_validate(claim | {"goes_on": True}))

    assert again.decision == "granted"
