"""A run followed to its end, as `run` and `resume` do: shown, and for a fleet elsewhere kept in files and brought home."""

from supervisor.api.run_files import RunFiles
from supervisor.api.submitted import remembered
from supervisor.cli import outcome
from supervisor.cli.afar import Keeper, fetch_logs
from supervisor.cli.app import App
from supervisor.cli.bringing_home import bring_home, repository_for
from supervisor.cli.client import Client
from supervisor.cli.follow import watch
from supervisor.cli.outcome import Ending
from supervisor.pipeline.run import RunState


async def followed(app: App, client: Client, files: RunFiles, ending: Ending, resumed: RunState | None = None) -> RunState:
    """Show a run until it is over and return its last state; `resumed` is the run as this host knew it when it was asked to go on."""
    config = app.config()
    run_id = files.directory.name
    with outcome.display(config, app.now, as_json=ending.as_json) as shown:
        if not files.is_afar:
            return await watch(client, run_id, shown, seen=ending.see, resumed=resumed)

        async def deliver(run: RunState) -> None:
            await bring_home(client, run, repository_for(files, run, None))

        keeper = Keeper(files)
        # Whoever goes on with a run of another host has no repository for it: it is over when it has landed.
        is_ours = remembered(files.directory) is not None
        run = await watch(client, run_id, shown, seen=ending.see, resumed=resumed, keep=keeper.take, deliver=deliver if is_ours else None)
    await fetch_logs(client, files, files.events())
    return run
