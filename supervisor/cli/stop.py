"""`andon stop RUN`: cancel a run, or park it; what was written is kept either way."""

import asyncio

import click

from supervisor.cli.app import App, say
from supervisor.cli.arguments import files_named, run_argument


@click.command()
@run_argument(required=True)
@click.option("--park", is_flag=True, help="Let it wait instead: `andon resume RUN` goes on.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@click.pass_obj
def command(app: App, run_id: str, park: bool, reason: str) -> None:
    """Stop a run. Nothing lands; everything written is on refs/andon/salvage/ of the mirror."""
    from supervisor.api.views import is_over

    run = files_named(app, run_id, acts=True).run()
    if is_over(run) and (park or run.state != "parked"):
        click.echo(f"run {run.run_id} is {run.state} already")
        return
    asyncio.run(_stop(app, run.run_id, "park" if park else "cancel", reason))
    click.echo(f"run {run.run_id} is being {'parked' if park else 'cancelled'}; andon status {run.run_id}")


async def _stop(app: App, run_id: str, how: str, reason: str) -> None:
    from supervisor.errors import error_for
    from supervisor.pipeline.submit import StopRequest

    request = StopRequest.model_validate({"run_id": run_id, "how": how, "reason": reason[:1_000]})
    async with app.bootstrap().connect(app.config(), say) as client:
        answer = await client.stop(request)
    if not answer.ok:
        raise error_for(answer.exit_code, answer.error)
