"""`andon stop RUN`: park a run, or cancel it; what was written is kept either way."""

import asyncio

import click

from supervisor.cli.app import App, say
from supervisor.cli.arguments import files_named, run_argument


@click.command()
@run_argument(required=True)
@click.option("--cancel", is_flag=True, help="End it for good instead: it cannot be resumed.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@click.pass_obj
def command(app: App, run_id: str, cancel: bool, reason: str) -> None:
    """Park a run: nothing goes on until `andon resume RUN`. What was written is kept, see `andon salvage list RUN`."""
    from supervisor.api.views import is_over

    run = files_named(app, run_id, acts=True).run()
    if is_over(run) and not (cancel and run.state == "parked"):
        click.echo(f"run {run.run_id} is {run.state} already")
        return
    asyncio.run(_stop(app, run.run_id, "cancel" if cancel else "park", reason))
    goes_on = "" if cancel else f"; go on with: andon resume {run.run_id}"
    click.echo(f"run {run.run_id} is being {'cancelled' if cancel else 'parked'}{goes_on}")


async def _stop(app: App, run_id: str, how: str, reason: str) -> None:
    from supervisor.errors import error_for
    from supervisor.pipeline.submit import StopRequest

    request = StopRequest.model_validate({"run_id": run_id, "how": how, "reason": reason[:1_000]})
    async with app.bootstrap().connect(app.config(), say) as client:
        answer = await client.stop(request)
    if not answer.ok:
        raise error_for(answer.exit_code, answer.error)
