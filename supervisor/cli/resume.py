"""`andon resume RUN`: go on with a parked run, or with one whose supervisor died."""

import asyncio
from typing import TYPE_CHECKING

import click

from supervisor.cli.app import App, say
from supervisor.cli.arguments import files_named, run_argument

if TYPE_CHECKING:
    from supervisor.api.run_files import RunFiles
    from supervisor.cli.outcome import Ending
    from supervisor.pipeline.run import RunState


@click.command()
@run_argument(required=True)
@click.option("--budget", metavar="USD", help="A new budget for the whole run, what was spent included.")
@click.option("--force", is_flag=True, help="Also if the --spec or --pipeline it was given has changed since.")
@click.option("--json", "as_json", is_flag=True, help="Print the result object on stdout at the end, everything else on stderr.")
@click.pass_obj
def command(app: App, run_id: str, budget: str | None, force: bool, as_json: bool) -> int:
    """Go on with a parked run; work that is done is not done again."""
    from supervisor.api.submitted import check_unchanged
    from supervisor.cli import outcome

    with outcome.Ending(as_json=as_json) as ending:
        files = files_named(app, run_id, acts=True)
        run = files.run()
        ending.see(run)
        if run.state in {"failed", "cancelled"} or run.delivered:
            return _already_over(app, files, run, ending)
        if not force and run.state != "landed":
            for notice in check_unchanged(files.directory):
                say(notice)
        return asyncio.run(_resume(app, files, run, _nano_usd(budget), ending))


def _nano_usd(budget: str | None) -> int | None:
    from supervisor.config import nano_usd, parse_usd
    from supervisor.errors import UsageError

    if budget is None:
        return None
    try:
        return nano_usd(parse_usd(budget))
    except ValueError as error:
        raise UsageError(f"flag --budget: {error}") from None


async def _resume(app: App, files: "RunFiles", run: "RunState", budget_nano_usd: int | None, ending: "Ending") -> int:
    from supervisor.cli import outcome
    from supervisor.cli.afar import fetch
    from supervisor.cli.bringing_home import bring_home, repository_for
    from supervisor.cli.following import followed
    from supervisor.errors import error_for
    from supervisor.pipeline.submit import ResumeRequest

    config, bootstrap = app.config(), app.bootstrap()
    await bootstrap.ensure_host(config, say)
    async with bootstrap.connect(config, say) as client:
        if run.state == "landed" and run.intent.delivery == "client":
            await bring_home(client, run, repository_for(files, run, None))
            await fetch(client, files, run.run_id, logs=True)
            return outcome.finish(config, files, files.run(), ending)
        answer = await client.resume(ResumeRequest(run_id=run.run_id, budget_nano_usd=budget_nano_usd))
        if not answer.ok:
            raise error_for(answer.exit_code, answer.error)
        last = await followed(app, client, files, ending, resumed=run)
        return outcome.finish(config, files, last, ending)


def _already_over(app: App, files: "RunFiles", run: "RunState", ending: "Ending") -> int:
    """Show how the run ended; there is nothing to go on with."""
    from supervisor.cli import outcome

    say(f"run {run.run_id} is {run.state} already; there is nothing to go on with")
    if ending.as_json:
        ending.print(outcome.current(files, run))
    else:
        outcome.print_summary(app.config(), files, run)
    return outcome.exit_code(run)
