"""`andon up`: start the embedded stack and keep it, so that runs start at once (DECISIONS G9)."""

import asyncio

import click

from supervisor.cli.app import App, say


@click.command()
@click.pass_obj
def command(app: App) -> None:
    """Start the embedded stack and keep it running: broker, supervisor and executor, until `andon down`."""
    click.echo(asyncio.run(_up(app)))


async def _up(app: App) -> str:
    config, bootstrap = app.config(), app.bootstrap()
    await bootstrap.ensure_host(config, say)
    return await bootstrap.up(config, say)
