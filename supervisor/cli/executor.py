"""`andon executor`: an executor on this host; only hands its arguments on to `sandbox.executor`, which owns them."""

import importlib

import click


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENTS]...")
def command(arguments: tuple[str, ...]) -> int:
    """Run an executor on this host."""
    returned = importlib.import_module("sandbox.executor.__main__").main(list(arguments))
    return returned if isinstance(returned, int) else 0
