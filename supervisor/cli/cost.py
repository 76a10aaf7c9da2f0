"""`andon cost [RUN] [--by …]`: what model calls cost, from the gateway's records; reads only and starts nothing."""

import json
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.app import App
from supervisor.cli.arguments import files_named, run_argument

if TYPE_CHECKING:
    from supervisor.pipeline.costs import By, Call, CostRow


@click.command()
@run_argument(required=False)
@click.option("--by", type=click.Choice(("stage", "model", "feature", "day")), help="How to sum.  [default: stage of a RUN, else feature]")
@click.option("--since", metavar="WHEN", help="Only calls since then: 90m, 12h, 7d, 4w, or a date like 2026-11-01.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_obj
def command(app: App, run_id: str | None, by: "By | None", since: str | None, as_json: bool) -> None:
    """Show what model calls cost, of a run or of all.

    Each figure is the sum of the gateway's records of single calls, exactly. A call whose usage was lost is charged in full.
    """
    from supervisor.cli.history import since_of
    from supervisor.pipeline.costs import costs_by

    how: By = by or ("stage" if run_id else "feature")
    after = since_of(since, app.now()) if since else 0.0
    rows = costs_by(_calls(app, run_id, after), how)
    if as_json:
        click.echo(json.dumps({"by": how, "rows": [_object(row) for row in rows[:-1]], "total": _object(rows[-1])}, indent=2))
    elif not rows[-1].calls:
        click.echo("no model call was paid for", err=True)
    else:
        _print(rows, how)


def _calls(app: App, run_id: str | None, since: float) -> "list[Call]":
    """Return a run's calls from its own log, those of all runs from the history, which also knows runs whose files are gone."""
    from supervisor.pipeline.costs import calls_of
    from supervisor.store.history.questions import paid_calls

    if run_id is not None:
        return [call for call in calls_of(files_named(app, run_id).events()) if call.at >= since]
    return paid_calls(app.reading().history, app.config().database_url, since) or []


def _object(row: "CostRow") -> dict[str, Any]:
    return {
        "name": row.name,
        "calls": row.calls,
        "unsettled_calls": row.unsettled,
        "usage": row.usage.model_dump(),
        "nano_usd": row.nano_usd,
        "cost_usd": f"{row.nano_usd // 10**9}.{row.nano_usd % 10**9:09d}",
    }


def _print(rows: "list[CostRow]", by: str) -> None:
    from supervisor.api.inert import inert_line
    from supervisor.api.views import tokens_of

    head = (by, "calls", "tokens", "cost")
    cells = [(inert_line(row.name, 60), str(row.calls), f"{tokens_of(row.usage):,}", f"${row.nano_usd / 1e9:,.4f}") for row in rows]
    widths = [max(len(line[column]) for line in (head, *cells)) for column in range(len(head))]
    for line in (head, *cells):
        click.echo(f"{line[0]:<{widths[0]}}  " + "  ".join(f"{text:>{width}}" for text, width in zip(line[1:], widths[1:], strict=True)))
    if lost := rows[-1].unsettled:
        click.echo(f"{lost} {'call' if lost == 1 else 'calls'} charged in full: the usage was lost")
