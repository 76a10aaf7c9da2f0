"""`andon fleet`: the executors, and who may become one; how they are drawn is `fleet_table`, how they are let in `store.admission`."""

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supervisor.cli.app import App, say

if TYPE_CHECKING:
    from supervisor.api.fleet import ExecutorRow
    from supervisor.bootstrap.enrol import Enrolled
    from supervisor.cli.client import Client

DRAIN_S = 3600.0
"""How long `drain` waits: the longest stage of the shipped pipeline and some more."""
POLL_S = 1.0
SAID_EVERY_S = 30.0
OWN_EXECUTOR = "local"
"""The embedded stack's own; it comes and goes with the stack."""


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Show the executors of the fleet; admit, drain or remove one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_, as_json=as_json)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_obj
def list_(app: App, as_json: bool) -> None:
    """Show the executors: state, slots, pools, labels, release, last life sign. Starts nothing."""
    rows = asyncio.run(_rows(app))
    if as_json:
        click.echo(json.dumps([row.model_dump(mode="json") for row in rows], indent=2))
    elif rows:
        _draw(app, rows)
    else:
        say("no executor is there, and none is admitted; admit one with: andon fleet add NAME")


@command.command()
@click.argument("name")
@click.option(
    "--pool", "pools", multiple=True, metavar="P", help="A pool whose jobs it may read and run; may be repeated.  [default: default]"
)
@click.option("--label", "labels", multiple=True, metavar="K=V", help="What jobs may ask of its host; may be repeated.")
@click.option("--client", "is_client", is_flag=True, help="A command line elsewhere, which may submit runs, instead of an executor.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Where to write.  [default: NAME.andon.json]"
)
@click.option("--force", is_flag=True, help="Replace a member of that name, whose key ends at once, and an existing file.")
@click.pass_obj
def add(app: App, name: str, pools: tuple[str, ...], labels: tuple[str, ...], is_client: bool, output: Path | None, force: bool) -> None:
    """Admit an executor (or a client) and write the one file its host needs."""
    from sandbox.contract.credentials import FILE_SUFFIX, write_credentials
    from supervisor.bootstrap.enrol import enrol
    from supervisor.errors import UsageError

    if is_client and (pools or labels):
        raise UsageError("a client has no pools or labels; those are an executor's")
    _check_name(name)
    path = output or Path(f"{name}{FILE_SUFFIX}")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; --force replaces it, --output FILE names another one")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: its directory does not exist")
    config = app.config()
    chosen = tuple(dict.fromkeys(pools)) or ("default",)
    enrolled = asyncio.run(enrol(config, name, pools=chosen, labels=_labels(labels), is_client=is_client, replace=force))
    write_credentials(path, enrolled.credentials)
    _say_added(enrolled, name, path, is_client=is_client)


@command.command()
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Do not wait until it has gone.")
@click.pass_obj
def drain(app: App, name: str, no_wait: bool) -> None:
    """Let an executor finish its jobs, take no more, and leave."""
    if name == OWN_EXECUTOR and not app.config().is_remote:
        _refuse_own()
    asyncio.run(_drain(app, name, no_wait=no_wait))


@command.command()
@click.argument("name")
@click.pass_obj
def remove(app: App, name: str) -> None:
    """Revoke the key of an executor or client; its connection ends at once, and its jobs run elsewhere."""
    from supervisor.bootstrap.enrol import broker_directory, dismiss
    from supervisor.errors import UsageError

    config = app.config()
    directory = broker_directory(config)
    if directory is None:
        raise UsageError(f"this fleet's broker is configured elsewhere: take the user {name} out of its configuration and let it reload")
    if name == OWN_EXECUTOR and not config.is_remote:
        _refuse_own()
    if not asyncio.run(dismiss(directory, name)):
        raise UsageError(f"nobody named {name!r} is admitted; `andon fleet` shows who is")
    click.echo(f"{name} is removed: its key is refused from now on")


@command.command()
@click.option("--listen", metavar="HOST:PORT", help="Where that server listens.")
@click.option("--advertise", metavar="NAME", help="The name or address by which everybody reaches it.")
@click.pass_obj
def init(app: App, listen: str | None, advertise: str | None) -> None:
    """Prepare the directory of a broker that somebody else starts, such as docker compose: keys, certificate, configuration."""
    from supervisor.bootstrap.enrol import Listen, broker_directory, prepare
    from supervisor.errors import UsageError

    config = app.config(listen=listen, advertise=advertise)
    directory = broker_directory(config)
    if directory is None:
        raise UsageError("a fleet elsewhere is configured, so there is no directory to prepare; name one with ANDON_BROKER_DIRECTORY")
    if config.listen is None:
        raise UsageError("say where the server listens: --listen HOST:PORT")
    path = prepare(directory, Listen.parse(config.listen, config.advertise))
    click.echo(f"wrote {path}; start the server with: nats-server -c {path}")


async def _rows(app: App) -> "list[ExecutorRow]":
    from supervisor.api.fleet import Admitted, executor_rows
    from supervisor.bootstrap.enrol import members

    config = app.config()
    async with app.bootstrap().look(config) as client:
        beats = await client.executors() if client is not None else []
        if client is None:
            say("no stack is running; start it with: andon up, or for other hosts too: andon up --listen HOST:PORT")
    known = [Admitted(name=user.name, pools=user.pools, labels=user.labels) for user in members(config)]
    others = [each for each in known if config.is_remote or each.name != OWN_EXECUTOR]
    return executor_rows(beats, others, app.now())


def _draw(app: App, rows: "list[ExecutorRow]") -> None:
    from rich.console import Console

    from supervisor.cli.fleet_table import plain_lines, print_table

    config = app.config()
    console = Console(no_color=config.no_color, highlight=False, markup=False, emoji=False)
    if console.is_terminal and not config.ci:
        print_table(rows, console)
    else:
        for line in plain_lines(rows):
            click.echo(line)


def _check_name(name: str) -> None:
    from pydantic import TypeAdapter, ValidationError

    from sandbox.contract.ids import ExecutorName
    from supervisor.errors import UsageError

    try:
        TypeAdapter(ExecutorName).validate_python(name)
    except ValidationError:
        raise UsageError(f"{name!r} is no name: 1 to 32 of a-z, 0-9, '-' and '_', that begin and end with a letter or digit") from None
    if name == OWN_EXECUTOR:
        raise UsageError(f"{name!r} is the name of every stack's own executor; choose another one")


def _labels(given: tuple[str, ...]) -> dict[str, str]:
    from pydantic import TypeAdapter, ValidationError

    from sandbox.contract.labels import Labels
    from supervisor.errors import UsageError

    labels: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise UsageError(f"--label {each!r}: use NAME=VALUE, e.g. --label mem=64")
        labels[name] = value
    try:
        TypeAdapter(Labels).validate_python(labels)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(f"--label {'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}") from None
    return labels


def _say_added(enrolled: "Enrolled", name: str, path: Path, *, is_client: bool) -> None:
    """Say what was written and the one command that comes next on the other host."""
    url = enrolled.credentials.url
    what = "client" if is_client else "executor"
    click.echo(f"wrote {path}: the key of {what} {name}\nfor the broker at {url}; whoever has the file is {name}")
    if enrolled.stanza:
        click.echo("\npaste this into the cluster's configuration:\n")
        click.echo(enrolled.stanza.rstrip())
    if _is_loopback(url):
        say("that broker serves this host only; for other hosts: andon up --listen HOST:PORT, then fleet add --force")
    click.echo("\ncopy the file there, readable by its owner only, then:\n")
    click.echo(f'  NATS_CREDS={path.name} andon run "what you want" --repo PATH' if is_client else f"  andon executor --creds {path.name}")


def _is_loopback(url: str) -> bool:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}


def _refuse_own() -> None:
    from supervisor.errors import UsageError

    raise UsageError(f"{OWN_EXECUTOR!r} is this stack's own executor, which comes and goes with it: andon down")


async def _drain(app: App, name: str, *, no_wait: bool) -> None:
    from supervisor.errors import UsageError

    async with app.bootstrap().look(app.config()) as client:
        if client is None or (busy := await _busy(client, name)) is None:
            raise UsageError(f"no executor {name!r} is connected; `andon fleet` shows who is")
        await client.drain(name, "andon fleet drain")
        if no_wait:
            click.echo(f"{name} was told to drain; {_jobs(busy)} to finish")
            return
        await _wait_gone(client, name, busy)
    click.echo(f"{name} has gone; its key stays good until: andon fleet remove {name}")


async def _wait_gone(client: "Client", name: str, busy: int) -> None:
    """Wait until an executor's life sign is gone, telling it again in between: the order may have been lost."""
    from supervisor.errors import InfrastructureError

    end, said_at = time.monotonic() + DRAIN_S, time.monotonic()
    say(f"{name} drains; {_jobs(busy)} to finish")
    while (now_busy := await _busy(client, name)) is not None:
        if time.monotonic() > end:
            raise InfrastructureError(f"{name} has not gone within {DRAIN_S / 60:.0f} min; it goes on draining: andon fleet")
        if time.monotonic() - said_at > SAID_EVERY_S:
            said_at = time.monotonic()
            say(f"{name} drains; {_jobs(now_busy)} to finish")
            await client.drain(name, "andon fleet drain")
        await asyncio.sleep(POLL_S)


async def _busy(client: "Client", name: str) -> int | None:
    """Return how many attempts an executor runs; None if it is not connected."""
    return next((beat.busy for beat in await client.executors() if beat.executor == name), None)


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
