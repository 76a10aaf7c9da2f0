"""What holds of every run, whatever happens in whatever order.

One state machine drives `decide` with everything an orchestrator may record.
"""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandbox.contract.result import Outcome
from supervisor.pipeline import events as ev
from supervisor.pipeline.commands import Deliver, Join, Judge, Land, Publish, Republish
from supervisor.pipeline.fate import is_poison
from supervisor.pipeline.load import load_pipeline
from supervisor.pipeline.machine import closing, fold, is_due, is_open, may_claim, pending
from supervisor.pipeline.run import FINAL, JobState
from tests.fakes.line_driver import LineDriver, sha

DIAMOND = """
pipeline:
  rework_max: 2
  test_rework_max: 1
  retries_max: 1
  stages:
    - {name: interface}
    - {name: implement, depends_on: [interface]}
    - {name: polish, agent: implement, depends_on: [implement]}
    - {name: test, depends_on: [interface]}
    - {name: docs, depends_on: [implement]}
    - {name: validate, type: builtin, depends_on: [polish, test]}
    - {name: lint, type: builtin, command: ruff, depends_on: [implement]}
"""
PIPELINES = [None, load_pipeline(DIAMOND, "diamond")]
AFTER_LANDING = {"run_delivered", "delivery_failed", "run_resumed"}


class RunMachine(RuleBasedStateMachine):
    """Random histories of one run."""

    @initialize(pipeline=st.sampled_from(PIPELINES), parallel=st.booleans(), baseline=st.booleans(), given=st.booleans())
    def begin(self, pipeline: object, parallel: bool, baseline: bool, given: bool) -> None:
        spec = {"given_spec": "x", "spec_commit": "c" * 40} if given else {}
        self.line = LineDriver(pipeline, parallel=parallel, baseline=baseline, **spec)  # type: ignore[arg-type]

    def jobs(self, *standings: str) -> list[JobState]:
        return [job for job in self.line.run.jobs.values() if not job.is_done and job.standing in standings]

    @precondition(lambda self: self.line.dispatches)
    @rule(data=st.data())
    def dispatch(self, data: st.DataObject) -> None:
        self.line.dispatch(data.draw(st.sampled_from(sorted(self.line.dispatches))))

    @precondition(lambda self: any(may_claim(self.line.run, job) for job in self.line.run.jobs.values()))
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        free = [job for job in self.line.run.jobs.values() if may_claim(self.line.run, job)]
        self.line.start(data.draw(st.sampled_from(free)), data.draw(st.sampled_from(["host-1", "host-1", "host-2", "host-3"])))

    @precondition(lambda self: self.jobs("claimed"))
    @rule(data=st.data(), outcome=st.sampled_from([Outcome.SUBMITTED] * 12 + list(Outcome)), provider=st.integers(0, 20))
    def end(self, data: st.DataObject, outcome: Outcome, provider: int) -> None:
        job = data.draw(st.sampled_from(self.jobs("claimed")))
        assert job.current is not None
        cause = "provider" if provider == 0 and outcome is Outcome.LOST else ""
        self.line.end(job, outcome, cause, executor=job.current.executor)  # type: ignore[arg-type]

    @precondition(lambda self: self.jobs("claimed"))
    @rule(data=st.data(), amount=st.integers(0, 30_000), settle=st.booleans())
    def spend(self, data: st.DataObject, amount: int, settle: bool) -> None:
        job = data.draw(st.sampled_from(self.jobs("claimed")))
        self.line.calls += 1
        values = {"job_id": job.job_id, "attempt": len(job.attempts), "call_id": str(self.line.calls), "nano_usd": amount}
        self.line.record(ev.BudgetReserved.model_validate({"run_id": self.line.run.run_id, "at": 0} | values))
        if settle:
            self.line.record(ev.BudgetSettled.model_validate({"run_id": self.line.run.run_id, "at": 0} | values))

    @precondition(lambda self: self.line.named(Judge))
    @rule(data=st.data(), verdict=st.sampled_from(["pass", "pass", "pass", "fail", "hold"]), empty=st.booleans())
    def judge(self, data: st.DataObject, verdict: ev.Verdict, empty: bool) -> None:
        command = data.draw(st.sampled_from(self.line.named(Judge)))
        assert isinstance(command, Judge)
        job = self.line.run.jobs[command.job_id]
        values = {"commit": None} if empty and job.role in {"docs", "interface"} else {}
        self.line.judge(job, verdict, **values)

    @precondition(lambda self: self.line.named(Join))
    @rule()
    def join(self) -> None:
        self.line.join()

    @precondition(lambda self: self.jobs("queued"))
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        """A copy nobody took, or of an executor that is gone, goes out anew."""
        job = data.draw(st.sampled_from(self.jobs("queued")))
        if may_claim(self.line.run, job):
            self.line.record(ev.JobRepublished(run_id=self.line.run.run_id, at=0, job_id=job.job_id, reason="taken back"))

    @precondition(lambda self: self.line.named(Republish))
    @rule()
    def republish(self) -> None:
        command = self.line.named(Republish)[0]
        assert isinstance(command, Republish)
        self.line.record(ev.JobRepublished(run_id=self.line.run.run_id, at=0, job_id=command.job_id, reason=""))

    @precondition(lambda self: self.line.named(Land))
    @rule()
    def land(self) -> None:
        self.line.record(ev.RunLanded(run_id=self.line.run.run_id, at=0, branch=self.line.run.branch, commit=sha("landed")))

    @precondition(lambda self: Deliver() in self.line.wanted)
    @rule(taken=st.booleans())
    def deliver(self, taken: bool) -> None:
        values = {"run_id": self.line.run.run_id, "at": 0, "branch": self.line.run.branch}
        if taken:
            self.line.record(ev.DeliveryFailed.model_validate(values | {"exit_code": 6, "reason": "taken"}))
        else:
            self.line.record(ev.RunDelivered.model_validate(values | {"commit": sha("landed")}))

    @precondition(lambda self: self.line.run.state not in FINAL)
    @rule(how=st.sampled_from(["cancel", "park", "park", "park"]), rare=st.integers(0, 4))
    def stop(self, how: str, rare: int) -> None:
        if rare == 0:
            self.line.ask(ev.StopRequested, how=how)

    @precondition(lambda self: self.line.run.state not in FINAL and closing(self.line.run) is None)
    @rule(how=st.sampled_from(["fail", "park"]), rare=st.integers(0, 9))
    def fail_a_step(self, how: str, rare: int) -> None:
        if rare == 0 and self.line.run.state in {"queued", "running"}:
            values = {"run_id": self.line.run.run_id, "at": 0, "how": how, "exit_code": 5, "reason": "disk"}
            self.line.record(ev.StepFailed.model_validate(values))

    @precondition(lambda self: self.line.run.state in {"parked", "waiting"} or self.line.run.delivery_failed)
    @rule()
    def resume(self) -> None:
        self.line.ask(ev.RunResumed)

    @precondition(lambda self: self.line.run.state in FINAL)
    @rule()
    def rest(self) -> None:
        """A finished run stays finished."""

    @invariant()
    def one_job_of_a_stage_at_a_time(self) -> None:
        open_stages = [job.stage for job in self.line.run.jobs.values() if not job.is_done]
        wanted = list(self.line.dispatches)
        if self.line.run.state not in FINAL:
            assert len(open_stages + wanted) == len(set(open_stages + wanted))
        if not self.line.run.intent.parallel:
            assert len(open_stages + wanted) <= 1

    @invariant()
    def rework_and_retries_are_bounded(self) -> None:
        run = self.line.run
        for job in run.jobs.values():
            # A stage downstream of a rework runs again, so its rounds are bounded by all reworks together.
            assert job.round <= 1 + run.pipeline.rework_max * 2 + run.pipeline.test_rework_max
            assert job.faults <= run.pipeline.retries_max + 1
        validates = {job.stage for job in run.jobs.values() if job.role == "validate"}
        if len(validates) <= 1 and run.pipeline.retries_max == 3:
            assert sum(job.stage == "implement" for job in run.jobs.values()) <= 1 + run.pipeline.rework_max
            assert sum(job.stage == "test" for job in run.jobs.values()) <= 1 + run.pipeline.test_rework_max

    @invariant()
    def a_dead_letter_is_said_once_and_parks_the_run_until_a_person_speaks(self) -> None:
        run = self.line.run
        for job in run.jobs.values():
            poison = is_poison(job)
            assert not (job.dead_lettered and not poison)
            if poison and job.ended is not None and not job.is_done:
                assert not may_claim(run, job)
                if job.dead_lettered:
                    assert closing(run) is not None or run.state in FINAL
        letters = sum(event.type == "job_dead_lettered" for event in self.line.log)
        assert letters <= 1 + sum(event.type in {"run_resumed", "job_dispatched"} for event in self.line.log)

    @invariant()
    def nothing_follows_an_end(self) -> None:
        types = [event.type for event in self.line.log]
        for at, kind in enumerate(types):
            if kind in {"run_failed", "run_cancelled"}:
                assert at == len(types) - 1
            if kind == "run_landed":
                assert set(types[at + 1 :]) <= AFTER_LANDING
        assert types.count("run_landed") <= 1
        assert types.count("run_delivered") <= 1

    @invariant()
    def an_open_run_wants_or_waits_for_something(self) -> None:
        if is_open(self.line.run):
            assert self.line.waits_for
        elif self.line.run.state not in {"parked", "waiting"}:
            assert pending(self.line.run) == []

    @invariant()
    def what_is_wanted_follows_from_the_log_alone(self) -> None:
        """A supervisor that crashes here and folds the log again wants the same."""
        again = fold(ev.decode(ev.encode(event), event.seq) for event in self.line.log)
        assert again == self.line.run
        wanted = pending(again)
        assert all(command in wanted for command in self.line.wanted)

    @invariant()
    def a_publication_is_due_when_it_is_pending(self) -> None:
        wanted = pending(self.line.run)
        for job in self.line.run.jobs.values():
            for publication in (job.publications - 1, job.publications):
                command = Publish(job_id=job.job_id, publication=publication)
                assert is_due(self.line.run, command) is (command in wanted)

    @invariant()
    def the_money_adds_up(self) -> None:
        run = self.line.run
        assert run.budget.settled_nano_usd == sum(one.cost_nano_usd for job in run.jobs.values() for one in job.attempts)
        if run.state in FINAL:
            assert run.budget.held_nano_usd == 0


RunMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
TestRunMachine = RunMachine.TestCase
