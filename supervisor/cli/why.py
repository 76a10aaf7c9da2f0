"""`andon why RUN`: what a run waits for or does, from the supervisor's own state; without one, from the run's files. Starts nothing."""

import asyncio
from typing import TYPE_CHECKING

import click

from supervisor.cli.app import App
from supervisor.cli.arguments import files_named, run_argument

if TYPE_CHECKING:
    from supervisor.cli.client import Client
    from supervisor.pipeline.run import RunState
    from supervisor.pipeline.submit import Reason, WhyReply

_MARKS = {"queued": "yellow", "running": "cyan", "waiting": "yellow", "blocked": "yellow", "throttled": "yellow", "parked": "yellow"}


@click.command()
@run_argument(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: run_id, state, reasons.")
@click.pass_obj
def command(app: App, run_id: str | None, as_json: bool) -> None:
    """Say what a run waits for or does at this moment. Without RUN: the newest."""
    run, reply = asyncio.run(asked(app, run_id))
    if as_json:
        click.echo(reply.model_dump_json(include={"run_id", "state", "reasons"}, indent=2))
        return
    no_color = app.config().no_color
    click.echo(f"{run.run_id}  {reply.state}  {run.intent.feature}")
    stage_chars = max((len(reason.stage) for reason in reply.reasons), default=0)
    for reason in reply.reasons:
        click.echo(_line(reason, app.now(), stage_chars, no_color=no_color))


async def asked(app: App, given: str | None) -> "tuple[RunState, WhyReply]":
    """Return the run and the supervisor's answer, else what the files say."""
    from supervisor.errors import BrokerError

    if app.config().is_remote:
        from supervisor.cli.afar import run_at_hand

        async with run_at_hand(app, given) as (client, files):
            run = files.run()
            return run, await _reply(client, run, "the fleet does not answer")
    files = files_named(app, given)
    run = files.run()
    if _needs_nobody(run):
        return run, _without_supervisor(run, "")
    if files.is_afar:
        return run, _without_supervisor(run, "its fleet is not named")
    try:
        async with app.bootstrap().look(app.config()) as client:
            return run, await _reply(client, run, "the stack is not running")
    except BrokerError as error:
        return run, _without_supervisor(run, str(error))


async def _reply(client: "Client | None", run: "RunState", nobody: str) -> "WhyReply":
    from supervisor.errors import BrokerError, error_for
    from supervisor.pipeline.submit import WhyRequest

    if client is None or _needs_nobody(run):
        return _without_supervisor(run, nobody)
    try:
        reply = await client.why(WhyRequest(run_id=run.run_id))
    except BrokerError as error:
        return _without_supervisor(run, str(error))
    if reply.error:
        raise error_for(reply.exit_code, reply.error)
    return reply


def _needs_nobody(run: "RunState") -> bool:
    """Return whether the files say it all: nothing more happens unless a person acts, and on what is known."""
    from supervisor.api.views import is_over

    return is_over(run) and run.state != "waiting"


def _without_supervisor(run: "RunState", problem: str) -> "WhyReply":
    """Return what is known without asking; `problem` says why nobody was asked or answered, empty for a run that is over."""
    from supervisor.api.report import next_steps
    from supervisor.api.views import is_over
    from supervisor.pipeline.submit import Reason, WhyReply

    steps = next_steps(run)
    then = f"; next: {steps[0]}" if steps else ""
    if not is_over(run):
        text = f"nobody works on it now: {problem}; go on with: andon resume {run.run_id}"
        reason = Reason(kind="blocked", text=text)
    elif run.state == "parked":
        reason = Reason(kind="parked", text=f"{run.end_reason or 'parked'}{then}", since=run.ended_at)
    elif run.state == "waiting":
        reason = Reason(kind="waiting", text=f"{run.end_reason or 'a person has to approve'}{then}", since=run.ended_at)
    else:
        words = "it has landed" if run.state == "landed" else f"it {'has failed' if run.state == 'failed' else 'was cancelled'}"
        because = f": {run.end_reason}" if run.end_reason else ""
        reason = Reason(kind="over", text=f"{words}{because}{then}", since=run.ended_at)
    return WhyReply(run_id=run.run_id, state=run.state, reasons=(reason,))


def _line(reason: "Reason", now: float, stage_chars: int, *, no_color: bool) -> str:
    """Return one reason as a line: stage, kind, text, for how long."""
    from supervisor.api.inert import inert_line
    from supervisor.api.report import duration

    kind = f"{reason.kind:<9}"
    shown = kind if no_color else click.style(kind, fg=_MARKS.get(reason.kind))
    since = f"  (for {duration(now - reason.since)})" if reason.since is not None and reason.kind != "over" else ""
    stage = f"{reason.stage:<{stage_chars}}  " if stage_chars else ""
    return f"  {stage}{shown}  {inert_line(reason.text, 400)}{since}".rstrip()
