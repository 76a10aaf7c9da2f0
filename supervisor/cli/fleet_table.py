"""How `andon fleet` is drawn: a table on a terminal, one plain line an executor elsewhere; the rows come from `api.fleet`."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandbox.contract.wire import PROTOCOL_VERSION
from supervisor.api.fleet import ExecutorRow, label_words
from supervisor.api.inert import inert_line
from supervisor.api.report import duration

_STYLES = {"ready": "green", "full": "cyan", "held": "yellow", "refused": "red", "absent": "dim"}
_WIDE_CHARS = 100
"""From this width on, release and host have columns of their own."""


def print_table(rows: Sequence[ExecutorRow], console: Console) -> None:
    """Draw the executors, and below what a person should know about single ones."""
    is_wide = console.width >= _WIDE_CHARS
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("executor", "state", "busy", "pools", "labels", *(("release", "host") if is_wide else ()), "seen"):
        table.add_column(heading, justify="right" if heading in {"busy", "seen"} else "left", overflow="fold")
    for row in rows:
        cells = _cells(row)
        wide = [cells["release"], cells["host"]] if is_wide else []
        shown = [
            cells["executor"],
            cells["state"],
            cells["busy"],
            cells["pools"].replace(",", " "),
            cells["labels"].replace(",", " "),
            *wide,
            cells["seen"],
        ]
        styles = {1: _STYLES[row.standing]}
        table.add_row(*(Text(text, style=styles.get(column, "")) for column, text in enumerate(shown)))
    console.print(table)
    for note in notes(rows):
        console.print(Text(note), soft_wrap=True)


def plain_lines(rows: Sequence[ExecutorRow]) -> list[str]:
    """Return the same for a pipe: fields in columns, then the notes."""
    cells = [_cells(row) for row in rows]
    widths = {name: max(len(each[name]) for each in cells) for name in cells[0]} if cells else {}
    lines = ["  ".join(f"{each[name]:<{widths[name]}}" for name in widths).rstrip() for each in cells]
    return [*lines, *notes(rows)]


def notes(rows: Sequence[ExecutorRow]) -> list[str]:
    """Return one line for each thing that keeps executors from work or that their hosts cannot give, with their names."""
    named: dict[str, list[str]] = {}
    for row in rows:
        for text in _notes_of(row):
            named.setdefault(text, []).append(row.executor)
    return [f"{', '.join(names)}: {text}" for text, names in named.items()]


def _notes_of(row: ExecutorRow) -> Iterator[str]:
    if row.standing == "refused":
        newer = "upgrade andon here" if (row.protocol or 0) > PROTOCOL_VERSION else "upgrade andon on its host"
        yield f"speaks protocol {row.protocol}, this andon {PROTOCOL_VERSION}; {newer}"
    if row.held:
        yield f"takes no jobs: {inert_line(row.held, 400)}"
    if row.model == "none":
        yield "has no key of the provider, so no live run can use it"
    yield from (f"missing: {inert_line(each, 400)}" for each in row.missing)


def _cells(row: ExecutorRow) -> dict[str, str]:
    return {
        "executor": row.executor,
        "state": row.standing,
        "busy": f"{row.busy}/{row.slots}" if row.slots is not None else "-",
        "pools": ",".join(row.pools),
        "labels": inert_line(label_words(row.labels), 400) or "-",
        "release": inert_line(row.release or "-", 40) + ("!" if row.standing == "refused" else ""),
        "host": inert_line(row.host or "-", 64),
        "seen": f"{duration(row.age_s)} ago" if row.age_s is not None else "-",
    }
