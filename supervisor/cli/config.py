"""`andon config show`: every setting, its value and where it came from; keys are never shown."""

import json

import click

from supervisor.cli.app import App


@click.group()
def command() -> None:
    """Show the configuration and where it came from."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def show(app: App, as_json: bool) -> None:
    """Show every setting, its value and its origin: a flag beats the environment beats the file beats the default."""
    rows = app.config().rows()
    if as_json:
        click.echo(json.dumps({key: {"value": value, "origin": origin} for key, value, origin in rows}, indent=2))
        return
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for key, value, origin in rows:
        click.echo(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}")
