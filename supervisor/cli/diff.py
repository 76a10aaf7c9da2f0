"""`andon diff [RUN]`: what a run changed against its base, from mirror or object store; starts nothing, touches no checkout."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supervisor.cli.app import App
from supervisor.cli.arguments import files_named, run_argument

if TYPE_CHECKING:
    from supervisor.api.run_files import RunFiles
    from supervisor.pipeline.run import RunState

PATCH_BYTES_MAX = 64 << 20


@click.command()
@run_argument(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: run_id, base, commit, landed, patch.")
@click.pass_obj
def command(app: App, run_id: str | None, as_json: bool) -> None:
    """Show what a run changed: what landed, else what was written last. Without RUN: the newest."""
    files = files_named(app, run_id)
    run = files.run()
    commit = _commit_of(run)
    patch = asyncio.run(_patch_afar(app, run) if files.is_afar else _patch(files, run, commit)) if commit else ""
    if as_json:
        landed = run.landed_commit is not None
        facts = {"run_id": run.run_id, "base": run.intent.base_commit, "commit": commit, "landed": landed}
        click.echo(json.dumps({**facts, "patch": patch.encode("utf-8", "replace").decode()}))
    elif not patch:
        click.echo(f"andon: run {run.run_id} has changed nothing yet", err=True)
    else:
        _print_patch(patch)


def _commit_of(run: "RunState") -> str | None:
    """Return the landed commit, else the newest the gates have seen."""
    if run.landed_commit:
        return run.landed_commit
    commits = [job.commit for job in run.jobs.values() if job.commit and job.kind == "agent" and job.commit != run.intent.base_commit]
    return commits[-1] if commits else None


async def _patch(files: "RunFiles", run: "RunState", commit: str) -> str:
    from sandbox.mirror import Mirror
    from supervisor.errors import UsageError

    if files.mirror is None:
        raise UsageError(f"the supervisor's mirror is not on this host; the run was driven elsewhere, look at branch {run.branch}")
    mirror = await Mirror.open(Path(files.mirror))
    return await mirror.patch(run.intent.base_commit, commit, PATCH_BYTES_MAX)


async def _patch_afar(app: App, run: "RunState") -> str:
    """Return the same from what a fleet elsewhere keeps of a landed run, in a mirror that is gone afterwards."""
    from sandbox.contract.tree_rules import TreeLimits
    from sandbox.mirror import Mirror
    from supervisor.cli.afar import fleet
    from supervisor.errors import UsageError

    if run.landed_bundle is None:
        raise UsageError(f"run {run.run_id} has not landed, and what it wrote so far is only in its supervisor's mirror, on another host")
    async with fleet(app) as client:
        base, bundle = await client.get_blob(run.intent.base_pack), await client.get_blob(run.landed_bundle)
    with tempfile.TemporaryDirectory(prefix="andon-diff-") as directory:
        mirror = await Mirror.open(Path(directory) / "mirror.git")
        await mirror.import_base(run.intent.base_commit, base)
        landed = await mirror.receive(bundle, run.intent.base_commit, TreeLimits())
        return await mirror.patch(run.intent.base_commit, landed, PATCH_BYTES_MAX)


def _print_patch(patch: str) -> None:
    """Take nothing out for a pipe (`git apply` reads it), but write nothing to a terminal that moves its cursor."""
    from supervisor.api.inert import inert

    click.echo(inert(patch) if sys.stdout.isatty() else patch.encode("utf-8", "surrogateescape"), nl=False)
