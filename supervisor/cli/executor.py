"""`andon executor`: an executor on this host; only hands its arguments on to `sandbox.executor`, which owns them."""

import importlib

import click

from supervisor.cli.app import App


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
@click.pass_obj
def command(app: App, arguments: tuple[str, ...]) -> int:
    """Join a fleet and run its jobs."""
    from supervisor.config import process_environment

    program = importlib.import_module("sandbox.executor.__main__")
    returned: int = program.main(list(arguments), process_environment() if app.environ is None else app.environ)
    return returned
