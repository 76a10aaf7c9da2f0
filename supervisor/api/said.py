"""A run's events as log lines of the supervisor: ids and figures, never a person's or an agent's words; not `andon logs` (`lines`)."""

from sandbox.contract.result import Outcome
from sandbox.log import Log, Value, about, of_attempt, of_job, of_run
from supervisor.pipeline.events import (
    AnyEvent,
    AttemptEnded,
    AttemptStarted,
    BudgetReserved,
    BudgetSettled,
    BudgetWarned,
    DeliveryFailed,
    JobDeadLettered,
    JobDispatched,
    JobJudged,
    JobRepublished,
    Joined,
    RunAccepted,
    RunCancelled,
    RunDelivered,
    RunFailed,
    RunLanded,
    RunParked,
    RunResumed,
    StepFailed,
    StopRequested,
)
from supervisor.pipeline.run import RunState

log = Log(__name__)


def say(run: RunState, event: AnyEvent) -> None:
    """Say one event, `run` being the state after it; what each model call holds and costs only at level debug."""
    name, fields = name_of(event.type), _fields_of(run, event)
    with about(**_whose(event, f"{run.sampled:02x}")):
        match event:
            case BudgetReserved() | BudgetSettled():
                log.debug(name, "", fields)
            case AttemptEnded() if event.outcome is not Outcome.SUBMITTED:
                log.warning(name, "", fields)
            case BudgetWarned() | DeliveryFailed() | JobDeadLettered() | JobRepublished() | RunFailed() | RunParked() | StepFailed():
                log.warning(name, "", fields)
            case _:
                log.info(name, "", fields)


def name_of(type_: str) -> str:
    """Return the name of the line about an event of a type, `subject.happening`."""
    return type_.replace("_", ".", 1) if "_" in type_ else f"work.{type_}"


def _whose(event: AnyEvent, flags: str) -> dict[str, Value]:
    match event:
        case AttemptStarted() | AttemptEnded() | BudgetReserved() | BudgetSettled():
            return of_attempt(event.job_id, event.attempt, flags, is_executors=False)
        case JobDispatched() | JobRepublished() | JobDeadLettered() | JobJudged():
            return of_job(event.job_id, flags)
        case _:
            return of_run(event.run_id, flags)


def _fields_of(run: RunState, event: AnyEvent) -> dict[str, Value]:
    match event:
        case RunAccepted():
            intent = event.intent
            return {
                "feature": intent.feature,
                "mode": intent.mode,
                "base_commit": intent.base_commit,
                "budget_nano_usd": intent.budget_nano_usd,
            }
        case JobDispatched():
            return {"kind": event.kind}
        case AttemptStarted():
            return {"executor": event.executor}
        case AttemptEnded():
            return _of_end(event)
        case BudgetReserved() | BudgetSettled():
            return {"call_id": event.call_id, "nano_usd": event.nano_usd}
        case BudgetWarned():
            return {"spent_nano_usd": event.spent_nano_usd}
        case JobJudged():
            return {"verdict": event.verdict, "findings": len(event.findings), "checks": _checks(event), "commit": event.commit}
        case Joined():
            return {"stage": event.stage, "round": event.round, "commit": event.commit}
        case RunLanded():
            return {"commit": event.commit, **_of_run(run, event)}
        case RunDelivered():
            return {"commit": event.commit}
        case StepFailed():
            return {"stage": event.stage, "error.type": event.check or event.how, "exit_code": event.exit_code}
        case RunFailed():
            return {"stage": event.stage, "error.type": event.check or "run_failed", "exit_code": event.exit_code, **_of_run(run, event)}
        case DeliveryFailed() | RunParked():
            return {"error.type": event.type, "exit_code": event.exit_code}
        case RunCancelled():
            return {"exit_code": event.exit_code, **_of_run(run, event)}
        case StopRequested():
            return {"how": event.how}
        case JobRepublished() | JobDeadLettered() | RunResumed():
            return {}


def _of_end(event: AttemptEnded) -> dict[str, Value]:
    fields: dict[str, Value] = {
        "executor": event.executor,
        "outcome": event.outcome.value,
        "container_id": event.container_id[:12],
        "duration_ms": round((event.ended_at - event.started_at) * 1000),
    }
    if event.outcome is not Outcome.SUBMITTED:
        fields["error.type"] = event.cause or event.outcome.value
        # With a submission the reason is in the agent's own words.
        fields["error.message"] = event.reason if event.submission is None else ""
    return fields


def _of_run(run: RunState, event: AnyEvent) -> dict[str, Value]:
    return {"duration_ms": round((event.at - run.accepted_at) * 1000), "cost_nano_usd": run.budget.settled_nano_usd}


def _checks(event: JobJudged) -> str:
    """Return the names of the checks that found something, each once."""
    return ",".join(dict.fromkeys(finding.check for finding in event.findings))
