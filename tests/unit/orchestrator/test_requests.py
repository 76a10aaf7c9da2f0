"""What CLIs ask: a repeated submission, a held intake, a delivery made elsewhere."""

import pytest

from sandbox.contract import subjects
from supervisor.orchestrator import requests
from supervisor.pipeline.events import DeliveryFailed
from supervisor.pipeline.submit import Answer, DeliveredRequest, SubmitReply
from tests.fakes.line_driver import a_blob, sha
from tests.fakes.line_world import World, a_submission, a_world


async def test_the_same_submission_again_is_answered_with_the_same_run():
    """A client whose answer was lost asks again, also a new supervisor; another submission of the same words is another run."""
    async with a_world() as world:
        async with world.supervisor():
            first = await world.submit(request_id="a-1")
            assert await world.submit(request_id="a-1") == first
            other = await world.submit(request_id="a-2")
        async with world.supervisor():
            assert await world.submit(request_id="a-1") == first
            fresh = [await world.submit(), await world.submit()]

    assert len({first, other, *fresh}) == 4
    assert world.intake.count == 4


async def test_a_submission_is_known_although_its_run_is_over():
    """It landed before the client asked again."""
    async with a_world() as world:
        async with world.supervisor(), world.worker():
            run = await world.submit(request_id="a-1")
            await world.until(run, lambda state: state.delivered, "it is delivered")
        async with world.supervisor():
            assert await world.submit(request_id="a-1") == run


async def test_while_the_intake_is_held_nothing_new_is_taken_and_what_runs_goes_on():
    """One line and exit 5; `why` of an open run says so; it opens again by itself."""
    held = [""]
    async with a_world() as world, world.supervisor(hold=lambda: held[0]):
        run = await world.submit()
        held[0] = "the disk has 3 MiB left"
        refused = await world.ask(subjects.RPC_INTENT, a_submission(), SubmitReply)
        why = await world.why(run)
        async with world.worker():
            await world.until(run, lambda state: state.delivered, "it is delivered")
        held[0] = ""
        await world.submit()

    assert (refused.run_id, refused.exit_code, refused.error) == (None, 5, "no new run is taken now: the disk has 3 MiB left")
    assert any("the disk has 3 MiB left" in reason.text for reason in why.reasons)


async def test_a_live_run_is_refused_where_no_executor_has_a_key():
    """Before a stage is lost three times for it; a replay needs none, and one executor with a key, or none yet, is enough."""
    clock = [0.0]
    async with a_world() as world, world.supervisor(monotonic=lambda: clock[0]):
        await world.submit()
        async with world.worker() as keyless, world.worker(name="host-2") as other:
            for worker in (keyless, other):
                await worker.beat(model="none")
            clock[0] += requests.EXECUTORS_S
            refused = await world.ask(subjects.RPC_INTENT, a_submission(), SubmitReply)
            replay = await world.ask(subjects.RPC_INTENT, a_submission(mode="replay", cassette=a_blob("cassette")), SubmitReply)
            await other.beat(model="live")
            clock[0] += requests.EXECUTORS_S
            taken = await world.ask(subjects.RPC_INTENT, a_submission(), SubmitReply)

    assert (refused.run_id, refused.exit_code) == (None, 2)
    assert refused.error == "no executor of pool default has a key for the model (host-1, host-2): start it with ANTHROPIC_API_KEY set"
    assert replay.run_id
    assert taken.run_id


async def delivered(world: World, run: str, commit: str, *, ok: bool = True, reason: str = "") -> Answer:
    """Say how a delivery went."""
    request = DeliveredRequest(run_id=run, commit=commit, ok=ok, exit_code=0 if ok else 6, reason=reason)
    return await world.ask(subjects.RPC_DELIVERED, request, Answer)


async def test_a_delivery_made_elsewhere_is_recorded_once():
    """The landed run waits for it without an actor; the same word again changes nothing, a failure can be followed by a success."""
    async with a_world() as world, world.supervisor(deliver=None), world.worker():
        run = await world.submit()
        state = await world.until(run, lambda state: state.state == "landed", "it lands")
        commit = state.landed_commit or ""
        answers = [
            await delivered(world, run, commit, ok=False, reason="the branch is taken"),
            await delivered(world, run, commit, ok=False, reason="the branch is taken"),
            await delivered(world, run, commit),
            await delivered(world, run, commit),
            await delivered(world, run, commit, ok=False, reason="late"),
        ]
        log = await world.events(run)

    assert [answer.ok for answer in answers] == [True] * 5
    assert [event.type for event in log[-3:]] == ["run_landed", "delivery_failed", "run_delivered"]
    assert isinstance(log[-2], DeliveryFailed)
    assert (log[-2].exit_code, log[-2].reason) == (6, "the branch is taken")
    assert log[-3:] == world.observed[-3:]


@pytest.mark.parametrize(
    ("who", "says", "exit_code"),
    [
        ("other-commit", "landed", 6),
        ("open", "only a landed run is delivered", 6),
        ("own", "is delivered by its supervisor", 6),
        ("unknown", "there is no run", 2),
    ],
)
async def test_nobody_may_say_that_a_run_is_delivered_that_is_not_theirs(who: str, says: str, exit_code: int):
    """Another commit, a run that is not landed, one its supervisor delivers, one that does not exist."""
    async with a_world() as world, world.supervisor(**({} if who == "own" else {"deliver": None})):
        run = await world.submit()
        if who in {"other-commit", "own"}:
            async with world.worker():
                await world.until(run, lambda state: state.state == "landed", "it lands")
        state = await world.state(run)
        commit = sha("another") if who == "other-commit" else state.landed_commit or sha("x")
        answer = await delivered(world, "0000000000" if who == "unknown" else run, commit)

    assert (answer.ok, answer.exit_code) == (False, exit_code)
    assert says in answer.error
