"""Why an attempt ends: every cause gives its outcome, and the container is dead before anything is read."""

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.job import Check, JobSpec, Limits, Submission
from sandbox.contract.result import Outcome
from sandbox.executor.ending import Cancel, quiet_s_max, watch
from sandbox.gateway.tally import Failure
from sandbox.runtime.container_spec import Exit
from tests.fakes.wire_data import a_job


@dataclass
class Box:
    """A container that ends when it is told to, or when it is killed."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    how: Exit = field(default_factory=lambda: Exit(code=0, oom_killed=False))
    killed: int = 0

    async def wait(self) -> Exit:
        await self.ended.wait()
        return self.how

    async def kill(self) -> None:
        self.killed += 1
        if not self.ended.is_set():
            self.how = Exit(code=137, oom_killed=False)
            self.ended.set()

    def ends(self, code: int, *, oom_killed: bool = False) -> None:
        self.how = Exit(code=code, oom_killed=oom_killed)
        self.ended.set()


@dataclass
class Gateway:
    """What a session knows."""

    submission: Submission | None = None
    failure: Failure | None = None
    submitted: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    is_limited: bool = False
    limited_s: float = 0.0

    async def wait_submitted(self) -> Submission:
        await self.submitted.wait()
        assert self.submission is not None
        return self.submission

    async def wait_idle(self, limit_s: float) -> None:
        assert limit_s > 0
        await self.idle.wait()

    def submits(self, submission: Submission) -> None:
        self.submission = submission
        self.submitted.set()


@dataclass
class Held:
    @property
    def lost(self) -> asyncio.Event:
        return self.event

    event: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Scene:
    box: Box = field(default_factory=Box)
    gateway: Gateway = field(default_factory=Gateway)
    lease: Held = field(default_factory=Held)
    cancel: Cancel = field(default_factory=Cancel)

    async def outcome(self, wall_s: float = 5.0) -> tuple[Outcome, str, str]:
        ending = await watch(a_job(), self.box, self.gateway, self.lease, self.cancel, wall_s)
        assert self.box.ended.is_set(), "nothing is read while the container lives"
        return ending.outcome, ending.cause, ending.reason


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("done", Outcome.SUBMITTED),
        ("checked", Outcome.SUBMITTED),
        ("blocked", Outcome.BLOCKED),
        ("no_submit", Outcome.NO_SUBMIT),
        ("refused", Outcome.REFUSED),
        ("step_limit", Outcome.STEP_LIMIT),
        ("budget", Outcome.BUDGET),
        ("error", Outcome.NO_SUBMIT),
    ],
)
async def test_a_submission_ends_the_attempt_with_its_outcome(status: str, outcome: Outcome):
    """What the program says is mapped, never trusted beyond that."""
    scene = Scene()
    scene.gateway.submits(Submission.model_validate({"status": status, "summary": "why"}))
    scene.box.ends(0)

    assert (await scene.outcome())[0] is outcome


async def test_out_of_memory_and_a_kill_from_outside_are_told_apart():
    """The first is the agent's outcome, the second infrastructure that is retried."""
    oom, killed = Scene(), Scene()
    oom.box.ends(137, oom_killed=True)
    killed.box.ends(137)

    assert (await oom.outcome())[0] is Outcome.OOM
    assert (await killed.outcome())[0] is Outcome.KILLED


async def test_a_program_that_ends_without_a_word_has_not_submitted():
    """An agent that kills its own loop gets no retry for it (ABUSE P01)."""
    scene = Scene()
    scene.box.ends(1)

    outcome, _, reason = await scene.outcome()

    assert outcome is Outcome.NO_SUBMIT
    assert "exit code 1" in reason


async def test_the_wall_clock_kills_and_says_which_limit():
    """The deadline is the host's, whatever the sandbox does."""
    scene = Scene()

    outcome, _, reason = await scene.outcome(wall_s=0.05)

    assert outcome is Outcome.TIMEOUT
    assert f"{a_job().limits.wall_s} s" in reason
    assert scene.box.killed == 1


async def test_a_wait_for_the_providers_rate_is_not_charged_to_the_wall_clock():
    """0.05 s of work are allowed, and 0.4 s are excused; then the clock has run out."""
    scene = Scene()
    scene.gateway.limited_s = 0.4
    watching = asyncio.ensure_future(scene.outcome(wall_s=0.05))
    done, _ = await asyncio.wait({watching}, timeout=0.2)
    assert not done

    assert (await watching)[0] is Outcome.TIMEOUT


async def test_while_the_rate_is_waited_for_the_clock_is_looked_at_now_and_then():
    """What is left of the wall clock stays the same then, however little: a loop that waits just that long would spin."""
    looks: list[float] = []

    class Waiting(Gateway):
        @property
        def limited_s(self) -> float:
            looks.append(time.monotonic())
            return min(looks[-1] - looks[0], 1.5)

        @limited_s.setter
        def limited_s(self, seconds: float) -> None: ...

    scene = Scene(gateway=Waiting(is_limited=True))

    assert (await scene.outcome(wall_s=0.001))[0] is Outcome.TIMEOUT
    assert 3 <= len(looks) <= 4


async def test_an_attempt_that_submits_after_a_wait_has_submitted():
    """The companion: excused is not ended."""
    scene = Scene()
    scene.gateway.limited_s = 60.0
    watching = asyncio.ensure_future(scene.outcome(wall_s=0.01))
    await asyncio.wait({watching}, timeout=0.1)
    scene.gateway.submits(Submission(status="done"))
    scene.box.ends(0)

    assert (await watching)[0] is Outcome.SUBMITTED


async def test_an_attempt_without_progress_is_killed_with_a_reason_of_its_own():
    """The wall clock has not run out; the silence is what ends it."""
    scene = Scene()
    scene.gateway.idle.set()

    outcome, _, reason = await scene.outcome(wall_s=60)

    assert outcome is Outcome.TIMEOUT
    assert "no progress for 900 s" in reason
    assert scene.box.killed == 1


async def test_silence_after_the_end_is_not_the_reason():
    """A program that ended by itself ended by itself."""
    scene = Scene()
    scene.gateway.idle.set()
    scene.box.ends(1)

    assert (await scene.outcome())[0] is Outcome.NO_SUBMIT


@pytest.mark.parametrize(("no_progress_s", "tool_s", "quiet_s"), [(900, 300, 900), (900, 870, 900), (900, 871, 901), (10, 300, 330)])
def test_silence_is_never_shorter_than_what_one_tool_may_take(no_progress_s: int, tool_s: int, quiet_s: int):
    """A check or a tool that is within its own deadline says nothing, and that is no reason to kill it."""
    limits = Limits(no_progress_s=no_progress_s)
    agent = AgentSpec(name="a", model="m", system="s", prompt="p", tool_timeout_s=tool_s)

    assert quiet_s_max(a_job(limits=limits, kind="agent", agent=agent)) == quiet_s
    assert quiet_s_max(a_job(limits=limits, checks=(Check(name="c", argv=("x",), timeout_s=tool_s),))) == quiet_s


async def test_a_cancelled_attempt_is_killed_with_a_cause_that_forbids_a_retry():
    """`cancelled` tells the supervisor that we did it."""
    scene = Scene()
    scene.cancel.ask("a sibling failed")
    scene.cancel.ask("too late")

    assert await scene.outcome() == (Outcome.KILLED, "cancelled", "cancelled: a sibling failed")


async def test_a_lost_lease_ends_the_attempt_as_lost():
    """Somebody else may have the job."""
    scene = Scene()
    scene.lease.lost.set()

    assert (await scene.outcome())[0] is Outcome.LOST


@pytest.mark.parametrize(
    ("kind", "outcome", "cause"),
    [
        ("budget", Outcome.BUDGET, ""),
        ("auth", Outcome.REFUSED, "auth"),
        ("provider", Outcome.LOST, "provider"),
        ("stale_cassette", Outcome.REFUSED, "stale_cassette"),
        ("no_record", Outcome.REFUSED, "no_record"),
    ],
)
async def test_what_the_gateway_could_not_do_outranks_what_the_program_says(kind: str, outcome: Outcome, cause: str):
    """The program only saw an error; the gateway knows which."""
    scene = Scene()
    scene.gateway.failure = Failure.model_validate({"kind": kind, "message": "m"})
    scene.gateway.submits(Submission(status="error", summary="calls failed"))
    scene.box.ends(0)

    assert (await scene.outcome())[:2] == (outcome, cause)


def test_the_limits_of_a_job_are_checked_at_their_edges():
    """A limit of zero is no limit and is refused; the smallest one is taken."""
    assert Limits(wall_s=1).wall_s == 1
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Limits(wall_s=0)


def test_a_check_without_a_report_has_no_path_and_others_a_default():
    """Reports leave by /out under the check's name."""
    assert Check(name="lint", argv=("x",)).report_path is None
    assert Check(name="tests", argv=("x",), report="junit").report_path == "tests.xml"
    assert isinstance(a_job(), JobSpec)
