"""Two supervisor processes on one broker, each with its own state directory: one leads, the other takes over; nothing happens twice."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel

from sandbox.bus import NatsExecutorLink
from sandbox.contract import subjects
from sandbox.contract.errors import BrokerError
from sandbox.contract.ids import attempt_path
from sandbox.contract.job import Submission
from sandbox.contract.result import AttemptResult, Outcome
from sandbox.contract.wire import ClaimReply, ClaimRequest, Delivery, Heartbeat, JoinRequest
from sandbox.git import ANDON
from sandbox.mirror import Mirror
from supervisor.delivery import deliver, snapshot
from supervisor.pipeline import events as ev
from supervisor.pipeline.fold import fold
from supervisor.pipeline.run import RunState
from supervisor.pipeline.submit import SubmitReply, SubmitRequest, WhyReply, WhyRequest
from supervisor.store.broker.embedded import EmbeddedBroker, supervisor_file
from supervisor.store.client import NatsFleetClient
from tests.fakes.repositories import run_git, write_files

TAKEOVER_S = 10.0
RESULT_S = 60.0
"""A result may be on its way to a leader that is paused: the broker hands it out again when it was not confirmed for 30 s."""
PIPELINE = """
pipeline:
  stages:
    - {name: first, role: docs, agent: docs}
    - {name: second, role: docs, agent: docs, depends_on: [first]}
"""


class Paper:
    """An executor on paper over a real link: its work is one file a stage; it holds what it claimed while `may_end` is clear."""

    def __init__(self, link: NatsExecutorLink, mirror: Mirror) -> None:
        self._link = link
        self._mirror = mirror
        self.claimed: list[str] = []
        self.may_end = asyncio.Event()

    async def run(self) -> None:
        """Join, then pull, claim, work, report, until cancelled."""
        await self._asked(lambda: self._link.join(JoinRequest(executor="paper", release="1", pools=("default",), slots=1)))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            while True:
                delivery = await self._link.next_job(1.0)
                if delivery is not None:
                    await self._take(delivery)

    async def _beat(self) -> None:
        while True:
            await self._link.heartbeat(Heartbeat(executor="paper", release="1", pools=("default",), slots=1, busy=0, model="live"))
            await asyncio.sleep(2)

    async def _asked(self, ask: Callable[[], object]) -> object:
        while True:
            try:
                return await ask()  # type: ignore[misc]
            except BrokerError:
                await asyncio.sleep(0.2)

    async def _take(self, delivery: Delivery) -> None:
        request = ClaimRequest(executor="paper", job_id=delivery.job.job_id, ack_subject=delivery.ack_subject)
        reply = await self._asked(lambda: self._link.claim(request))
        assert isinstance(reply, ClaimReply)
        if reply.decision in {"done", "gone"}:
            await self._link.ack(delivery.ack_subject)
        if reply.decision != "granted":
            return
        self.claimed.append(delivery.job.stage)
        if delivery.job.stage == "second":
            await self.may_end.wait()
        await self._link.publish_result(await self._worked(delivery, reply))
        await self._link.ack(delivery.ack_subject)

    async def _worked(self, delivery: Delivery, reply: ClaimReply) -> AttemptResult:
        job = delivery.job
        await self._mirror.import_base(job.base_commit, await self._link.get_blob(job.input_pack))
        files = {f"docs/{job.stage}.md": f"{job.stage}\n".encode()}
        commit = await self._mirror.commit_files(job.base_commit, files, message="transport", author=ANDON, committer=ANDON, at=3)
        data = await self._mirror.bundle_of(commit, job.base_commit)
        path = attempt_path(job.run_id, job.stage, job.round, reply.attempt)
        ref = await self._link.put_blob(f"{path}/work.bundle-{sha256(data).hexdigest()}", data)
        about = {"job_id": job.job_id, "run_id": job.run_id, "stage": job.stage, "round": job.round, "attempt": reply.attempt}
        ends = {"token": reply.token, "executor": "paper", "outcome": Outcome.SUBMITTED, "started_at": 1.0, "ended_at": 2.0}
        said = {"commit": commit, "git_bundle": ref, "submission": Submission(status="done", summary="written")}
        return AttemptResult.model_validate(about | ends | said)


class Fleet:
    """A broker, a repository, a person's client and up to two supervisors."""

    def __init__(self, directory: Path, broker: EmbeddedBroker, client: NatsFleetClient, paper: Paper) -> None:
        self.directory = directory
        self.broker = broker
        self.client = client
        self.paper = paper
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    async def supervise(self, name: str) -> None:
        """Start a supervisor with a state directory of its own."""
        own = {
            "NATS_URL": self.broker.url,
            "NATS_CREDS": str(supervisor_file(self.directory / "nats")),
            "ANDON_STATE_DIRECTORY": str(self.directory / name),
            "HOME": str(self.directory),
            "PATH": os.environ["PATH"],
            "ANDON_DISK_FLOOR_MIB": "0",
        }
        with (self.directory / f"{name}.log").open("ab") as said:
            self.processes[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "supervisor", env=own, stdout=said, stderr=said
            )

    def said(self, name: str) -> str:
        """Return what a supervisor logged."""
        return (self.directory / f"{name}.log").read_text()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Signal a supervisor."""
        self.processes[name].send_signal(number)

    async def ask(self, subject: str, request: BaseModel, seconds: float = TAKEOVER_S) -> bytes:
        """Ask whoever leads, again and again while nobody answers, at most `seconds`."""
        until = time.monotonic() + seconds
        while True:
            try:
                return await self.client.request(subject, request.model_dump_json().encode(), timeout_s=1.0)
            except BrokerError:
                assert time.monotonic() < until, f"nobody answered within {seconds} s: {[self.said(name) for name in self.processes]}"

    async def why(self, run: str, seconds: float = TAKEOVER_S) -> WhyReply:
        """Ask why."""
        return WhyReply.model_validate_json(await self.ask(subjects.RPC_WHY, WhyRequest(run_id=run), seconds))

    async def submit(self) -> str:
        """Open a run on the repository."""
        base = await snapshot(self.directory / "user", None, home=self.directory)
        pack = await self.client.put_blob(f"base-{base.commit}", base.pack)
        request = SubmitRequest.model_validate(
            {"request": "Write it down", "repository": str(self.directory / "user"), "base_name": "main", "base_commit": base.commit}
            | {"base_pack": pack, "pipeline_yaml": PIPELINE, "baseline": False, "budget_nano_usd": 10**9, "warn_nano_usd": 10**9}
            | {"delivery": "client", "request_id": "one"}
        )
        reply = SubmitReply.model_validate_json(await self.ask(subjects.RPC_INTENT, request, 30.0))
        assert reply.run_id is not None, reply
        return reply.run_id

    async def until(self, run: str, condition: Callable[[RunState], bool], what: str, seconds: float = 30.0) -> RunState:
        """Wait until the log says so."""
        until = time.monotonic() + seconds
        while True:
            events = await self.client.read(run)
            if events and condition(state := fold(events)):
                return state
            said = [self.said(name)[-2000:] for name in self.processes]
            assert time.monotonic() < until, f"waited {seconds:.0f} s until {what}: {[event.type for event in events]}, {said}"
            await asyncio.sleep(0.05)


@asynccontextmanager
async def a_fleet(directory: Path) -> AsyncIterator[Fleet]:
    repository = directory / "user"
    repository.mkdir()
    run_git(repository, "init", "--quiet", "--initial-branch=main")
    write_files(repository, {"README.md": b"# Notes\n"})
    run_git(repository, "add", "-A")
    run_git(repository, "commit", "--quiet", "-m", "base")
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker.run(directory / "nats"))
        client = await stack.enter_async_context(NatsFleetClient.connect(broker.supervisor))
        credentials = await broker.add_executor("paper")
        link = await stack.enter_async_context(NatsExecutorLink.connect(credentials))
        fleet = Fleet(directory, broker, client, Paper(link, await Mirror.open(directory / "paper.git")))
        await fleet.supervise("left")
        working = asyncio.create_task(fleet.paper.run())
        try:
            yield fleet
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            for process in fleet.processes.values():
                if process.returncode is None:
                    process.kill()
                await process.wait()


async def in_mid_line(fleet: Fleet) -> str:
    """Let the left supervisor lead, the right one stand by, and a run be in its second stage."""
    run = await fleet.submit()
    await fleet.supervise("right")
    await fleet.until(run, lambda state: any(job.current for job in state.jobs.values() if job.stage == "second"), "the second stage runs")
    return run


def landings(events: list[ev.AnyEvent]) -> list[ev.RunLanded]:
    return [event for event in events if isinstance(event, ev.RunLanded)]


async def test_the_other_supervisor_takes_over_when_the_leader_is_killed_and_the_run_lands_once(tmp_path: Path):
    """Within 10 s, on a host that has none of the run's commits or files: it judges what it did not begin, and lands it."""
    async with a_fleet(tmp_path) as fleet:
        run = await in_mid_line(fleet)
        fleet.signal("left", signal.SIGKILL)
        killed = time.monotonic()
        answered = await fleet.why(run)
        took_s = time.monotonic() - killed
        fleet.paper.may_end.set()
        state = await fleet.until(run, lambda state: state.state == "landed", "it lands")
        events = await fleet.client.read(run)
        landed = landings(events)
        assert landed[0].bundle is not None
        bundle = await fleet.client.get_blob(landed[0].bundle)
        await deliver(tmp_path / "user", state.branch, landed[0].commit, state.intent.base_commit, bundle)
        files = tmp_path / "right" / "runs" / run
        await _until(lambda: (files / "result.json").exists(), "the run's files are whole")

    assert took_s <= TAKEOVER_S
    assert [reason.kind for reason in answered.reasons][:1] == ["running"]
    assert fleet.paper.claimed == ["first", "second"]
    assert len(landed) == 1
    assert run_git(tmp_path / "user", "ls-tree", "--name-only", "-r", state.branch).split() == [
        "README.md",
        "docs/first.md",
        "docs/second.md",
    ]
    assert len((files / "events.jsonl").read_text().splitlines()) == len(events)
    assert (files / "report.md").exists()
    assert (files / "trace.otlp.jsonl").exists()


async def test_a_paused_leader_that_goes_on_writes_nothing_more_and_stands_by(tmp_path: Path):
    """The other one leads within 10 s; the old one finds its lease over, ends its term in the same process, and leads again later."""
    async with a_fleet(tmp_path) as fleet:
        run = await in_mid_line(fleet)
        fleet.signal("left", signal.SIGSTOP)
        paused = time.monotonic()
        await fleet.why(run)
        took_s = time.monotonic() - paused
        fleet.paper.may_end.set()
        await fleet.until(run, lambda state: state.state == "landed", "it lands", RESULT_S)
        before = await fleet.client.read(run)
        fleet.signal("left", signal.SIGCONT)
        await _until(lambda: "standing by" in fleet.said("left"), "the old leader stands by")
        after = await fleet.client.read(run)
        fleet.signal("right", signal.SIGKILL)
        reply = await fleet.why(run)

    assert took_s <= TAKEOVER_S
    assert after == before
    assert len(landings(after)) == 1
    assert (reply.state, fleet.processes["left"].returncode) != ("", 0)
    assert fleet.paper.claimed == ["first", "second"]


async def _until(condition: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:.0f} s until {what}"
        await asyncio.sleep(0.05)
