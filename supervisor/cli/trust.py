"""`andon trust`: agree to build the image a repository brings, by the digest of its `.andon/Dockerfile` (DECISIONS D11)."""

import asyncio
from pathlib import Path

import click

from supervisor.cli.app import App


@click.command()
@click.option("--repo", type=click.Path(path_type=Path), default=Path(), metavar="PATH", help="The repository.  [default: here]")
@click.option("--base", metavar="REV", help="The commit whose file is meant.  [default: HEAD]")
@click.pass_obj
def command(app: App, repo: Path, base: str | None) -> None:
    """Agree to build a repository's own image, .andon/Dockerfile.

    Building it runs its commands with network access. The agreement is for these exact bytes: a changed file asks again.
    """
    from supervisor.api.inert import inert
    from supervisor.config import StateDirectory
    from supervisor.delivery import snapshot
    from supervisor.errors import UsageError

    repository = repo.absolute()
    found = asyncio.run(snapshot(repository, base))
    digest = found.dockerfile_sha256
    if found.dockerfile is None or digest is None:
        raise UsageError(f"{repository} has no .andon/Dockerfile in {found.base_name}; there is nothing to agree to")
    click.echo(inert(found.dockerfile.decode("utf-8", "replace")).rstrip())
    StateDirectory.open(app.config().state_directory).trust(digest, f"{repository} at {found.commit}, by andon trust")
    click.echo(f"\ntrusted: sha256 {digest}")
