"""Plays the orchestrator over the pure machine: appends what it is told, keeps the commands, invents commits. No input or output."""

import hashlib

from sandbox.contract.blob import BlobRef
from sandbox.contract.ids import job_id, run_id, trace_id
from sandbox.contract.result import Cause, Finding, Outcome
from supervisor.pipeline import events as ev
from supervisor.pipeline.commands import Append, Cancel, Command, Deliver, Dispatch, Join, Judge, Land, Publish, Republish
from supervisor.pipeline.definition import Pipeline
from supervisor.pipeline.load import default_pipeline
from supervisor.pipeline.machine import apply, decide, pending
from supervisor.pipeline.run import JobState, RunState

RUN = run_id(1_750_000_000_000, b"\x01\x02")
BASE = "b" * 40


def sha(text: str) -> str:
    """Return a commit id made of `text`."""
    return hashlib.sha1(text.encode()).hexdigest()


def a_blob(name: str = "x", bucket: str = "IN") -> BlobRef:
    """Return a reference to an object that need not exist."""
    return BlobRef.model_validate({"bucket": bucket, "name": name, "sha256": "0" * 64, "size_bytes": 1})


def an_intent(**changes: object) -> ev.Intent:
    """Return a valid intent; the baseline is off unless asked for."""
    values: dict[str, object] = {
        "request": "Add rate limiting",
        "feature": "add-rate-limiting",
        "repository": "/repo",
        "base_name": "main",
        "base_commit": BASE,
        "base_pack": a_blob("pack"),
        "branch": "andon/add-rate-limiting",
        "baseline": False,
        "budget_nano_usd": 50_000,
        "warn_nano_usd": 10_000,
    }
    return ev.Intent.model_validate(values | changes)


def accepted(pipeline: Pipeline | None = None, **intent: object) -> ev.RunAccepted:
    """Return the event that opens a run."""
    return ev.RunAccepted(run_id=RUN, at=1.0, intent=an_intent(**intent), pipeline=pipeline or default_pipeline(), trace_id=trace_id(RUN))


class LineDriver:
    """One run, its log and what the machine wants now."""

    def __init__(self, pipeline: Pipeline | None = None, **intent: object) -> None:
        self.log: list[ev.AnyEvent] = []
        self.run: RunState = apply(None, accepted(pipeline, **intent))
        self.wanted: list[Command] = []
        self.published: list[str] = []
        self.calls = 0
        self.clock = 1.0
        self._take(accepted(pipeline, **intent))

    def record(self, event: ev.AnyEvent) -> None:
        """Append an event and everything the machine appends because of it."""
        for _ in range(1000):
            self._take(event)
            follow = next((command for command in self.wanted if isinstance(command, Append)), None)
            if follow is None:
                return
            event = follow.event.model_copy(update={"at": self.clock})
        raise AssertionError("the machine appends without end")

    def _take(self, event: ev.AnyEvent) -> None:
        self.clock += 1
        stored = event.model_copy(update={"seq": len(self.log) + 1, "at": self.clock})
        self.run = apply(self.run if self.log else None, stored)
        self.log.append(stored)
        self.wanted = decide(self.run, stored)
        self.published += [command.job_id for command in self.wanted if isinstance(command, Publish)]

    def named(self, kind: type[Command]) -> list[Command]:
        """Return the wanted commands of one kind."""
        return [command for command in self.wanted if isinstance(command, kind)]

    @property
    def dispatches(self) -> dict[str, Dispatch]:
        """Return the wanted dispatches by stage."""
        return {command.stage: command for command in self.wanted if isinstance(command, Dispatch)}

    def commit(self, stage: str) -> str:
        """Return the commit of a stage's latest job."""
        job = self.run.latest(stage)
        assert job is not None
        assert job.commit is not None
        return job.commit

    def dispatch(self, stage: str) -> JobState:
        """Do the wanted dispatch of a stage."""
        command = self.dispatches[stage]
        name = job_id(self.run.run_id, stage, command.round)
        values = command.model_dump(exclude={"feedback_from"})
        self.record(ev.JobDispatched(run_id=self.run.run_id, at=0, job_id=name, spec=a_blob(f"spec-{name}"), **values))
        return self.run.jobs[name]

    def start(self, job: JobState, executor: str = "host-1") -> None:
        """Grant the job's next attempt."""
        attempt = len(self.run.jobs[job.job_id].attempts) + 1
        values = {"attempt": attempt, "executor": executor, "token_sha256": "0" * 64, "ack_subject": f"ack.{job.job_id}.{attempt}"}
        self.record(ev.AttemptStarted(run_id=self.run.run_id, at=0, job_id=job.job_id, **values))

    def end(
        self, job: JobState, outcome: Outcome = Outcome.SUBMITTED, cause: Cause = "", reason: str = "", executor: str = "host-1"
    ) -> None:
        """End the job's current attempt."""
        attempt = len(self.run.jobs[job.job_id].attempts)
        values = {"attempt": attempt, "executor": executor, "outcome": outcome, "cause": cause, "reason": reason}
        self.record(ev.AttemptEnded(run_id=self.run.run_id, at=0, job_id=job.job_id, started_at=0, ended_at=1, **values))

    def judge(self, job: JobState, verdict: ev.Verdict = "pass", **values: object) -> None:
        """Let a gate speak: an agent that passes leaves a commit of its own."""
        if verdict == "pass" and job.kind == "agent":
            values.setdefault("commit", sha(job.job_id))
        if verdict == "fail":
            values.setdefault("findings", (Finding(check="pytest", message=f"{job.stage} is wrong"),))
        event = {"run_id": self.run.run_id, "at": 0, "job_id": job.job_id, "verdict": verdict}
        self.record(ev.JobJudged.model_validate(event | values))

    def do(self, stage: str, verdict: ev.Verdict = "pass", **values: object) -> JobState:
        """Take a stage from its dispatch to its verdict."""
        job = self.dispatch(stage)
        self.start(job)
        self.end(job)
        assert Judge(job_id=job.job_id) in self.wanted, self.wanted
        self.judge(job, verdict, **values)
        return self.run.jobs[job.job_id]

    def join(self) -> str:
        """Do the wanted join."""
        command = next(command for command in self.wanted if isinstance(command, Join))
        commit = sha("join" + "".join(command.commits))
        values = {"stage": command.stage, "round": command.round, "commit": commit, "parents": command.commits}
        self.record(ev.Joined(run_id=self.run.run_id, at=0, **values))
        return commit

    def to_validate(self) -> None:
        """Bring the default line to its first join, done."""
        self.do("spec")
        self.do("interface")
        self.do("implement")
        self.do("test")
        self.do("red-check")
        self.join()

    def land(self) -> None:
        """Land and deliver."""
        assert any(isinstance(command, Land) for command in self.wanted), self.wanted
        branch = self.run.branch
        self.record(ev.RunLanded(run_id=self.run.run_id, at=0, branch=branch, commit=sha("landed")))
        assert self.wanted == [Deliver()]
        self.record(ev.RunDelivered(run_id=self.run.run_id, at=0, branch=branch, commit=sha("landed")))

    def ask(self, event: type[ev.StopRequested] | type[ev.RunResumed], **values: object) -> None:
        """Record a person's word."""
        self.record(event.model_validate({"run_id": self.run.run_id, "at": 0} | values))

    @property
    def waits_for(self) -> list[str]:
        """Return what the run waits for outside the machine: executors, and commands not done yet."""
        out = [job.job_id for job in self.run.jobs.values() if not job.is_done and job.standing in {"queued", "claimed"}]
        return out + [command.model_dump_json() for command in pending(self.run)]


__all__ = ["BASE", "RUN", "Cancel", "LineDriver", "Republish", "a_blob", "accepted", "an_intent", "sha"]
