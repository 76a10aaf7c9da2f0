"""What a whole trace has to hold (TRACING.md §12), asked of a real Jaeger; each broken check is one line that begins with its number.

One is read as this line is built: gates judge in the supervisor, so that a stage's checks are its `gate` span (15).
"""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from sandbox.contract.ids import attempt_path, span_id
from tests.fakes.traces import SLACK_S, SeenSpan, SeenTrace
from tests.servers.jaeger import Jaeger

SERVICES = {"andon-sup", "andon-exec", "andon-gw", "andon-agent"}
SERVER, CLIENT, CONSUMER = 2, 3, 5
_SECRET = re.compile(r"sk-ant-|sk-scripted-")
_PROMPTS = ("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions")


def broken_checks(jaeger: Jaeger, result: dict[str, Any]) -> list[str]:
    """Return what is wrong with the trace of a run that landed; `result` is its result object."""
    trace = jaeger.trace(result["trace_id"])
    found = [f"01 {missing} has no span" for missing in sorted(SERVICES - jaeger.services())]
    ids = jaeger.find("andon-sup", {"cicd.pipeline.run.id": result["run_id"]})
    found += [] if ids == {result["trace_id"]} else [f"02 by its run id are found {sorted(ids)}"]
    for check in (_root, _connected, _stages, _attempts, _sandboxes, _calls, _times, _errors, _evidence):
        found += check(trace, result)
    return found


def _root(trace: SeenTrace, result: dict[str, Any]) -> Iterator[str]:
    if [root.span_id for root in trace.roots] != [span_id(result["run_id"])]:
        yield f"03 the roots are {[root.name for root in trace.roots]}"
        return
    (root,) = trace.roots
    if (root.name, root.kind, root.attributes.get("cicd.pipeline.result")) != ("RUN feature", SERVER, "success"):
        yield f"03 the root is {root}"
    if not str(root.attributes.get("cicd.pipeline.run.url.full", "")).endswith(f"/runs/{result['run_id']}"):
        yield "03 the root has no address of its page"


def _connected(trace: SeenTrace, _result: dict[str, Any]) -> Iterator[str]:
    yield from (f"04 {span.name} is an orphan" for span in trace.spans if span.parent_id and span.parent_id not in trace.by_id)
    yield from (f"05 {identity} is there {count} times" for identity, count in _counts(trace) if count > 1)


def _counts(trace: SeenTrace) -> list[tuple[str, int]]:
    return list(Counter(span.span_id for span in trace.spans).items())


def _stages(trace: SeenTrace, result: dict[str, Any]) -> Iterator[str]:
    for job in result["stages"]:
        for attempt in job["attempts"]:
            path = attempt_path(result["run_id"], job["stage"], job["round"], attempt["attempt"])
            span = trace.by_id.get(span_id(path))
            if span is None or span.parent_id != span_id(result["run_id"]):
                yield f"06 {path} has no span below the root"
                continue
            said = span.attributes
            if (said.get("cicd.pipeline.task.run.id"), said.get("andon.attempt")) != (path, attempt["attempt"]):
                yield f"06 {path} is told as {said}"
            if not {"cicd.pipeline.task.run.result", "cicd.pipeline.task.run.url.full"} <= said.keys():
                yield f"06 {path} has no result or no address"


def _attempts(trace: SeenTrace, _result: dict[str, Any]) -> Iterator[str]:
    for process in trace.named("process "):
        stage = trace.parent(process)
        if process.kind != CONSUMER or stage is None or not stage.name.startswith("stage "):
            yield f"07 {process.name} is not the consumer of a stage"
            continue
        if process.links != (stage.span_id,) or process.attributes.get("messaging.operation.type") != "process":
            yield f"07 {process.name} of {stage.name} is not linked, or no message's"
    for stage in trace.named("stage "):
        below = [span for span in trace.spans if span.parent_id == stage.span_id]
        waits = [span for span in below if span.name == "queue wait"]
        is_first = stage.attributes.get("andon.attempt") == 1
        has_begun = any(span.name.startswith("process ") for span in below)
        if len(waits) > 1 or (is_first and has_begun and len(waits) != 1) or any(wait.end < wait.start for wait in waits):
            yield f"08 {stage.name} has {len(waits)} queue waits"


def _sandboxes(trace: SeenTrace, _result: dict[str, Any]) -> Iterator[str]:
    for tool in trace.named("execute_tool "):
        agent = trace.parent(tool)
        box = agent.attributes.get("container.id") if agent and agent.name.startswith("invoke_agent ") else None
        if tool.service != "andon-agent" or not box or tool.attributes.get("container.id") != box:
            yield f"09 {tool.name} is not of its agent's container"
    for process in trace.named("process "):
        below = [span for span in trace.spans if span.parent_id == process.span_id]
        if process.attributes.get("andon.reaped"):  # its executor died, and what it had not sent yet is gone
            continue
        container = [span for span in below if span.name.startswith("container ")]
        program = [span for span in below if span.name.startswith(("invoke_agent ", "run "))]
        removal = [span for span in container if span.name == "container remove"]
        names = Counter(span.name for span in container)
        if names != dict.fromkeys(("container create", "container start", "container remove"), 1) or len(program) != 1:
            yield f"13 {process.name} has {dict(names)} and {len(program)} programs"
            continue
        if len({span.attributes.get("container.id") or span.name for span in (*container, *program)}) != 1:
            yield f"13 {process.name} is not all of one container"
        if any("process.exit.code" not in span.attributes for span in (*program, *removal)):
            yield f"13 {process.name} has no exit code"


def _calls(trace: SeenTrace, _result: dict[str, Any]) -> Iterator[str]:
    for chat in trace.named("chat "):
        said = chat.attributes
        wanted = {"gen_ai.request.model", "gen_ai.usage.output_tokens", "gen_ai.usage.cost.amount", "gen_ai.response.finish_reasons"}
        if (chat.service, chat.kind) != ("andon-gw", CLIENT) or (not chat.is_error and not wanted <= said.keys()):
            yield f"10 {chat.name} from {chat.service} lacks {sorted(wanted - said.keys())}"
        cached = said.get("gen_ai.usage.cache_read.input_tokens", 0) + said.get("gen_ai.usage.cache_write.input_tokens", 0)
        if said.get("gen_ai.usage.input_tokens", 0) < cached:
            yield f"11 {chat.name} read more from the cache than it was given"
    for span in trace.spans:
        if not span.name.startswith("chat ") and any(key.startswith("gen_ai.usage.") for key in span.attributes):
            yield f"11 {span.name} counts tokens"


def _times(trace: SeenTrace, _result: dict[str, Any]) -> Iterator[str]:
    for span in trace.spans:
        parent = trace.parent(span)
        if parent and not parent.start - SLACK_S <= span.start <= span.end <= parent.end + SLACK_S:
            yield f"12 {span.name} is outside {parent.name}"


def _errors(trace: SeenTrace, result: dict[str, Any]) -> Iterator[str]:
    untyped = [span for span in trace.spans if span.is_error and "error.type" not in span.attributes]
    yield from (f"14 {span.name} is an error without a type" for span in untyped)
    for job in result["stages"]:
        paths = [attempt_path(result["run_id"], job["stage"], job["round"], each["attempt"]) for each in job["attempts"]]
        spans = [trace.by_id.get(span_id(path)) for path in paths]
        if job["verdict"] == "pass" and (spans[-1] is None or spans[-1].is_error):
            yield f"14 the last attempt of {job['stage']} is an error, or not there"
        for before, after in pairwise(spans):
            if before is not None and after is not None and after.links != (before.span_id,):
                yield f"14 a retry of {job['stage']} is not linked to what it repeats"


def _evidence(trace: SeenTrace, result: dict[str, Any]) -> Iterator[str]:
    for stage in trace.named("stage "):
        if stage.is_error:
            continue
        gates = [span for span in trace.spans if span.parent_id == stage.span_id and span.name.startswith("gate ")]
        if len(gates) != 1:
            yield f"15 {stage.name} has {len(gates)} gates"
    commits = [span.attributes.get("vcs.ref.head.revision") for span in trace.named("commit")]
    if commits != [result["commit"]] or not re.fullmatch(r"[0-9a-f]{40}", str(result["commit"])):
        yield f"15 the commits are {commits}"
    for span in trace.spans:
        if any(key in span.attributes for key in _PROMPTS) or any(_SECRET.search(text) for text in _texts(span)):
            yield f"15 {span.name} holds a prompt or a secret"


def _texts(span: SeenSpan) -> Iterator[str]:
    yield span.name
    yield from (str(value) for value in span.attributes.values())
