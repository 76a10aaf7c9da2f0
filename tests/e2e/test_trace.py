"""Every run is one connected trace (TRACING.md §12), in its file and in a real Jaeger, whatever broke on the way; and it says nothing
that nobody should read."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.bus.assets import CONFIRM_S
from sandbox.contract.ids import attempt_path, span_id, trace_id
from supervisor.demo import SAMPLE_FEATURE, SAMPLE_REQUEST
from tests.architecture.source import ROOT
from tests.e2e.fifteen_checks import broken_checks
from tests.e2e.line import CANARY, Finished, Line, Provider
from tests.e2e.log_lines import lines_of, log_faults, text_of
from tests.e2e.watching import a_sample, going, kill_sandbox, sandboxes, stack_pids, wait_until
from tests.fakes.scripts.rate_limit import HAPPY, SPEC, STALLS_ONCE
from tests.fakes.traces import SeenTrace
from tests.servers.jaeger import Jaeger
from tests.servers.jaeger import jaeger as running_jaeger

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

EXECUTORS_PART = (
    "process ",
    "workspace prepare",
    "image resolve",
    "gateway open",
    "container create",
    "container start",
    "workspace seal",
    "container remove",
    "gateway close",
    "workspace remove",
)

INTERFACE = """\
stage interface [sup]
  queue wait [exec]
  send andon.job.default [sup]
  process andon.job.default [exec]
    workspace prepare [exec]
    image resolve [exec]
    gateway open [exec]
    container create [exec]
    container start [exec]
    invoke_agent interface [exec]
      agent boot [exec]
      agent import [agent]
      chat claude-sonnet-5-5 [gw]
      execute_tool str_replace_based_edit_tool [agent]
      chat claude-sonnet-5-5 [gw]
      execute_tool bash [agent]
      chat claude-sonnet-5-5 [gw]
      execute_tool submit [agent]
      agent exit [exec]
    workspace seal [exec]
    container remove [exec]
    gateway close [exec]
    workspace remove [exec]
  result delivery [sup]
  gate interface [sup]
"""


@pytest.fixture(scope="module")
def jaeger() -> Iterator[Jaeger]:
    """A real Jaeger, empty at first."""
    with running_jaeger() as running:
        yield running


@pytest.fixture(scope="module")
def line(provider: Provider, jaeger: Jaeger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """A stack of its own, whose supervisor exports to that Jaeger."""
    exports = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp}
    made = Line(tmp_path_factory.mktemp("traced-line"), provider.server.environment() | exports)
    up = made.andon("up", timeout_s=900)
    assert up.exit_code == 0, up.stderr
    yield made
    down = made.andon("down")
    assert down.exit_code == 0, down.stderr


def faults(line: Line, jaeger: Jaeger, run_id: str) -> list[str]:
    """Return what is wrong with a run's trace in its file, and in Jaeger once that has all of it."""
    in_file = whole_trace(line, run_id)
    trace = trace_id(run_id)
    wait_until(lambda: len(jaeger.trace(trace).spans) >= len(in_file.spans), "Jaeger has every span of the file", 30)
    result = line.andon("status", run_id, "--json").result
    return [*in_file.faults(), *broken_checks(jaeger, result)]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """The sample request on the sample, with the specification given, to be quick."""
    (tmp_path / "spec.yaml").write_text(SPEC.replace("{feature}", SAMPLE_FEATURE))
    repository = a_sample(tmp_path / "notes")
    return [SAMPLE_REQUEST, "--repo", str(repository), "--spec", str(tmp_path / "spec.yaml"), "--slug", SAMPLE_FEATURE, "--no-baseline"]


def path_of(line: Line, run_id: str) -> Path:
    return line.state / "runs" / run_id / "trace.otlp.jsonl"


def whole_trace(line: Line, run_id: str) -> SeenTrace:
    """Read the trace when the executor's last spans have arrived, which come over another stream than the run's end."""
    path = path_of(line, run_id)

    def is_whole() -> bool:
        trace = SeenTrace.of_file(path)
        return bool(trace.roots) and len(trace.named("process ")) >= len(trace.named("stage "))

    # What a killed supervisor had taken and not confirmed comes again after CONFIRM_S, to the next one.
    wait_until(is_whole, f"every attempt's spans are in {path}", CONFIRM_S + 20)
    return SeenTrace.of_file(path)


@pytest.fixture(scope="module")
def happy(line: Line, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, SeenTrace, str]:
    """One run that lands: its end, its trace, and the trace's bytes."""
    provider.says(HAPPY)
    done = line.run(SAMPLE_REQUEST, "--repo", str(a_sample(tmp_path_factory.mktemp("traced") / "notes")))
    assert done.exit_code == 0, done.stderr
    trace = whole_trace(line, done.result["run_id"])
    return done, trace, path_of(line, done.result["run_id"]).read_text()


def test_a_run_is_one_trace_with_one_root_and_nothing_loose(line: Line, jaeger: Jaeger, happy: tuple[Finished, SeenTrace, str]):
    """No orphan, no span twice, children inside parents, each kind of span from its own service, tokens on model calls alone."""
    done, trace, _ = happy

    assert faults(line, jaeger, done.result["run_id"]) == []
    (root,) = trace.roots
    assert (root.name, root.span_id, root.trace_id) == ("RUN feature", span_id(done.result["run_id"]), done.result["trace_id"])
    assert done.result["trace_url"] == f"http://127.0.0.1:16686/trace/{root.trace_id}"
    assert [line for line in done.stderr.splitlines() if done.result["trace_url"] in line] == [
        f"[andon] trace: {done.result['trace_url']}",
        f"  trace     {done.result['trace_url']}",
    ]
    assert root.attributes["cicd.pipeline.result"] == "success"
    assert {span.service for span in trace.spans} == {"andon-sup", "andon-exec", "andon-gw", "andon-agent"}


def test_every_stage_is_there_with_what_its_executor_did(happy: tuple[Finished, SeenTrace, str]):
    """Below each stage: its publication, the wait, the attempt, and in it workspace, container and program."""
    done, trace, _ = happy

    for stage in done.result["stages"]:
        path = attempt_path(done.result["run_id"], stage["stage"], stage["round"], 1)
        span = trace.by_id[span_id(path)]
        assert span.attributes["cicd.pipeline.task.run.id"] == path
        below = {child.name.split()[0]: child for child in trace.spans if child.parent_id == span.span_id}
        assert set(below) == {"send", "queue", "process", "result", "gate"}
        assert below["process"].links == (span.span_id,)
        inside = [child for child in trace.spans if child.parent_id == below["process"].span_id]
        assert all(sum(child.name.startswith(part) for child in inside) == 1 for part in EXECUTORS_PART[1:])
        (program,) = [child for child in inside if child.name.startswith(("invoke_agent ", "run "))]
        assert program.attributes["container.id"] == stage["attempts"][0]["container_id"]
        assert program.attributes["process.exit.code"] == 0
        ran = [child.name.split()[0] for child in trace.spans if child.parent_id == program.span_id]
        assert ran.count("agent") == 3  # boot, import by itself or preparation by what we saw, exit
        assert {"check"} < set(ran) if program.name.startswith("run ") else {"chat", "execute_tool"} < set(ran)


def test_tokens_and_cost_of_the_model_calls_add_up_to_the_run(happy: tuple[Finished, SeenTrace, str]):
    """A viewer that sums the spans shows what the result says."""
    done, trace, _ = happy
    chats = trace.named("chat ")
    usage = done.result["usage"]

    cached = usage["cache_read_input_tokens"] + usage["cache_write_input_tokens"]
    assert sum(span.attributes["gen_ai.usage.input_tokens"] for span in chats) == usage["input_tokens"] + cached
    assert sum(span.attributes["gen_ai.usage.output_tokens"] for span in chats) == usage["output_tokens"]
    assert sum(span.attributes["gen_ai.usage.cost.amount"] for span in chats) == pytest.approx(done.result["cost_usd"], abs=1e-4)
    assert len({span.attributes["gen_ai.response.id"] for span in chats}) == len(chats)


@pytest.mark.abuse("W01")
def test_neither_the_key_nor_a_word_of_a_conversation_is_in_the_trace(happy: tuple[Finished, SeenTrace, str]):
    """No prompt, no tool input, no tool output, no file."""
    _, _, text = happy

    for secret in (CANARY, "sk-ant-", "def check", "requests/minute", "gen_ai.input.messages", "gen_ai.system_instructions"):
        assert secret not in text


def test_the_tree_of_a_stage_is_the_one_agreed(happy: tuple[Finished, SeenTrace, str]):
    """Names, nesting and services, as a person sees them."""
    _, trace, _ = happy
    (stage,) = trace.named("stage interface")
    keep = {stage.span_id}
    for _ in range(4):
        keep |= {span.span_id for span in trace.spans if span.parent_id in keep}
    tree = SeenTrace([span if span.span_id != stage.span_id else span.without_parent() for span in trace.spans if span.span_id in keep])

    assert tree.tree() == INTERFACE


def test_a_retry_after_a_killed_container_leaves_a_whole_trace(line: Line, jaeger: Jaeger, provider: Provider, arguments: list[str]):
    """Both attempts are there, linked, the first as an error; the call in flight is all that is lost."""
    provider.says(STALLS_ONCE)
    with going(line, *arguments) as run:
        wait_until(lambda: len(provider.server.calls("implement")) == 2, "implement is told to sleep", 90)
        run.wait_event("job_judged", job_id=f"{run.run_id}-red-check-1", verdict="pass")
        (box,) = wait_until(lambda: only_one(sandboxes, line), "implement's container is the only one", 30)
        kill_sandbox(line, box["Id"])
        assert run.end().exit_code == 0

    assert faults(line, jaeger, run.run_id) == []
    trace = whole_trace(line, run.run_id)
    first, second = trace.named("stage implement")
    assert (first.attributes["error.type"], first.attributes["andon.attempt"]) == ("killed", 1)
    assert second.links == (first.span_id,)
    killed, again = trace.named("invoke_agent implement")
    assert killed.attributes["process.exit.code"] == 137
    assert killed.attributes["container.id"] == box["Id"] != again.attributes["container.id"]
    assert log_faults(line, line.andon("status", run.run_id, "--json").result) == []
    last_words = [each for each in lines_of(line, run.run_id) if each["event"] == "container.output"]
    assert {(each["container_id"], each["attempt"], each["stream"]) for each in last_words} == {(box["Id"][:12], 1, "stdout")}


def only_one(list_of: Callable[[Line], list[dict[str, str]]], line: Line) -> list[dict[str, str]] | None:
    boxes = list_of(line)
    return boxes if len(boxes) == 1 else None


def test_a_killed_supervisor_leaves_a_whole_trace(line: Line, jaeger: Jaeger, arguments: list[str]):
    """kill -9 in the middle: the next one goes on in the same trace, ends the same root, and makes nothing twice."""
    with going(line, *arguments) as run:
        run.wait_event("attempt_started", job_id=f"{run.run_id}-test-1")
        old = stack_pids(line)["supervisor"]
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: stack_pids(line)["supervisor"] != old, "the stack started another supervisor", 30)
        assert run.end().exit_code == 0

    assert faults(line, jaeger, run.run_id) == []


def test_a_killed_executor_leaves_a_whole_trace(line: Line, jaeger: Jaeger, provider: Provider, arguments: list[str]):
    """kill -9 of the executor: its attempts are declared lost, their jobs go to the next one, in the same trace."""
    provider.says(STALLS_ONCE)
    with going(line, *arguments) as run:
        wait_until(lambda: len(provider.server.calls("implement")) == 2, "implement is told to sleep", 90)
        old = stack_pids(line)["executor"]
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: stack_pids(line)["executor"] != old, "the stack started another executor", 30)
        assert run.end().exit_code == 0

    assert faults(line, jaeger, run.run_id) == []
    first, second = whole_trace(line, run.run_id).named("stage implement")
    assert (first.attributes["error.type"], second.links) == ("lost", (first.span_id,))


def test_every_line_of_the_logs_is_a_record_of_its_attempt(line: Line, happy: tuple[Finished, SeenTrace, str]):
    """Supervisor and executor say what happened, each with the ids of run, stage, attempt, trace, span and container."""
    done, _, _ = happy

    assert log_faults(line, done.result) == []


def test_the_logs_hold_no_key_no_prompt_and_nothing_a_sandbox_said(line: Line, happy: tuple[Finished, SeenTrace, str]):
    """Neither what was asked, nor what agents were told, wrote or ran; the control: these texts are elsewhere, and not few."""
    done, _, _ = happy
    said = "\n".join(str(value) for record in lines_of(line, done.result["run_id"]) for value in record.values())
    told = [text for page in (ROOT / "supervisor" / "agents").glob("*.md") for text in page.read_text().splitlines()]
    wrote = line.andon("diff", done.result["run_id"]).stdout.splitlines()
    ran = [text for path in (line.state / "runs" / done.result["run_id"] / "logs").iterdir() for text in path.read_text().splitlines()]
    texts = {text.strip("+- ") for text in (SAMPLE_REQUEST, *told, *wrote, *ran)}
    long = {text for text in texts if len(text) > 20}

    assert [text for text in long if text in said] == []
    assert min(len([text for text in part if len(text) > 20]) for part in (told, wrote, ran)) > 10, "the control"
    assert CANARY not in text_of(line)
