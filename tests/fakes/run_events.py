"""Event logs of whole runs, for tests of what people and programs are shown; the happy line, and the ways it does not end well."""

from dataclasses import dataclass, field

from sandbox.contract.blob import BlobRef
from sandbox.contract.ids import job_id, trace_id
from sandbox.contract.result import Finding, Outcome, Usage
from supervisor.pipeline import events as ev
from supervisor.pipeline.load import default_pipeline

RUN = "01jd8m6w2x"
BASE = "a" * 40
AT = 1_735_689_600.0
"""2025-01-01T00:00:00Z."""


def a_blob(what: str = "spec") -> BlobRef:
    """Return a reference to no particular object."""
    return BlobRef(bucket="IN", name=f"{RUN}/{what}", sha256="0" * 64, size_bytes=1)


@dataclass
class Story:
    """Writes a run's log event by event; every event is a second after the last."""

    run: str = RUN
    replay: bool = False
    budget_usd: int = 50
    request: str = "Add rate limiting to the API"
    repository: str = "/home/ada/notes"
    at: float = AT
    log: list[ev.AnyEvent] = field(default_factory=list)

    def accepted(self) -> "Story":
        """Open the run."""
        intent = ev.Intent(
            request=self.request,
            feature="add-rate-limiting",
            repository=self.repository,
            base_name="main",
            base_commit=BASE,
            base_pack=a_blob("base"),
            branch="andon/add-rate-limiting",
            mode="replay" if self.replay else "live",
            cassette=a_blob("cassette") if self.replay else None,
            budget_nano_usd=self.budget_usd * 10**9,
            warn_nano_usd=10 * 10**9,
        )
        return self._add(
            ev.RunAccepted(run_id=self.run, at=self.at, intent=intent, pipeline=default_pipeline(), trace_id=trace_id(self.run))
        )

    def dispatched(self, stage: str, round_: int = 1) -> "Story":
        """Decide on a job."""
        checks = stage in {"baseline", "red-check", "validate"}
        job = job_id(self.run, stage, round_)
        kind = "checks" if checks else "agent"
        return self._add(
            ev.JobDispatched.model_validate(
                {
                    **{"run_id": self.run, "at": self.at, "job_id": job, "stage": stage, "role": stage, "round": round_},
                    **{"kind": kind, "base_commit": BASE, "spec": a_blob()},
                }
            )
        )

    def started(self, stage: str, round_: int = 1, attempt: int = 1) -> "Story":
        """Let an executor claim it."""
        job = job_id(self.run, stage, round_)
        return self._add(
            ev.AttemptStarted(
                run_id=self.run, at=self.at, job_id=job, attempt=attempt, executor="host-1", token_sha256="0" * 64, ack_subject="ack"
            )
        )

    def paid(
        self, stage: str, nano_usd: int, tokens: int = 1_000, round_: int = 1, attempt: int = 1, model: str = "", *, unsettled: bool = False
    ) -> "Story":
        """Make one model call."""
        call = {"run_id": self.run, "job_id": job_id(self.run, stage, round_), "attempt": attempt, "call_id": f"call-{len(self.log)}"}
        self._add(ev.BudgetReserved.model_validate(call | {"at": self.at, "nano_usd": nano_usd * 2, "model": model}))
        usage = Usage(input_tokens=tokens, output_tokens=tokens // 10)
        paid = {"at": self.at, "nano_usd": nano_usd, "usage": usage, "unsettled": unsettled}
        return self._add(ev.BudgetSettled.model_validate(call | paid))

    def ended(
        self,
        stage: str,
        round_: int = 1,
        attempt: int = 1,
        outcome: Outcome = Outcome.SUBMITTED,
        reason: str = "",
        salvage: str | None = None,
    ) -> "Story":
        """End the attempt."""
        return self._add(
            ev.AttemptEnded(
                run_id=self.run,
                at=self.at,
                job_id=job_id(self.run, stage, round_),
                attempt=attempt,
                executor="host-1",
                outcome=outcome,
                reason=reason,
                container_id="c0ffee",
                result=None if outcome is Outcome.LOST else a_blob("result"),
                salvage_ref=salvage,
                started_at=self.at - 1,
                ended_at=self.at,
            )
        )

    def judged(
        self,
        stage: str,
        verdict: str = "pass",
        round_: int = 1,
        findings: tuple[Finding, ...] = (),
        tests: tuple[int, int, int] = (0, 0, 0),
        commit: str | None = "b" * 40,
    ) -> "Story":
        """Let the gate speak."""
        return self._add(
            ev.JobJudged.model_validate(
                {
                    **{"run_id": self.run, "at": self.at, "job_id": job_id(self.run, stage, round_), "verdict": verdict},
                    **{"findings": findings, "tests": ev.TestCounts(passed=tests[0], failed=tests[1], skipped=tests[2]), "commit": commit},
                }
            )
        )

    def done(self, stage: str, nano_usd: int = 0, round_: int = 1, tests: tuple[int, int, int] = (0, 0, 0)) -> "Story":
        """Take a stage from its dispatch to a pass."""
        self.dispatched(stage, round_).started(stage, round_)
        if nano_usd:
            self.paid(stage, nano_usd, round_=round_)
        return self.ended(stage, round_).judged(stage, round_=round_, tests=tests)

    def both(self, round_: int = 1) -> "Story":
        """Let implement and test run at the same time."""
        self.dispatched("implement", round_).dispatched("test").started("implement", round_).started("test")
        self.paid("implement", 300_000_000, tokens=20_000).paid("test", 200_000_000, tokens=10_000)
        return self.ended("test").judged("test").ended("implement", round_).judged("implement", round_=round_)

    def landed(self) -> "Story":
        """Land and deliver."""
        files = {"files_created": ("src/limits.py", "tests/test_limits.py"), "files_modified": ("src/app.py",)}
        branch, commit = "andon/add-rate-limiting", "d" * 40
        self._add(ev.RunLanded.model_validate({"run_id": self.run, "at": self.at, "branch": branch, "commit": commit, **files}))
        return self._add(ev.RunDelivered(run_id=self.run, at=self.at, branch=branch, commit=commit))

    def add(self, event: ev.AnyEvent) -> "Story":
        """Write any other event."""
        return self._add(event)

    def _add(self, event: ev.AnyEvent) -> "Story":
        self.log.append(event.model_copy(update={"seq": 3 * len(self.log) + 1}))  # numbers grow, not by one: the stream is shared
        self.at += 1
        return self


def until_implement(story: Story) -> Story:
    """Write what comes before implement and test."""
    return story.accepted().done("baseline").done("spec", 50_000_000).done("interface", 60_000_000)


def happy(*, replay: bool = False, run: str = RUN) -> list[ev.AnyEvent]:
    """Return the log of a run that lands."""
    story = until_implement(Story(run=run, replay=replay)).both().done("red-check")
    return story.done("validate", tests=(12, 0, 0)).done("docs", 40_000_000).landed().log


RED = Finding(check="pytest", message="test_req_001_1_hundredth_call_passes\nassert 429 == 200", path="tests/test_limits.py")


def rework() -> list[ev.AnyEvent]:
    """Return the log of a run whose validate is red once."""
    story = until_implement(Story()).both().done("red-check").dispatched("validate").started("validate").ended("validate")
    story.judged("validate", "fail", findings=(RED,), tests=(11, 1, 0)).done("implement", 100_000_000, round_=2)
    return story.done("validate", round_=2, tests=(12, 0, 0)).done("docs").landed().log


def failed() -> list[ev.AnyEvent]:
    """Return the log of a run that stops at validate."""
    story = until_implement(Story()).both().done("red-check").dispatched("validate").started("validate").ended("validate")
    story.judged("validate", "fail", findings=(RED, RED), tests=(11, 1, 0))
    end = ev.RunFailed(run_id=RUN, at=story.at, exit_code=1, stage="validate", check="pytest", reason="red after 3 reworks")
    return story.add(end).log


def parked_on_budget() -> list[ev.AnyEvent]:
    """Return the log of a run whose money is spent in implement; its siblings have ended."""
    story = until_implement(Story(budget_usd=1)).dispatched("implement").dispatched("test").started("implement").started("test")
    story.paid("implement", 700_000_000).ended("test").judged("test")
    story.ended(
        "implement", outcome=Outcome.BUDGET, reason="the call would pass the budget", salvage=f"refs/andon/salvage/{RUN}/implement/1/1"
    )
    return story.add(ev.RunParked(run_id=RUN, at=story.at, reason="the budget of $1.00 is exhausted", exit_code=4)).log


def conflict() -> list[ev.AnyEvent]:
    """Return the log of a run that won but could not be delivered: the branch moved."""
    log = happy()[:-1]
    end = ev.DeliveryFailed(
        run_id=RUN, at=AT + 60, branch="andon/add-rate-limiting", exit_code=6, reason="the branch moved to eeeeeeeeeeee"
    )
    return [*log, end.model_copy(update={"seq": log[-1].seq + 1})]
