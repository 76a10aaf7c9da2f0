"""`andon history`: what runs came to over time, from the history in SQL; reads only and starts nothing."""

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, get_args

import click

from supervisor.cli.app import App

if TYPE_CHECKING:
    from supervisor.store.history.questions import PastRun, Question, Sum

_STATES = ("queued", "running", "waiting", "parked", "landed", "failed", "cancelled")
_SPANS_S = {"m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_STYLES = {"landed": "green", "failed": "red", "cancelled": "dim", "parked": "yellow", "waiting": "yellow", "running": "cyan"}
_EXECUTORS_CHARS_MAX = 24
_WIDE_CHARS = 100
"""From this width on, tokens and executors have columns of their own."""


@click.command()
@click.option("--feature", metavar="F", help="Only this feature; * stands for anything.")
@click.option("--state", type=click.Choice(_STATES), help="Only runs in this state.")
@click.option("--since", metavar="WHEN", help="Only runs accepted since then: 90m, 12h, 7d, 4w, or a date like 2026-11-01.")
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many runs, newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_obj
def command(app: App, feature: str | None, state: str | None, since: str | None, limit: int, as_json: bool) -> None:
    """Show what runs came to: cost, time, reworks."""
    from supervisor.store.history.questions import Question, Sum, ask

    question = Question(feature=feature, state=_state(state), since=since_of(since, app.now()) if since else None, limit=limit)
    config = app.config()
    found = ask(app.reading().history, config.database_url, question)
    rows, total = found or ([], Sum())
    if as_json:
        click.echo(json.dumps({"runs": [_object(row) for row in rows], "summary": _summary_object(total)}, indent=2))
    elif not rows:
        click.echo(_nothing(question, is_kept=found is not None), err=True)
    else:
        _print(rows, app.now(), no_color=config.no_color)
        click.echo(_summary(total, len(rows)))


def since_of(text: str, now: float) -> float:
    """Return Unix seconds for a span before now (`90m`, `12h`, `7d`, `4w`) or a local date and time in ISO 8601.

    Raises:
        UsageError: It is neither.
    """
    from supervisor.errors import UsageError

    span = re.fullmatch(r"([0-9]{1,6})([mhdw])", text.strip())
    if span:
        return now - int(span[1]) * _SPANS_S[span[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"--since {text!r} is neither a span like 90m, 12h, 7d, 4w nor a date like 2026-11-01 or 2026-11-01T09:30"
        ) from None


def _state(given: str | None) -> Any:
    from supervisor.pipeline.run import State

    return given if given in get_args(State) else None


def _nothing(question: "Question", *, is_kept: bool) -> str:
    if not is_kept:
        return "no history is kept here yet; a supervisor makes it with its first run"
    asked = question.feature is not None or question.state is not None or question.since is not None
    return "no run of that kind is in the history" if asked else "no run is in the history yet"


def _print(rows: "list[PastRun]", now: float, *, no_color: bool) -> None:
    import sys

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [_cells(row, now) for row in rows]
    console = Console(no_color=no_color)
    if not sys.stdout.isatty():
        widths = {name: max(len(each[name]) for each in cells) for name in cells[0]}
        for each in cells:
            click.echo("  ".join(f"{each[name]:<{widths[name]}}" for name in widths).rstrip())
        return
    names = [name for name in cells[0] if console.width >= _WIDE_CHARS or name not in {"tokens", "executors"}]
    widths = {name: max(len(each[name]) for each in (*cells, {name: name})) for name in names}
    if "executors" in widths:
        widths["executors"] = min(widths["executors"], _EXECUTORS_CHARS_MAX)
    rest = console.width - 3 * len(names) - sum(width for name, width in widths.items() if name != "feature")
    widths["feature"] = max(min(widths["feature"], rest), len("feature"))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in names:
        is_number = name in {"cost", "tokens", "time", "reworks"}
        table.add_column(name, justify="right" if is_number else "left", overflow="ellipsis", no_wrap=True, width=widths[name])
    for row, each in zip(rows, cells, strict=True):
        table.add_row(*(Text(each[name], style=_STYLES.get(row.state, "") if name == "state" else "") for name in names))
    console.print(table)


def _cells(row: "PastRun", now: float) -> dict[str, str]:
    from supervisor.api.report import duration, money
    from supervisor.api.views import tokens_of

    accepted = datetime.fromtimestamp(row.accepted_at)
    is_recent = now - row.accepted_at < 300 * 86_400
    return {
        "run": row.run_id,
        "accepted": f"{accepted:%m-%d %H:%M}" if is_recent else f"{accepted:%Y-%m-%d}",
        "state": row.state,
        "cost": money(row.cost_nano_usd),
        "tokens": _count(tokens_of(row.usage)),
        "time": duration(row.duration_s),
        "reworks": str(row.reworks),
        "executors": ",".join(row.executors) or "-",
        "feature": row.feature + (" (replay)" if row.replay else ""),
    }


def _count(tokens: int) -> str:
    for factor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if tokens >= factor:
            return f"{tokens / factor:.1f}{unit}"
    return str(tokens)


def _summary(total: "Sum", shown: int) -> str:
    from supervisor.api.report import money

    more = f", the newest {shown} shown" if shown < total.runs else ""
    counted = f"{total.runs:,} run{'s' if total.runs != 1 else ''}{more}"
    landed = f"{total.landed:,} landed ({round(100 * total.landed / total.runs)} %)"
    return f"{counted}, {landed}, {money(total.cost_nano_usd)} in all"


def _object(row: "PastRun") -> dict[str, Any]:
    from supervisor.api.views import iso, usd

    return {
        "run_id": row.run_id,
        "feature": row.feature,
        "state": row.state,
        "exit_code": row.exit_code,
        "reason": row.end_reason,
        "accepted_at": iso(row.accepted_at),
        "duration_s": round(row.duration_s, 3),
        "cost_usd": usd(row.cost_nano_usd),
        "usage": row.usage.model_dump(),
        "reworks": row.reworks,
        "executors": row.executors,
        "branch": row.branch,
        "commit": row.commit,
        "replay": row.replay,
        "repo": row.repository,
        "trace_id": row.trace_id,
        "request": row.request.split("\n", 1)[0][:200],
    }


def _summary_object(total: "Sum") -> dict[str, Any]:
    from supervisor.api.views import usd

    share = round(total.landed / total.runs, 4) if total.runs else None
    return {"runs": total.runs, "landed": total.landed, "landed_share": share, "cost_usd": usd(total.cost_nano_usd)}
