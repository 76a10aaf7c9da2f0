"""`andon list`: the runs of this host from their files, or with --fleet every run from the event log; starts nothing."""

import json
from typing import TYPE_CHECKING

import click

from supervisor.cli.app import App

if TYPE_CHECKING:
    from supervisor.api.views import ListRow


@click.command()
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many runs, newest first.")
@click.option("--fleet", "--all", "is_fleet", is_flag=True, help="Every run of the fleet, also those that other hosts submitted.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def command(app: App, limit: int, is_fleet: bool, as_json: bool) -> None:
    """Show the runs of this host, newest first; with --fleet those of all hosts."""
    from supervisor.api.inert import inert_line

    found = _rows(app, limit, is_fleet=is_fleet)
    if as_json:
        click.echo(json.dumps([row.model_dump(mode="json") for row in found], indent=2))
        return
    if not found:
        click.echo('no runs yet; begin with: andon run "what you want"', err=True)
        return
    width = max(len(row.feature) for row in found)
    for row in found:
        when = row.accepted_at[:16].replace("T", " ")
        click.echo(
            f"{row.run_id}  {when}  {row.state:<9}  ${row.cost_usd:>7.2f}  {row.feature:<{width}}  {inert_line(row.request, 60)}".rstrip()
        )


def _rows(app: App, limit: int, *, is_fleet: bool) -> "list[ListRow]":
    if is_fleet:
        from supervisor.cli.afar import rows_afar

        return rows_afar(app, limit)
    if app.config().is_remote:
        from supervisor.cli.afar import refresh_open_runs

        refresh_open_runs(app, limit)
    from supervisor.api.run_files import rows

    return list(rows(app.reading(), limit))
