"""`andon status [RUN]`: where a run is and why it waits, from its files; starts nothing."""

from typing import TYPE_CHECKING

import click

from supervisor.cli.app import App
from supervisor.cli.arguments import files_named, run_argument

if TYPE_CHECKING:
    from supervisor.api.views import BoardRow
    from supervisor.pipeline.run import RunState


@click.command()
@run_argument(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the result object, as `run --json` does.")
@click.pass_obj
def command(app: App, run_id: str | None, as_json: bool) -> None:
    """Show where a run is, and why it waits. Without RUN: the newest."""
    from supervisor.api.inert import inert_line
    from supervisor.api.lines import missing_in
    from supervisor.api.views import board, is_over
    from supervisor.cli import outcome

    files = files_named(app, run_id)
    run = files.run()
    if as_json:
        outcome.print_json(outcome.current(files, run))
        return
    _print_head(run)
    for row in board(run, {}, app.now()):
        click.echo(_line(row))
    for line in missing_in(run):
        click.echo(f"  missing: {inert_line(line, 300)}")
    if is_over(run):
        outcome.print_summary(app.config(), files, run)
    elif not files.is_afar and not app.is_anybody_at_work():
        click.echo(f"\n  nobody works on it now, the stack is not running; go on with: andon resume {run.run_id}")


def _print_head(run: "RunState") -> None:
    from supervisor.api.inert import inert_line
    from supervisor.api.report import money
    from supervisor.api.views import is_over

    replay = " (replay)" if run.intent.mode == "replay" else ""
    click.echo(f"{run.run_id}  {run.state}  {run.intent.feature}{replay}")
    click.echo(f"  {inert_line(run.intent.request, 120)}")
    click.echo(f"  {inert_line(run.intent.repository, 300)}  on {inert_line(run.intent.base_name)} ({run.intent.base_commit[:12]})")
    click.echo(f"  {money(run.budget.settled_nano_usd)} of {money(run.budget.limit_nano_usd)} spent")
    if run.trace_url and not is_over(run):  # the closing lines name it, too
        click.echo(f"  {inert_line(run.trace_url, 300)}")
    click.echo()


def _line(row: "BoardRow") -> str:
    from supervisor.api.report import duration, money
    from supervisor.cli.live import state_words

    time = duration(row.elapsed_s) if row.elapsed_s else ""
    cost = money(row.cost_nano_usd) if row.cost_nano_usd else ""
    return f"  {row.stage:<16} {time:>12} {cost:>9}  {state_words(row)}".rstrip()
