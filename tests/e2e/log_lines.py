"""What the processes of a stack logged of one run, and what is wrong with it (docs/logs.md)."""

import json
from typing import Any

from sandbox.contract.ids import attempt_path, process_span_id, span_id, trace_id
from tests.e2e.line import Line

HEAD = {"ts", "level", "event", "msg", "logger", "service.name"}
OF_THE_RUN = {"run.accepted", "run.landed", "run.delivered"}
OF_A_JOB = {"job.dispatched", "job.received", "job.judged"}
OF_AN_ATTEMPT = {
    "andon-sup": {"attempt.started", "attempt.ended"},
    "andon-exec": {"attempt.started", "container.started", "container.exited", "attempt.ended", "result.delivered"},
}


def text_of(line: Line) -> str:
    """Return everything the stack's processes wrote to stderr, and to stdout, which is the same file."""
    return (line.state / "stack.log").read_text()


def lines_of(line: Line, run_id: str) -> list[dict[str, Any]]:
    """Return a run's lines; every line of the file has to be JSON with the head of a line."""
    lines: list[dict[str, Any]] = [json.loads(each) for each in text_of(line).splitlines()]
    assert [each for each in lines if not set(each) >= HEAD] == []
    return [each for each in lines if each.get("run_id") == run_id]


def log_faults(line: Line, result: dict[str, Any]) -> list[str]:
    """Return what is wrong with the lines about a run that landed, given its result object."""
    run_id = result["run_id"]
    lines = lines_of(line, run_id)
    faults = [f"of another trace: {each}" for each in lines if each["trace_id"] != trace_id(run_id)]
    faults += [f"missing: {name}" for name in OF_THE_RUN - {each["event"] for each in lines}]
    for job in result["stages"]:
        of_job = [each for each in lines if (each.get("stage"), each.get("round")) == (job["stage"], job["round"])]
        faults += [f"missing of {job['job']}: {name}" for name in OF_A_JOB - {each["event"] for each in of_job}]
        for attempt in job["attempts"]:
            mine = [each for each in of_job if each.get("attempt") == attempt["attempt"]]
            faults += _of_attempt(attempt_path(run_id, job["stage"], job["round"], attempt["attempt"]), attempt["container_id"][:12], mine)
    return faults


def _of_attempt(path: str, container_id: str, lines: list[dict[str, Any]]) -> list[str]:
    faults: list[str] = []
    for service, names in OF_AN_ATTEMPT.items():
        said = [each for each in lines if each["service.name"] == service]
        own_span = process_span_id(path) if service == "andon-exec" else span_id(path)
        where = {"local"} if service == "andon-exec" else {None}
        faults += [f"{path}: {service} does not say {name}" for name in names - {each["event"] for each in said}]
        faults += [f"{path}: not of its span, kept: {each}" for each in said if (each["span_id"], each["trace_flags"]) != (own_span, "01")]
        faults += [f"{path}: not where it ran: {each}" for each in said if each.get("worker_id") not in where]
    of_container = [each for each in lines if each["event"].startswith("container.")]
    return faults + [f"{path}: another container: {each}" for each in of_container if each["container_id"] != container_id]
