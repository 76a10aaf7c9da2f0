"""Events to state where a log can repeat itself or be wrong; that equal logs give equal states is in `test_machine_properties`."""

import pytest

from sandbox.contract.result import Outcome
from supervisor.pipeline import events as ev
from supervisor.pipeline.machine import apply, fold
from tests.fakes.line_driver import LineDriver, accepted


def test_a_log_begins_with_its_acceptance():
    """Nothing else opens a run, and nothing opens it twice."""
    parked = ev.RunParked(run_id=accepted().run_id, at=0, reason="", exit_code=5)

    with pytest.raises(ValueError, match="does not follow"):
        fold([parked])
    with pytest.raises(ValueError, match="accepted twice"):
        fold([accepted(), accepted()])
    with pytest.raises(ValueError, match="at least one"):
        fold([])


def test_an_event_of_another_run_or_an_unknown_job_is_a_corrupt_log():
    """It is refused rather than guessed at."""
    run = apply(None, accepted())

    with pytest.raises(ValueError, match="does not follow"):
        apply(run, ev.RunParked(run_id="0000000000", at=0, reason="", exit_code=5))
    with pytest.raises(ValueError, match="has no job"):
        apply(run, ev.JobRepublished(run_id=run.run_id, at=0, job_id=f"{run.run_id}-spec-1", reason=""))


def test_a_second_end_of_an_attempt_changes_nothing():
    """The first one counts."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    line.end(job)
    before = line.run.jobs[job.job_id]
    line.end(job, Outcome.LOST)

    assert line.run.jobs[job.job_id] == before


def test_the_end_of_an_older_attempt_changes_nothing():
    """A zombie's end does not end the attempt that came after it."""
    line = LineDriver()
    job = line.dispatch("spec")
    line.start(job)
    line.end(job, Outcome.LOST)
    line.start(job)
    late = {"job_id": job.job_id, "attempt": 1, "executor": "h", "outcome": "submitted", "started_at": 0, "ended_at": 1}
    line.record(ev.AttemptEnded.model_validate({"run_id": line.run.run_id, "at": 0} | late))

    current = line.run.jobs[job.job_id].current
    assert current is not None
    assert current.attempt == 2


def test_events_survive_their_encoding():
    """All that a line writes comes back equal, numbered by the log."""
    line = LineDriver(baseline=True)
    line.do("baseline")
    line.to_validate()
    line.do("validate", "fail")
    line.ask(ev.StopRequested, how="park")
    line.ask(ev.RunResumed)

    assert [ev.decode(ev.encode(event), event.seq) for event in line.log] == line.log
