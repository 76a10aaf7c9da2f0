"""The live display: one line a stage, whatever the terminal is; and plain lines where there is none."""

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from sandbox.contract.wire import Progress
from supervisor.cli.live import Display, LiveDisplay, PlainDisplay, display_for
from supervisor.pipeline.events import AnyEvent
from supervisor.pipeline.fold import apply
from tests.fakes import run_events
from tests.fakes.run_events import RUN, Story, until_implement


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]  # StringIO's is read-only None
        return self._encoding

    def isatty(self) -> bool:
        return True


def a_progress(stage: str, turn: int, tool: str = "bash", job: str | None = None) -> Progress:
    """Return what a gateway says of one attempt."""
    return Progress(
        **{"executor": "host-1", "run_id": RUN, "job_id": job or f"{RUN}-{stage}-1", "stage": stage, "round": 1, "attempt": 1},
        **{"phase": "running", "turn": turn, "tool": tool, "tokens": 12_345, "cost_nano_usd": 21_000_000},
    )


def picture(
    events: Sequence[AnyEvent], progress: Sequence[Progress] = (), *, width: int = 110, unicode: bool = True, now: float = 0
) -> list[str]:
    """Return the last picture on a terminal, line by line, without styles."""
    stream = Terminal()
    console = Console(file=stream, width=width, height=40, no_color=True, force_terminal=True, highlight=False, markup=False)
    display = LiveDisplay(console, lambda: now or events[-1].at, unicode=unicode)
    show(display, events, progress)
    stream.seek(0)
    stream.truncate()
    console.print(display.picture())
    return [line.rstrip() for line in stream.getvalue().replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()]


def show(display: Display, events: Sequence[AnyEvent], progress: Sequence[Progress] = ()) -> None:
    """Let a display see a run."""
    run = None
    with display:
        for event in events:
            run = apply(run, event)
            display.event(run, event)
        for each in progress:
            display.progress(each)
        display.tick()


def test_a_line_has_state_elapsed_turn_tool_tokens_and_cost() -> None:
    """And the last line has the whole run against its budget."""
    story = until_implement(Story()).dispatched("implement").dispatched("test").started("implement").started("test")

    shown = picture(story.log, [a_progress("implement", 4), a_progress("test", 1, "str_replace_based_edit_tool")], now=story.at + 65)

    assert shown == [
        "✓  baseline   passed                                        3 s",
        "✓  spec       passed                                        5 s                        1,100 tokens    $0.0500",
        "✓  interface  passed                                        5 s                        1,100 tokens    $0.0600",
        "▶  implement  running (parallel)                     1 min 09 s  turn 4    bash       12,345 tokens    $0.0210",
        "▶  test       running (parallel)                     1 min 08 s  turn 1    edit       12,345 tokens    $0.0210",
        "·  validate   waiting after implement, test",
        "·  docs       waiting after validate",
        "·  land       waiting after docs",
        f"run {RUN} · 1 min 26 s · 26,890 tokens · $0.1520 of $50.00 · Ctrl-C parks",
    ]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 110, 300])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Nothing wraps, so that redrawing hits the same lines; state and stage are always there."""
    shown = picture(run_events.failed(), width=width)

    assert max(map(len, shown)) <= width
    assert len(shown) == 10
    assert shown[6].startswith("✗  validate   fa")


def test_a_terminal_without_unicode_gets_ascii() -> None:
    """Marks and separators."""
    shown = picture(run_events.rework()[:40], unicode=False)

    assert "".join(shown).isascii()
    assert shown[0].startswith("+  baseline")


def test_a_rework_shows_its_round() -> None:
    """The line of a stage is that of its newest job."""
    log = run_events.rework()
    at = next(number for number, event in enumerate(log) if event.type == "job_dispatched" and event.round == 2)

    shown = picture(log[: at + 2])

    assert any(line.startswith("▶  implement  running, round 2") for line in shown)
    assert any(line.startswith("✗  validate   failed: pytest: ") for line in shown)


def test_an_old_attempts_progress_is_not_shown_for_a_new_one() -> None:
    """A late message of a dead executor must not move the line."""
    story = until_implement(Story()).dispatched("implement").started("implement", attempt=2)

    shown = picture(story.log, [a_progress("implement", 9)])

    assert not any("turn" in line for line in shown)


def test_what_needs_an_eye_stays_above_the_picture() -> None:
    """A red gate is printed as a line of its own."""
    stream = Terminal()
    display = display_for(stream, lambda: run_events.AT, no_color=True, is_plain=False)

    show(display, run_events.rework())

    assert isinstance(display, LiveDisplay)
    assert "[validate] fail in 3 s, 11 tests passed, 1 failed, 0 skipped" in stream.getvalue()
    assert "\x1b[32m" not in stream.getvalue(), "NO_COLOR"


def test_text_of_agents_is_inert_in_the_picture() -> None:
    """No markup, no escape."""
    story = until_implement(Story()).dispatched("implement").started("implement")

    shown = picture(story.log, [a_progress("implement", 1, "[red]\x1b]0;x\x07")], width=140)

    assert any("[red]]..." in line or "[re..." in line for line in shown)
    assert not set("".join(shown)) & set("\x1b\x07")


@pytest.mark.parametrize(
    ("stream", "is_plain", "kind"),
    [(io.StringIO(), False, PlainDisplay), (Terminal(), True, PlainDisplay), (Terminal(), False, LiveDisplay)],
    ids=["pipe", "CI", "terminal"],
)
def test_only_a_terminal_outside_ci_is_redrawn(stream: io.StringIO, is_plain: bool, kind: type[object]) -> None:
    """A pipe and CI get lines."""
    assert isinstance(display_for(stream, lambda: 0.0, no_color=False, is_plain=is_plain), kind)


def test_a_reader_that_goes_away_does_not_stop_the_run() -> None:
    """`andon run | head`: the rest is not shown, nothing is raised."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    show(display_for(Closed(), lambda: 0.0, no_color=False, is_plain=True), run_events.happy())


def test_plain_progress_has_one_line_a_turn_and_not_more_often_than_every_two_seconds() -> None:
    """A turn that comes too soon is left out, the next one is not."""
    lines: list[str] = []
    now = iter([0.0, 1.0, 2.5, 2.6, 9.0])
    display = PlainDisplay(lines.append, lambda: next(now))

    for turn in (1, 2, 3, 3, 4):
        display.progress(a_progress("spec", turn))

    assert [line.split(",")[0] for line in lines] == ["[spec] turn 1", "[spec] turn 3", "[spec] turn 4"]
