"""What a person sees while a run works: one line a stage on a terminal, else plain lines; only drawing, the rows come from `api.views`.

Text that an agent or a model wrote is made inert before it is drawn, and never read as markup.
"""

import codecs
from collections.abc import Callable
from typing import Any, Protocol, Self, TextIO, cast

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sandbox.contract.wire import Progress
from supervisor.api.inert import inert_line
from supervisor.api.lines import lines_for, progress_line
from supervisor.api.report import duration, money
from supervisor.api.views import BoardRow, RowState, board, is_over, tokens_of
from supervisor.pipeline.events import AnyEvent
from supervisor.pipeline.run import RunState

TICK_S = 0.25
PROGRESS_EVERY_S = 2.0
"""At most one plain line of progress for each stage in this time."""
_WIDTHS = {"mark": 1, "stage": 0, "state": 0, "time": 11, "turn": 8, "tool": 6, "tokens": 16, "cost": 9}
"""Characters of each column; `stage` is as wide as the longest name, `state` takes what is left."""
_STATE_CHARS = (16, 44)
_OPTIONAL = ("tokens", "tool", "turn", "time")
"""What a narrow terminal gives up, in this order."""
_NUMBERS = frozenset({"time", "tokens", "cost"})
_TOOL_WORDS = {"str_replace_based_edit_tool": "edit"}

_MARKS: dict[RowState, tuple[str, str, str]] = {
    "waiting": ("·", ".", "dim"),
    "queued": ("○", "o", ""),
    "running": ("▶", ">", "cyan"),
    "judging": ("◆", "?", "cyan"),
    "passed": ("✓", "+", "green"),
    "failed": ("✗", "x", "red"),
    "held": ("‖", "!", "yellow"),
    "stopped": ("–", "-", "dim"),
}


class Display(Protocol):
    """Shows a run as it goes. A context manager: what it draws is finished when it is left."""

    def __enter__(self) -> Self:
        """Begin to draw."""
        ...

    def __exit__(self, *_: object) -> None:
        """Leave the last picture on the screen."""
        ...

    def say(self, text: str) -> None:
        """Show one line that is not about a stage."""
        ...

    def event(self, run: RunState, event: AnyEvent) -> None:
        """Show that `event` happened; `run` is the state after it."""
        ...

    def progress(self, progress: Progress) -> None:
        """Show what an attempt does."""
        ...

    def tick(self) -> None:
        """Let time pass; called every `TICK_S`."""
        ...


class PlainDisplay:
    """One line an event, prefixed with its stage: for pipes, CI and terminals that cannot move a cursor."""

    def __init__(self, write: Callable[[str], None], now: Callable[[], float]) -> None:
        """Take where a line goes, without its end, and the clock in Unix seconds."""
        self._write = write
        self._now = now
        self._turns: dict[str, tuple[int, float]] = {}

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""

    def say(self, text: str) -> None:
        """Write a line of our own."""
        self._write(f"[andon] {inert_line(text, 400)}")

    def event(self, run: RunState, event: AnyEvent) -> None:
        """Write the lines of an event."""
        for line in lines_for(run, event):
            self._write(line)

    def progress(self, progress: Progress) -> None:
        """Write a line for each new turn, at most one every `PROGRESS_EVERY_S` for each job."""
        turn, at = self._turns.get(progress.job_id, (0, float("-inf")))
        now = self._now()
        if progress.turn > turn and now - at >= PROGRESS_EVERY_S:
            self._turns[progress.job_id] = (progress.turn, now)
            self._write(progress_line(progress))

    def tick(self) -> None:
        """Nothing moves by itself."""


class LiveDisplay:
    """One line a stage, redrawn in place; what needs a person's eye (a failed gate, a warning) stays above it."""

    def __init__(self, console: Console, now: Callable[[], float], *, unicode: bool) -> None:
        """Take the terminal, the clock in Unix seconds and whether the terminal shows more than ASCII."""
        self._console = console
        self._now = now
        self._unicode = unicode
        self._run: RunState | None = None
        self._progress: dict[str, Progress] = {}
        self._live = Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False, vertical_overflow="crop", transient=False
        )

    def __enter__(self) -> Self:
        """Take over the cursor."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the cursor back, with the last picture drawn."""
        self.tick()
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the picture."""
        self._console.print(Text(f"andon: {inert_line(text, 400)}"), soft_wrap=True)

    def event(self, run: RunState, event: AnyEvent) -> None:
        """Take the new state; print above the picture what should not scroll away with the next redraw."""
        self._run = run
        if event.type in {"budget_warned", "step_failed", "delivery_failed"} or (event.type == "job_judged" and event.verdict != "pass"):
            for line in lines_for(run, event):
                self._console.print(Text(line), soft_wrap=True)
        self.tick()

    def progress(self, progress: Progress) -> None:
        """Keep the newest; it is drawn at the next tick."""
        self._progress[progress.job_id] = progress

    def tick(self) -> None:
        """Redraw."""
        if self._run is not None:
            self._live.update(self.picture(), refresh=True)

    def picture(self) -> Group:
        """Return what is on the screen now; empty before the first event."""
        run = self._run
        if run is None:
            return Group()
        rows = board(run, self._progress, self._now())
        columns = _columns(self._console.width, max(len(row.stage) for row in rows))
        lines = [self._line(row, columns) for row in rows]
        return Group(*lines, Text(self._footer(run, rows), style="dim", no_wrap=True, overflow="crop"))

    def _line(self, row: BoardRow, columns: dict[str, int]) -> Text:
        """Return one stage's line: columns of fixed width, so that the picture does not jump; nothing is wrapped."""
        fancy, plain, style = _MARKS[row.state]
        cells = {
            "mark": fancy if self._unicode else plain,
            "stage": row.stage,
            "state": inert_line(state_words(row), columns["state"]),
            "time": duration(row.elapsed_s) if row.state != "waiting" and row.elapsed_s else "",
            "turn": f"turn {row.turn}" if row.turn else "",
            "tool": inert_line(_TOOL_WORDS.get(row.tool, row.tool), columns.get("tool", 0)),
            "tokens": f"{row.tokens:,} tokens" if row.tokens else "",
            "cost": money(row.cost_nano_usd) if row.cost_nano_usd else "",
        }
        styles = {"mark": style, "stage": "bold" if row.state == "running" else style, "state": style}
        line = Text(no_wrap=True, overflow="crop")
        for name, width in columns.items():
            text = cells[name]
            padded = set_cell_size(text, width) if name not in _NUMBERS else set_cell_size(" " * (width - cell_len(text)) + text, width)
            line.append(padded + "  ", style=styles.get(name, ""))
        line.rstrip()
        return line

    def _footer(self, run: RunState, rows: list[BoardRow]) -> str:
        end = run.ended_at if is_over(run) and run.ended_at else self._now()
        spent = max(run.budget.settled_nano_usd, sum(row.cost_nano_usd for row in rows))
        parts = [
            f"run {run.run_id}" + (" (replay)" if run.intent.mode == "replay" else ""),
            duration(end - run.accepted_at),
            f"{max(tokens_of(run.budget.usage), sum(row.tokens for row in rows)):,} tokens",
            f"{money(spent)} of {money(run.budget.limit_nano_usd)}",
        ]
        if not is_over(run):
            parts.append("Ctrl-C parks")
        return (" · " if self._unicode else " | ").join(parts)


def _columns(width: int, stage_chars: int) -> dict[str, int]:
    """Return the columns that fit, with their widths, in order."""
    columns = {**_WIDTHS, "stage": stage_chars}
    least, most = _STATE_CHARS
    for name in _OPTIONAL:
        if _room(columns, width) >= least:
            break
        del columns[name]
    columns["state"] = min(max(_room(columns, width), 4), most)
    return columns


def _room(columns: dict[str, int], width: int) -> int:
    """Return how many characters are left for `state`."""
    return width - sum(columns.values()) - 2 * (len(columns) - 1)


def state_words(row: BoardRow) -> str:
    """Return a row's state for a person: what it is, in which round, and what it waits for."""
    words = row.phase if row.state == "running" and row.phase not in {"", "running"} else row.state
    if row.round > 1:
        words += f", round {row.round}"
    if row.attempt > 1:
        words += f", attempt {row.attempt}"
    if row.is_parallel:
        words += " (parallel)"
    if row.state in {"waiting", "queued", "failed", "held"} and row.why:
        words += f": {inert_line(row.why, 60)}" if row.state != "waiting" else f" {inert_line(row.why, 60)}"
    return words


def display_for(stream: TextIO, now: Callable[[], float], *, no_color: bool, is_plain: bool) -> Display:
    """Return the display that suits a stream: a picture that is redrawn only on a terminal, plain lines where `is_plain` or a pipe is."""
    kept = cast(TextIO, _UntilItBreaks(stream))
    if is_plain or not stream.isatty():
        return PlainDisplay(lambda line: _write_line(kept, line), now)
    console = Console(file=kept, no_color=no_color, highlight=False, markup=False, emoji=False)
    if console.is_dumb_terminal:
        return PlainDisplay(lambda line: _write_line(kept, line), now)
    return LiveDisplay(console, now, unicode=codecs.lookup(stream.encoding or "ascii").name == "utf-8")


def _write_line(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()


class _UntilItBreaks:
    """A text stream that falls silent when its reader goes away: a closed pipe or terminal must not stop a run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_broken = False

    def write(self, text: str) -> int:
        self._quietly(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._quietly(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _quietly(self, act: Callable[[], object]) -> None:
        if not self._is_broken:
            try:
                act()
            except OSError:
                self._is_broken = True
