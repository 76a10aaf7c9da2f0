"""Every run says where its trace is: a page of Jaeger's if it is exported, else how to look at it without one."""

import asyncio
import json

import pytest

from sandbox.contract.ids import trace_id
from supervisor.api.report import markdown, summary
from supervisor.cli.follow import watch
from supervisor.pipeline.events import AnyEvent, RunAccepted
from supervisor.pipeline.fold import fold
from tests.fakes import run_events
from tests.fakes.command_line import CommandLine
from tests.fakes.run_events import RUN
from tests.fakes.scripted_client import ScriptedClient
from tests.unit.cli.test_follow import Notes

PAGE = f"http://127.0.0.1:16686/trace/{trace_id(RUN)}"
HINT = f"andon trace {RUN}   (or open trace.otlp.jsonl, beside the report, in Jaeger)"
NONE = "none: this run was not sampled (OTEL_TRACES_SAMPLER)"


def shown(log: list[AnyEvent], *, url: str = PAGE, sampled: bool = True) -> list[AnyEvent]:
    """Return a run's events as they are when its trace is shown somewhere."""
    update = {"trace_url": url, "sampled": sampled}
    return [event.model_copy(update=update) if isinstance(event, RunAccepted) else event for event in log]


def traced(log: list[AnyEvent]) -> str:
    """Return what the closing lines say of the trace."""
    (line,) = [each for each in summary(fold(log), None).splitlines() if each.startswith("  trace ")]
    return line.removeprefix("  trace ").strip()


@pytest.mark.parametrize("log", [run_events.happy(), run_events.failed()], ids=["landed", "failed"])
def test_the_closing_lines_and_the_report_name_the_page(log: list[AnyEvent]) -> None:
    """However the run ended."""
    assert traced(shown(log)) == PAGE
    assert f"| shown by | `{PAGE}` |" in markdown(fold(shown(log)))


def test_without_a_page_they_say_how_to_look() -> None:
    """Nothing is exported: the trace is in a file, which two things open; or the run has none."""
    assert traced(run_events.happy()) == HINT
    assert traced(shown(run_events.happy(), url="", sampled=False)) == NONE


def test_the_object_has_the_page(andon: CommandLine) -> None:
    """For programs: null where there is none."""
    andon.has_run(shown(run_events.happy()))
    andon.has_run(run_events.happy(run="01jd8m9999"))

    assert json.loads(andon("status", RUN, "--json").out)["trace_url"] == PAGE
    assert json.loads(andon("status", "01jd8m9999", "--json").out)["trace_url"] is None


def test_a_run_that_goes_on_is_linked_too(andon: CommandLine) -> None:
    """Once, whether it goes on or is over."""
    for log in (run_events.happy()[:12], run_events.happy()):
        andon.has_run(shown(log))

        assert andon("status").out.count(PAGE) == 1


async def test_whoever_watches_is_told_at_the_beginning() -> None:
    """Once, above the picture; nothing is said where there is no page."""
    told = []
    for log in (shown(run_events.happy()), run_events.happy()):
        notes = Notes()
        async with asyncio.timeout(10):
            await watch(ScriptedClient(script=[*log]), RUN, notes, seen=lambda _run: None)
        told.append(notes.said)

    assert told == [[f"trace: {PAGE}"], []]


def test_the_tree_names_the_page_and_a_run_without_a_trace_says_so(andon: CommandLine) -> None:
    """In one line each."""
    andon.has_run(shown(run_events.happy()))
    andon.has_run(shown(run_events.happy(run="01jd8m9999"), url="", sampled=False))

    assert andon("trace", RUN).out.splitlines()[-1] == PAGE
    none = andon("trace", "01jd8m9999")
    assert (none.code, none.out, none.err) == (0, "", "run 01jd8m9999 has no trace: it was not sampled (OTEL_TRACES_SAMPLER)\n")
