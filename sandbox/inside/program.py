"""What both kinds of attempt share: read the assignment, make the private repository, dispatch, submit."""

import socket
import sys
import time
import traceback

from sandbox.contract.job import Assignment, Submission
from sandbox.inside import gateway_client, self_destruct, workspace_git
from sandbox.inside.otlp import taking_spans
from sandbox.inside.packages import installing
from sandbox.inside.paths import Paths, base_environment


def run(root: str, pending: socket.socket, asked_ns: int) -> int:
    """Do what the assignment says and deliver the submission; return the exit status, 0 if it was accepted.

    Args:
        root: As of `__main__.main`.
        pending: Where the assignment will come.
        asked_ns: Unix time of the request for it; what was imported since then took the attempt's time, if the answer is there already.
    """
    paths = Paths.below(root)
    gateway = str(paths.gateway)
    was_there = gateway_client.has_answered(pending)
    answer = gateway_client.wait_assignment(gateway, pending)
    began_ns = asked_ns if was_there else time.time_ns()
    assignment = Assignment.model_validate_json(answer)
    self_destruct.arm(assignment.self_destruct_s)
    say(f"{assignment.kind} {assignment.job_id} attempt {assignment.attempt}")
    try:
        submission = _work(assignment, paths, began_ns)
    except Exception as error:  # noqa: BLE001 - whatever broke, the executor gets to know it by a submission rather than by silence
        traceback.print_exc()
        submission = Submission(status="error", summary=ascii(error)[:2_000])
    say(f"submit {submission.status} after {submission.steps} steps")
    gateway_client.post_submission(gateway, submission.model_dump_json().encode())
    return 0


def _work(assignment: Assignment, paths: Paths, began_ns: int) -> Submission:
    # Tools and checks that trace themselves find where their spans belong (env carrier of the W3C); each is given a context of its own.
    context = {"TRACEPARENT": assignment.traceparent} if assignment.traceparent else {}
    environment = base_environment(paths) | assignment.tool_env | context
    repository = workspace_git.begin(paths.workspace, environment)
    if assignment.network != "none":
        repository.wait()  # what is made for packages is no part of the base
    with taking_spans(paths.gateway) as exporting, installing(assignment, paths, exporting | environment) as ready:
        match assignment.kind:
            case "agent" if assignment.agent is not None and assignment.agent.driver.kind != "builtin":
                from sandbox.inside.drivers.run import run_foreign  # a program of the image: no SDK

                return run_foreign(assignment, assignment.agent, paths, ready, repository, say)
            case "agent":
                from sandbox.inside.agent.start import run_agent  # imports the SDK: only for an agent, never for checks

                return run_agent(assignment, paths, ready, repository, say, began_ns)
            case "checks":
                from sandbox.inside.checks.runner import run_checks

                say(repository.wait())
                return run_checks(assignment, paths, ready, say)


def say(line: str) -> None:
    """Write one line of the container's log: printable characters only, at most 400."""
    shown = "".join(char if char.isprintable() else " " for char in line[:400])
    sys.stdout.write(shown + "\n")
    sys.stdout.flush()
