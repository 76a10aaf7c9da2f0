"""`andon down`: stop the embedded stack; runs under way wait for the next one."""

import asyncio

import click

from supervisor.cli.app import App, say


@click.command()
@click.pass_obj
def command(app: App) -> None:
    """Stop the embedded stack. Runs under way wait and go on when it starts again."""
    click.echo(asyncio.run(app.bootstrap().down(app.config(), say)))
