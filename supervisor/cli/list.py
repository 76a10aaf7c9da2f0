"""`andon list`: the runs of this host, from their files; starts nothing."""

import json

import click

from supervisor.cli.app import App


@click.command()
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many runs, newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def command(app: App, limit: int, as_json: bool) -> None:
    """Show the runs of this host, newest first."""
    from supervisor.api.inert import inert_line
    from supervisor.api.run_files import rows

    found = list(rows(app.reading(), limit))
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
