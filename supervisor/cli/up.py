"""`andon up`: start the embedded stack and keep it, so that runs start at once (DECISIONS G9)."""

import asyncio

import click

from supervisor.cli.app import App, say


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Serve other hosts too, e.g. 0.0.0.0:4222; beyond this host always with TLS.")
@click.option("--advertise", metavar="NAME", help="The name or address by which other hosts reach this one.  [default: its own name]")
@click.pass_obj
def command(app: App, listen: str | None, advertise: str | None) -> None:
    """Start the embedded stack and keep it running: broker, supervisor and executor, until `andon down`."""
    click.echo(asyncio.run(_up(app, listen, advertise)))


async def _up(app: App, listen: str | None, advertise: str | None) -> str:
    from supervisor.errors import UsageError

    config, bootstrap = app.config(listen=listen, advertise=advertise), app.bootstrap()
    if config.is_remote:
        raise UsageError("NATS_URL or NATS_CREDS names a fleet elsewhere, which is not this host's to start; unset them for a stack here")
    await bootstrap.ensure_host(config, say)
    return await bootstrap.up(config, say)
