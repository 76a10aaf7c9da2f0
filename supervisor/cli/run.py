"""`andon run`: a request in, a landed commit out; the story only, each step is elsewhere."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.app import App, say

if TYPE_CHECKING:
    from supervisor.cli.outcome import Ending
    from supervisor.cli.submission import Options
    from supervisor.config import Config

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("request", required=False)
@click.option(
    "--repo", type=click.Path(path_type=Path), metavar="PATH", help="Repository to work for; only read. Default: a copy of the sample."
)
@click.option("--spec", type=_FILE, metavar="FILE", help="A finished specification; the spec stage is skipped.")
@click.option("--pipeline", type=_FILE, metavar="FILE", help="Stages and limits, instead of .andon/pipeline.yaml.")
@click.option("--base", metavar="REV", help="Commit to start from. Default: HEAD.")
@click.option("--slug", metavar="SLUG", help="Name of the feature; its branch is andon/SLUG.")
@click.option("--budget", metavar="USD", help="Stop, work kept, before more is spent.  [default: 50]")
@click.option("--mode", type=click.Choice(["parallel", "sequential"]), help="Whether independent stages run at once.  [default: parallel]")
@click.option("--priority", type=click.IntRange(1, 10), metavar="N", help="1 to 10; 10 is the most urgent.  [default: 5]")
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Keep the model's answers as a cassette.")
@click.option("--replay", type=_FILE, metavar="FILE", help="Take the model's answers from a cassette.")
@click.option("--no-baseline", is_flag=True, help="Do not run the checks on the base commit first.")
@click.option("--yes", is_flag=True, help="Agree to what a set-up asks, such as the repository's own image; never to a gate.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout at the end, everything else on stderr.")
@click.pass_obj
def command(app: App, /, budget: str | None, mode: str | None, priority: int | None, no_baseline: bool, **given: Any) -> int:
    """Take a request through the line, to a landed commit.

    REQUEST is text; `-` reads it from standard input. Without --repo, a copy of the shipped sample is worked on; without a key, the
    shipped sample feature is replayed from a recording.
    """
    from supervisor.cli.outcome import Ending
    from supervisor.cli.submission import Options

    options = Options(**given)
    with Ending(as_json=options.as_json, repository=str(options.repo.absolute()) if options.repo else None) as ending:
        config = app.config(budget_usd=budget, mode=mode, priority=priority, baseline=False if no_baseline else None)
        return asyncio.run(_run(app, config, options, ending))


async def _run(app: App, config: "Config", options: "Options", ending: "Ending") -> int:
    from supervisor.api.run_files import files_of
    from supervisor.api.submitted import remember
    from supervisor.cli import outcome, submission
    from supervisor.cli.following import followed
    from supervisor.cli.recording import keep
    from supervisor.config import StateDirectory
    from supervisor.errors import error_for

    wanted = submission.read_wanted(options, config, say)
    state = StateDirectory.open(config.state_directory)
    repository = await submission.repository_of(options, state)
    base = await submission.base_of(options, repository, state)
    for notice in base.notices:
        say(notice)
    bootstrap = app.bootstrap()
    await bootstrap.ensure_host(config, say)
    async with bootstrap.connect(config, say) as client:
        request = await submission.request_for(client, config, options, wanted, base, repository)
        reply = await client.submit(request)
        if reply.run_id is None:
            raise error_for(reply.exit_code, reply.error)
        fleet = str(config.nats_url or config.nats_creds) if config.is_remote else ""
        remember(state.run(reply.run_id), submission.submitted_as(request, options, fleet))
        for notice in reply.notices:
            say(notice)
        run = await followed(app, client, files_of(state, reply.run_id), ending)
        if options.record is not None:
            await keep(client, run, options.record)
        return outcome.finish(config, files_of(state, reply.run_id), run, ending)
