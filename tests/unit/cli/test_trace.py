"""`andon trace`: a run's trace file as a tree; the file is made as the supervisor and an executor make theirs."""

import re
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract.ids import attempt_path, program_span_id, span_id, trace_id
from sandbox.contract.result import Outcome
from sandbox.telemetry import Spans
from supervisor.api.run_files import files_of
from supervisor.api.traces.run_trace import RunTrace
from supervisor.api.traces.sink import TraceSink
from supervisor.pipeline.events import AnyEvent
from supervisor.pipeline.fold import apply
from supervisor.pipeline.run import RunState
from tests.fakes.command_line import CommandLine
from tests.fakes.run_events import RUN, Story, happy, until_implement


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def keep(andon: CommandLine, log: list[AnyEvent], *executors: Spans) -> Path:
    """Let a run be on this host with its trace, as if these executors had worked on it."""
    files = files_of(andon.state, RUN)
    files.append(log)
    sink = TraceSink(lambda _run: files.trace_path)
    trace = RunTrace(Spans("andon-sup", "1"), sink.store)
    run: RunState | None = None
    for event in log:
        run = apply(run, event)
        trace.follow(run, event)
    for spans in executors:
        for payload in spans.drain(trace_id(RUN)):
            sink.store(RUN, payload, from_executor=True)
    return files.trace_path


def a_call(stage: str, at: float, cost: float, error: str | None = None) -> Spans:
    """Return the span of one model call below a stage."""
    spans = Spans("andon-gw", "1")
    span = spans.start(
        "chat claude-sonnet-5-5",
        trace_id=trace_id(RUN),
        parent=span_id(attempt_path(RUN, stage, 1, 1)),
        start=at,
        attributes={"gen_ai.usage.cost.amount": cost},
    )
    span.end(at + 0.25, error_type=error)
    return spans


def test_a_run_is_drawn_from_its_root_to_its_calls(andon: CommandLine) -> None:
    """Time, cost of everything below, where in the run it was, and which attempt; siblings in the order they began."""
    story = Story().accepted().dispatched("spec").started("spec").ended("spec", outcome=Outcome.LOST)
    story.started("spec", attempt=2).paid("spec", 50_000_000, attempt=2).ended("spec", attempt=2).judged("spec").landed()
    at = story.log[2].at
    keep(andon, story.log, a_call("spec", at, 0.004432))

    lines = andon("trace").out.splitlines()

    assert [re.split(r"(?<=\w|\)) {2,}", line)[0] for line in lines[:6]] == [
        "RUN feature",
        "├─ RUN feature (started)",
        "├─ dispatch spec",
        "├─ stage spec",
        "│  ├─ queue wait",
        "│  ├─ send andon.job.default",
    ]
    root, first, call, second = lines[0], lines[3], lines[6], next(line for line in lines if "stage spec, attempt 2" in line)
    assert root.split()[2:5] == ["9.0", "s", "$0.0044"]
    assert root.endswith("█" * 24)
    assert first.endswith("lost")
    assert second.startswith("├─ stage spec, attempt 2 ")
    assert call.split()[-4:-1] == ["250", "ms", "$0.0044"]
    assert lines[-1].startswith(f"trace {trace_id(RUN)}, ")


def test_it_says_where_the_time_went(andon: CommandLine) -> None:
    """Below the tree, the longest of the critical path first; for programs each span has its own seconds of it."""
    log = happy()
    keep(andon, log, a_call("docs", log[-6].at, 0.0))

    lines = andon("trace").out.splitlines()
    root: dict[str, Any] = andon("trace", "--json").json

    at = lines.index("where the time went (critical path):")
    assert re.fullmatch(r" +[\d.]+ m?s +\d+%  \S.*", lines[at + 1])
    assert at + 8 == lines.index("", at)
    every = [root]
    for node in every:
        every += node["children"]
    assert sum(node["critical_seconds"] for node in every) == pytest.approx(root["seconds"], abs=1e-3)


def test_spans_nested_without_end_are_drawn(andon: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox may hang each span below the last one; the terminal gets a tree of bounded depth with all of them."""
    monkeypatch.setenv("COLUMNS", "200")
    log, spans, parent = happy(), Spans("andon-user", "1"), span_id(attempt_path(RUN, "docs", 1, 1))
    for number in range(2_000):
        span = spans.start(f"nested {number} ", trace_id=trace_id(RUN), parent=parent, start=log[-6].at)
        span.end(log[-6].at + 0.1)
        parent = span.context.span_id
    keep(andon, log, spans)

    lines = andon("trace").out.splitlines()

    assert sum("─ nested " in line for line in lines) == 2_000


def test_what_broke_is_named(andon: CommandLine) -> None:
    """An error's type stands at the end of its line."""
    log = happy()
    keep(andon, log, a_call("docs", log[-6].at, 0.0, error="overloaded"))

    [call] = [line for line in andon("trace").out.splitlines() if "chat" in line]

    assert call.endswith("overloaded")


def test_of_a_run_that_goes_on_it_tells_what_is_running(andon: CommandLine) -> None:
    """Its root and the attempts without an end are not in the file yet; `--open` shows nothing else."""
    keep(andon, until_implement(Story()).dispatched("implement").started("implement").log)

    whole = andon("trace").out.splitlines()
    only = andon("trace", "--open").out.splitlines()

    assert whole[0].startswith("RUN feature ")
    assert [line.split()[2] for line in whole if line.endswith("running") and "stage" in line] == ["implement"]
    assert [line.split("  ")[0] for line in only[:2]] == ["RUN feature", "└─ stage implement"]
    assert not any("stage spec" in line for line in only)


def test_what_a_running_agent_has_done_hangs_where_it_will_be(andon: CommandLine) -> None:
    """Its calls have ended, what they are in has not: the ids of that are known, so nothing hangs in the air."""
    log = until_implement(Story()).dispatched("implement").started("implement").log
    spans, path = Spans("andon-gw", "1"), attempt_path(RUN, "implement", 1, 1)
    call = spans.start("chat claude-sonnet-5-5", trace_id=trace_id(RUN), parent=program_span_id(path), start=log[-1].at)
    call.end(log[-1].at + 0.5)
    keep(andon, log, spans)

    lines = [re.split(r"(?<=\w) {2,}", line)[0].lstrip("│ ") for line in andon("trace").out.splitlines()]

    at = lines.index("└─ stage implement")
    assert lines[at + 1 : at + 4] == [
        "└─ process andon.job.default",
        "└─ invoke_agent implement",
        "└─ chat claude-sonnet-5-5",
    ]
    assert not any("has not ended" in line for line in lines)


def test_the_object_is_the_same_tree(andon: CommandLine) -> None:
    """For programs, with every attribute."""
    keep(andon, happy())

    root: dict[str, Any] = andon("trace", "--json").json

    assert (root["name"], root["span_id"], root["running"], root["error"]) == ("RUN feature", span_id(RUN), False, "")
    stages = [child["name"] for child in root["children"] if child["name"].startswith("stage ")]
    assert stages[:3] == ["stage baseline", "stage spec", "stage interface"]
    assert root["attributes"]["cicd.pipeline.result"] == "success"


def test_depth_bounds_the_levels(andon: CommandLine) -> None:
    """`--depth 1`: the stages alone."""
    keep(andon, happy())

    lines = andon("trace", "--depth", "1").out.splitlines()

    assert not any(line.startswith("│") for line in lines)
    assert sum("─ stage " in line for line in lines) == 8


def test_a_span_whose_parent_is_not_there_is_kept_apart(andon: CommandLine) -> None:
    """Nothing that is in the file is hidden, also not what a bad disk left alone."""
    path = keep(andon, happy(), a_call("elsewhere", happy()[3].at, 0.1))
    with path.open("a") as file:
        file.write('{"resourceSpans": 3}\nnot json\n')

    lines = andon("trace").out.splitlines()

    at = next(number for number, line in enumerate(lines) if "(below something that has not ended)" in line)
    assert "chat claude-sonnet-5-5" in lines[at + 1]


def test_nothing_runs_of_a_run_that_is_over(andon: CommandLine) -> None:
    """One line, and exit 0."""
    keep(andon, happy())

    ended = andon("trace", "--open")

    assert (ended.code, ended.out, ended.err.strip()) == (0, "", f"nothing of run {RUN} is running: it is landed")


def test_names_of_others_are_inert(andon: CommandLine) -> None:
    """A span of a sandbox may be named anything; the terminal gets no escape."""
    spans = Spans("andon-agent", "1")
    parent = span_id(attempt_path(RUN, "docs", 1, 1))
    spans.start("execute_tool \x1b[31mx\nRUN", trace_id=trace_id(RUN), parent=parent, start=happy()[-6].at).end(happy()[-6].at)
    keep(andon, happy(), spans)

    assert "\x1b" not in andon("trace").out
