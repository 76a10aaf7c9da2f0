"""`andon apply RUN`: bring a landed run's branch into a repository of this host, now or once more; harmless twice."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supervisor.cli.app import App, say
from supervisor.cli.arguments import files_named, run_argument

if TYPE_CHECKING:
    from supervisor.api.run_files import RunFiles
    from supervisor.pipeline.run import RunState


@click.command()
@run_argument(required=True)
@click.option("--repo", type=click.Path(path_type=Path), metavar="PATH", help="The repository. Default: the one the run was submitted for.")
@click.pass_obj
def command(app: App, run_id: str, repo: Path | None) -> None:
    """Make the branch of a landed run in its repository; nothing else there changes."""
    from supervisor.cli.bringing_home import repository_for

    files = files_named(app, run_id, acts=True)
    run = files.run()
    _check_landed(run)
    repository = repository_for(files, run, repo)
    asyncio.run(_apply(app, files, run, repository))
    click.echo(f"{run.branch} is in {repository}: {run.landed_commit}")


def _check_landed(run: "RunState") -> None:
    from supervisor.errors import UsageError

    if run.landed_commit is None:
        next_step = (
            "andon why" if run.state in {"queued", "running", "waiting"} else "andon resume" if run.state == "parked" else "andon logs"
        )
        raise UsageError(f"run {run.run_id} has not landed, it is {run.state}: there is nothing to apply; see: {next_step} {run.run_id}")


async def _apply(app: App, files: "RunFiles", run: "RunState", repository: Path) -> None:
    from supervisor.cli.afar import fetch
    from supervisor.cli.bringing_home import delivered_from_mirror, delivered_from_store, report_of, told
    from supervisor.errors import AndonError, BrokerError

    async with app.bootstrap().look(app.config()) as client:
        problem: AndonError | None = None
        try:
            if files.mirror is not None:
                await delivered_from_mirror(Path(files.mirror), run, repository)
            elif client is not None:
                await delivered_from_store(client, run, repository)
            else:
                raise BrokerError(f"nothing here holds run {run.run_id}: neither a mirror nor a running stack")
        except AndonError as error:
            problem = error
        if client is not None and not run.delivered:
            await told(client, report_of(run, problem))
            if files.is_afar:
                await fetch(client, files, run.run_id, logs=False)
                files.write_result(files.run())
    if problem is not None:
        say(f"nothing in {repository} was changed; when that is settled: andon apply {run.run_id} [--repo PATH]")
        raise problem
