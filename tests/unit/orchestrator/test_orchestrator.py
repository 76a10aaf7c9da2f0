"""The single writer over a bus in memory: happy line, rework, duplicates, wrong tokens, crashes, stop and resume, budget."""

import asyncio

import pytest

from sandbox.contract.errors import BrokerError, ConfigError, ConflictError, GitError
from sandbox.contract.result import AttemptResult, Outcome
from sandbox.contract.wire import ClaimReply, ClaimRequest, Delivery
from supervisor.orchestrator import Orchestrator
from supervisor.pipeline import events as ev
from supervisor.pipeline.run import JobState, RunState
from supervisor.store.event_log import StaleWriter
from tests.fakes.line_world import Worker, a_result, a_submission, a_world, ending, submit_at_once, wait_until
from tests.fakes.memory_log import MemoryEventLog


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
    async with a_world() as world, world.supervisor(), world.worker():
        run = await world.submit()
        await world.until(run, lambda state: state.delivered, "it is delivered")

    kept = b"".join(ev.encode(event) for event in await world.events(run)) + b"".join(world.broker.blobs.values())
    assert world.tokens > 0
    assert b"token-" not in kept


async def test_a_job_dispatched_but_not_published_is_published_by_the_next_supervisor():
    """A crash between the event and the publication loses nothing and doubles nothing."""

    class DeadQueue:
        def put(self, *_: object) -> None:
            return

        def kick(self) -> None:
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
    """The second executor is told busy, a claim with the token is granted again, without it and with the same delivery too."""
    replies: list[ClaimReply] = []

    async def work(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        if not replies:
            other = world.broker.claims
            assert other is not None
            same = {"job_id": delivery.job.job_id, "ack_subject": delivery.ack_subject}
            replies.append(await other(ClaimRequest(executor="host-9", **same)))
            replies.append(await other(ClaimRequest(executor="host-9", token=reply.token, **same)))
            replies.append(await worker.claim(delivery, reply.token))
            replies.append(await worker.claim(delivery))
            replies.append(await worker.claim(delivery, "wrong"))
        return a_result(worker, delivery, reply)

    async with a_world() as world, world.supervisor(), world.worker(work):
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert [reply.decision for reply in replies] == ["busy", "gone", "granted", "granted", "gone"]
    assert replies[2].token == replies[3].token == "token-1"
    assert replies[2].traceparent == replies[3].traceparent
    assert replies[2].traceparent.startswith(f"00-{state.trace_id}-")
    assert 0 < replies[2].wall_left_s <= 1800


async def test_an_executor_that_comes_back_without_its_attempt_gets_a_new_one():
    """A new delivery to the same executor without a token means that it lost the attempt: the next one is granted."""
    decisions: list[tuple[str, int, str]] = []

    async def forgetful(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult | None:
        again = delivery.model_copy(update={"ack_subject": delivery.ack_subject.replace(".1.", ".2.", 1)})
        if not decisions:
            new = await worker.claim(again)
            decisions.append((new.decision, new.attempt, (await worker.claim(delivery, reply.token)).decision))
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
        assert world.broker.claims is not None
        reply = await world.broker.claims(ClaimRequest(executor="old", job_id=f"{run}-spec-1", ack_subject="a", version=0))

    assert (reply.decision, "version 0" in reply.reason) == ("refused", True)


async def test_a_delivery_of_another_pool_gets_no_attempt():
    """What the executor names as its delivery is acked by us when the attempt is lost, so it has to be of the job's pool."""
    async with a_world() as world, world.supervisor():
        run = await world.submit()
        await world.until(run, lambda state: bool(state.jobs), "a job is dispatched")
        assert world.broker.claims is not None
        replies = [
            await world.broker.claims(ClaimRequest(executor="h", job_id=f"{run}-spec-1", ack_subject=f"$JS.ACK.JOBS.{pool}.1.1.1.1.0"))
            for pool in ("gpu", "default")
        ]

    assert [reply.decision for reply in replies] == ["refused", "granted"]


async def test_a_claim_of_an_unknown_job_is_gone():
    """So that a copy left on the bus is taken off it."""
    async with a_world() as world, world.supervisor():
        assert world.broker.claims is not None
        reply = await world.broker.claims(ClaimRequest(executor="h", job_id="0000000000-spec-1", ack_subject="a"))

    assert reply.decision == "gone"


async def test_an_infrastructure_fault_is_retried_and_counted():
    """Lost twice, done at the third attempt."""
    async with a_world() as world, world.supervisor(), world.worker(ending(Outcome.LOST, times=2)):
        run = await world.submit()
        state = await world.until(run, lambda state: state.delivered, "it is delivered")

    assert [attempt.outcome for attempt in state.jobs[f"{run}-spec-1"].attempts] == [Outcome.LOST, Outcome.LOST, Outcome.SUBMITTED]


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


async def test_claims_at_the_same_moment_give_one_attempt():
    """One is granted, the others are busy."""
    async with a_world() as world, world.supervisor():
        run = await world.submit()
        await world.until(run, lambda state: bool(state.jobs), "a job is dispatched")
        claim = world.broker.claims
        assert claim is not None
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
        assert world.broker.claims is not None
        with pytest.raises(BrokerError):
            await world.broker.claims(ClaimRequest(executor="h", job_id=f"{run}-spec-1", ack_subject="a"))
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
