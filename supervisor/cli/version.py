"""`andon version`: which release this is, and which protocol it speaks."""

import importlib.metadata
import json
import platform

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool = False) -> None:
    """Show the version."""
    from sandbox.contract.wire import PROTOCOL_VERSION

    facts = {"andon": _release(), "protocol": PROTOCOL_VERSION, "python": platform.python_version()}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo(f"andon {facts['andon']} (protocol {facts['protocol']}, Python {facts['python']})")


def _release() -> str:
    try:
        return importlib.metadata.version("andon")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
