"""Why nothing happens, or what does: every kind of answer, from state."""

import asyncio
import time

import pytest

from sandbox.contract.result import AttemptResult, Finding, Outcome
from sandbox.contract.wire import ClaimReply, Delivery, Heartbeat, Progress
from supervisor.orchestrator.activity import Doing
from supervisor.orchestrator.why import View, why
from supervisor.pipeline import events as ev
from supervisor.pipeline.commands import Republish
from supervisor.pipeline.load import load_pipeline
from supervisor.pipeline.submit import Reason
from tests.fakes.line_driver import LineDriver
from tests.fakes.line_world import Worker, a_world, wait_until


class Waiting:
    """A queue in which everything waits, or nothing."""

    def __init__(self, *, waiting: bool = True, ahead: int = 0, directed: str = "") -> None:
        self.waiting, self.ahead, self.directed = waiting, ahead, directed

    def is_waiting(self, dedupe: str) -> bool:
        """Return whether it waits."""
        return self.waiting

    def directed_to(self, dedupe: str) -> str:
        """Return where it lies."""
        return self.directed

    def ahead_of(self, dedupe: str) -> int:
        """Return how many go first."""
        return self.ahead


def beat(name: str = "one", **changes: object) -> Heartbeat:
    """Return a life sign."""
    said: dict[str, object] = {"executor": name, "release": "1", "pools": ("default",), "slots": 1, "busy": 1, "model": "none"}
    return Heartbeat.model_validate(said | changes)


def first(line: LineDriver, queue: Waiting | None = None, *beats: Heartbeat, doing: Doing | None = None, held: str = "") -> Reason:
    """Return the first reason."""
    return why(line.run, View(queue or Waiting(), beats, lambda _job, _attempt: doing, held)).reasons[0]


LABELLED = load_pipeline("pipeline: {stages: [{name: spec, labels: {gpu: '1'}}, {name: docs, depends_on: [spec]}]}", "x")


@pytest.mark.parametrize(
    ("queue", "beats", "says"),
    [
        (Waiting(), [], "spec waits: no executor of pool default is connected"),
        (Waiting(), [beat()], "spec waits: no executor of pool default matches the labels gpu=1"),
        (Waiting(), [beat(labels={"gpu": "1"}, held="draining")], "takes no jobs: one (draining)"),
        (
            Waiting(ahead=3),
            [beat(labels={"gpu": "1"})],
            "the one slot of pool default with its labels is busy; 3 jobs of this pool go first",
        ),
        (Waiting(waiting=False, directed="one"), [], "spec was handed to executor one and is about to be claimed"),
        (Waiting(waiting=False), [], "spec was handed to pool default"),
    ],
)
def test_a_queued_job_says_what_it_waits_for(queue: Waiting, beats: list[Heartbeat], says: str):
    """Which labels nobody has, who takes no jobs, how many go first; and which stages wait for it."""
    line = LineDriver(LABELLED)
    job = line.dispatch("spec")
    reply = why(line.run, View(queue, beats, lambda _job, _attempt: None))

    assert (reply.state, reply.reasons[0].kind, reply.reasons[0].job_id) == ("queued", "queued", job.job_id)
    assert says in reply.reasons[0].text
    assert [(reason.kind, reason.stage) for reason in reply.reasons[1:]] == [("blocked", "docs"), ("blocked", "land")]


def test_a_running_job_says_on_which_host_and_what_it_does():
    """The tool and since when, from what the attempt said last; before it said anything, since when it runs."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    begun = first(line)
    progress = Progress(executor="host-1", run_id=job.job_id[:10], job_id=job.job_id, stage="spec", round=1, attempt=1, phase="running")
    busy = first(line, doing=Doing(progress.model_copy(update={"turn": 3, "tool": "bash", "message": "pytest -q"}), 7.0))
    idle = first(line, doing=Doing(progress, 7.0))

    assert (begun.kind, begun.executor, begun.since) == ("running", "host-1", line.run.jobs[job.job_id].attempts[0].started_at)
    assert (busy.kind, busy.tool, busy.since) == ("running", "bash", 7.0)
    assert busy.text == "spec runs bash on host-1, turn 3: pytest -q"
    assert idle.text == "spec waits for the model on host-1"


def test_a_job_that_waits_for_the_providers_rate_is_throttled():
    """Not "running": a person who asks why nothing happens learns whose fault it is, whatever tool ran before."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    progress = Progress(executor="host-1", run_id=job.job_id[:10], job_id=job.job_id, stage="spec", round=1, attempt=1, phase="throttled")

    said = first(line, doing=Doing(progress.model_copy(update={"turn": 3, "tool": "bash"}), 7.0))

    assert (said.kind, said.text) == ("throttled", "spec waits for the provider, which limits its rate, on host-1, turn 3")


def test_a_fault_is_waited_out_and_a_verdict_made():
    """Between two attempts, and between an attempt and its verdict."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    line.end(job, Outcome.LOST, reason="executor one is gone")
    again = first(line)
    assert isinstance(line.wanted[0], Republish)
    line.start(job)
    line.end(job)

    assert (again.kind, again.text) == ("throttled", "spec is tried again 1 s after a fault: executor one is gone")
    assert (first(line).kind, first(line).text) == ("running", "the gates judge spec")


def test_parked_waiting_and_over_say_what_a_person_can_do():
    """The reason of the run's own log, and the command that goes on."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.ask(ev.StopRequested, how="park", reason="lunch")
    parked = first(line)
    line.ask(ev.RunResumed)
    line.start(job)
    line.end(job)
    line.judge(job, "hold")
    waiting = first(line)
    line.ask(ev.StopRequested, how="cancel", reason="enough")

    assert (parked.kind, f"andon resume {line.run.run_id}" in parked.text, "lunch" in parked.text) == ("parked", True, True)
    assert (waiting.kind, waiting.stage, waiting.text) == ("waiting", "spec", "spec waits for a person's approval")
    assert (first(line).kind, first(line).text) == ("over", "cancelled: enough")


def test_a_landed_run_says_whether_it_is_delivered():
    """And how to try again if it is not."""
    line = LineDriver(load_pipeline("pipeline: {stages: [{name: spec}]}", "x"))
    line.do("spec")
    line.land()

    assert first(line).text.startswith("landed as ")
    assert "delivered on andon/add-rate-limiting" in first(line).text


def test_a_failed_sibling_is_named_while_the_line_closes():
    """Nothing new starts, and why."""
    line = LineDriver()
    line.do("spec")
    line.do("interface")
    implement, test = line.dispatch("implement"), line.dispatch("test")
    line.start(implement)
    line.start(test)
    line.end(implement)
    line.judge(implement, "fail", findings=(Finding(check="scope", message="wrote elsewhere"),))
    closing = first(line)

    assert closing.kind == "throttled"
    assert "wrote elsewhere" in closing.text


async def test_it_is_answered_in_a_second_with_a_thousand_open_runs():
    """And tells of the attempt that runs; the answer comes from memory, whatever the broker does."""

    async def talk(worker: Worker, delivery: Delivery, reply: ClaimReply) -> AttemptResult | None:
        job = delivery.job
        same = {"executor": worker.name, "run_id": job.run_id, "job_id": job.job_id, "stage": job.stage, "round": job.round}
        await worker.link.publish_progress(Progress.model_validate(same | {"attempt": 1, "phase": "running", "tool": "bash"}))
        await asyncio.Event().wait()
        return None

    async with a_world() as world, world.supervisor(sleep=asyncio.sleep):  # else the watch looks a hundred times a second
        runs = [await world.submit() for _ in range(1000)]
        async with world.worker(talk):
            await world.until(runs[0], lambda state: state.state == "running", "the first one runs")
            await wait_until(lambda: len(world.observed) >= 2001, "all are dispatched")
            supervisor = world.orchestrator
            assert supervisor is not None
            await wait_until(lambda: supervisor._activity.of(f"{runs[0]}-spec-1", 1) is not None, "its progress is heard")
            started = time.monotonic()
            running, queued = await world.why(runs[0]), await world.why(runs[-1])
            took_s = time.monotonic() - started

    assert (running.reasons[0].kind, running.reasons[0].tool, running.reasons[0].executor) == ("running", "bash", "host-1")
    assert queued.reasons[0].kind == "queued"
    assert "; 998 jobs of this pool go first" in queued.reasons[0].text
    assert took_s < 1


async def test_an_unknown_run_has_no_reasons():
    """Exit 2 and one line."""
    async with a_world() as world, world.supervisor():
        reply = await world.why("0000000000")

    assert (reply.exit_code, reply.error, reply.reasons) == (2, "there is no run 0000000000", ())
