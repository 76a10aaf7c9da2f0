"""`andon salvage list|restore`: work that did not land, and its way back as a branch."""

import asyncio
import json
from pathlib import Path

import click

from supervisor.cli.app import App
from supervisor.cli.arguments import run_argument


@click.group()
def command() -> None:
    """Show work that did not land, and bring it back.

    Whatever an agent wrote in an attempt whose work was not taken is kept in the supervisor's mirror, on this host.
    """


@command.command("list")
@run_argument(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def list_(app: App, run_id: str | None, as_json: bool) -> None:
    """Show what is salvaged, the newest run first; of one run, if it is named."""
    from supervisor.api.inert import inert_line
    from supervisor.api.views import iso
    from supervisor.bootstrap.salvage import salvaged

    found = asyncio.run(salvaged(app.reading(), run_id))
    if as_json:
        shown = [work.model_dump(mode="json") | {"ended_at": None if work.ended_at is None else iso(work.ended_at)} for work in found]
        click.echo(json.dumps(shown, indent=2))
        return
    if not found:
        click.echo("nothing is salvaged here", err=True)
        return
    width = max(len(work.name) for work in found)
    for work in found:
        when = iso(work.ended_at)[:16].replace("T", " ") if work.ended_at is not None else "-"
        size = f"{work.files} file{'s' if work.files != 1 else ''} +{work.insertions} -{work.deletions}"
        why = f"{work.outcome}: {work.reason}" if work.reason else work.outcome
        click.echo(f"{work.name:<{width}}  {when:<16}  {size:<18}  {work.feature}  {inert_line(why, 100)}".rstrip())


@command.command()
@click.argument("name", metavar="RUN/STAGE-ROUND-ATTEMPT")
@click.option("--repo", type=click.Path(path_type=Path), metavar="PATH", help="Where to make the branch.  [default: the run's repository]")
@click.option("--branch", metavar="NAME", help="The branch's name.  [default: andon/salvage/RUN/STAGE-ROUND-ATTEMPT]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_obj
def restore(app: App, name: str, repo: Path | None, branch: str | None, as_json: bool) -> None:
    """Make a branch of what one attempt left.

    It is one commit on the run's base commit; nothing else in the repository changes. Exit code 6 if the branch is taken.
    """
    from supervisor.api.inert import inert_line
    from supervisor.bootstrap.salvage import restore

    done = asyncio.run(restore(app.reading(), name, repo.absolute() if repo else None, branch))
    if as_json:
        click.echo(json.dumps({"repo": str(done.repository), "branch": done.branch, "commit": done.commit}, indent=2))
        return
    click.echo(f"{done.branch} is {done.commit[:12]} in {inert_line(str(done.repository), 300)}")
