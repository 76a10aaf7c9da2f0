"""`andon doctor`: what this host has and lacks, one line each with what to do; with `--prove`, its walls attacked, one line each."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from supervisor.cli.app import App, say

if TYPE_CHECKING:
    from supervisor.api.walls import WallProof
    from supervisor.config import Config

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_MARK_CHARS = 16


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; with --prove an object.")
@click.option("--prove", "is_proof", is_flag=True, help="Let sandboxes attack themselves and see that their walls hold.")
@click.option("--runtime", metavar="NAME", help="With --prove: of the sandboxes, another of the engine's runtimes than runc.")
@click.pass_obj
def command(app: App, as_json: bool, is_proof: bool, runtime: str | None) -> int:
    """Check what Andon needs on this host. Exit code 5 if something it cannot do without is missing.

    With --prove, exit code 0 only if every wall held, 1 if one did not, 5 if it could not be tried.
    """
    from supervisor.errors import UsageError

    if is_proof:
        return _prove(app, runtime, as_json=as_json)
    if runtime is not None:
        raise UsageError("--runtime goes with --prove: it names the runtime whose walls are tried")
    return _look(app, as_json=as_json)


def _look(app: App, *, as_json: bool) -> int:
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


def _prove(app: App, runtime: str | None, *, as_json: bool) -> int:
    from supervisor.errors import ExitCode

    config = app.config()
    began = time.monotonic()
    proofs = asyncio.run(app.bootstrap().prove(config, runtime, say))
    if as_json:
        click.echo(json.dumps({"probes": [proof.model_dump(mode="json") for proof in proofs]}, indent=2))
    else:
        _show(proofs, config)
        held, controlled = sum(proof.held for proof in proofs), sum(proof.held and proof.control for proof in proofs)
        took_s = time.monotonic() - began
        click.echo(f"{held} of {len(proofs)} held, {controlled} of them beside an attack that succeeds without the wall; {took_s:.0f} s")
    return ExitCode.DONE if all(proof.held for proof in proofs) else ExitCode.GATE_FAILED


def _show(proofs: Sequence["WallProof"], config: "Config") -> None:
    """Print a line for each probe, and below it what was seen where that is not the expected."""
    from supervisor.api.inert import inert_line

    width = max((len(proof.id) for proof in proofs), default=0)
    for proof in proofs:
        differs = proof.held and proof.detail.startswith("differs: ")  # it succeeded, and under this runtime that breaks no promise
        word = "NOT held" if not proof.held else "differs" if differs else "held" if proof.control else "held, no control"
        colour = "red" if not proof.held else "green" if word == "held" else "yellow"
        mark = f"{word:<{_MARK_CHARS}}" if config.no_color else click.style(f"{word:<{_MARK_CHARS}}", fg=colour)
        click.echo(f"{mark}  {proof.id:<{width}}  {inert_line(f'{proof.promise} | tried: {proof.tried}', 400)}")
        if word != "held":
            click.echo(f"{'':<{_MARK_CHARS}}  {'':<{width}}  -> {inert_line(proof.detail, 400)}")
