"""`andon doctor`: what this host has and lacks, one line each with what to do; changes nothing."""

import asyncio
import json

import click

from supervisor.cli.app import App

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def command(app: App, as_json: bool) -> int:
    """Check what Andon needs on this host. Exit code 5 if something it cannot do without is missing."""
    from supervisor.api.inert import inert_line
    from supervisor.errors import ExitCode

    config = app.config()
    probes = asyncio.run(app.bootstrap().doctor_probes(config))
    if as_json:
        click.echo(json.dumps([probe.model_dump(mode="json") for probe in probes], indent=2))
    width = max((len(probe.name) for probe in probes), default=0)
    for probe in () if as_json else probes:
        mark = f"{probe.status:<4}" if config.no_color else click.style(f"{probe.status:<4}", fg=_COLOURS[probe.status])
        click.echo(f"{mark}  {probe.name:<{width}}  {inert_line(probe.detail, 400)}")
        if probe.advice:
            click.echo(f"{'':<4}  {'':<{width}}  -> {inert_line(probe.advice, 400)}")
    return ExitCode.INFRASTRUCTURE if any(probe.status == "fail" for probe in probes) else ExitCode.DONE
