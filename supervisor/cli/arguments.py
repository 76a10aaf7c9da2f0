"""The RUN argument that many commands share: how a run is named, found and completed."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from supervisor.cli.app import App

if TYPE_CHECKING:
    from supervisor.api.run_files import RunFiles

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def _complete_run(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the runs of this host, newest first."""
    ids = reversed(App().reading().run_ids())
    return [CompletionItem(run_id) for run_id in ids if run_id.startswith(incomplete)]


def run_argument(*, required: bool) -> Callable[[CommandT], CommandT]:
    """Return the decorator of the RUN argument; not required means that the newest run is meant without it."""
    return click.argument("run_id", metavar="RUN" if required else "[RUN]", required=required, shell_complete=_complete_run)


def files_named(app: App, given: str | None, *, logs: bool = False, acts: bool = False) -> "RunFiles":
    """Return the files of the run a person named, or of the newest; those of a fleet elsewhere are brought up to its event log first.

    Args:
        app: The invocation.
        given: A run's id or the beginning of one; None: the newest.
        logs: Whether containers' logs are fetched from a fleet elsewhere, too.
        acts: Whether the verb changes the run, which only its own fleet can.

    Raises:
        UnknownRun: There is none, or several begin with what was given.
        UsageError: The run was sent to a fleet elsewhere, which is not named now, and the verb acts.
        BrokerError: The fleet elsewhere does not answer, and this host knows nothing of the run.
    """
    if app.config().is_remote:
        from supervisor.cli.afar import files_afar

        return files_afar(app, given, logs=logs)
    files = _own_files(app, given)
    if files.is_afar:
        _is_elsewhere(files, acts=acts)
    return files


def _own_files(app: App, given: str | None) -> "RunFiles":
    from supervisor.api.run_files import files_of
    from supervisor.api.views import resolve_run_id
    from supervisor.errors import UnknownRun

    state = app.reading()
    ids = state.run_ids()
    if given is None:
        if not ids:
            raise UnknownRun('there is no run on this host yet; begin with: andon run "what you want"')
        return files_of(state, ids[-1])
    return files_of(state, resolve_run_id(given, ids))


def _is_elsewhere(files: "RunFiles", *, acts: bool) -> None:
    """Say that a run belongs to a fleet which is not named now, or refuse to act on it."""
    from supervisor.api.submitted import remembered
    from supervisor.cli.app import say
    from supervisor.errors import UsageError

    submitted = remembered(files.directory)
    fleet = submitted.fleet if submitted else ""
    problem = f"run {files.directory.name} was sent to the fleet of {fleet}: set NATS_CREDS to a file of that fleet"
    if acts:
        raise UsageError(problem)
    say(f"{problem}; this is what this host knew last")


def text_of(path: Path, chars_max: int, what: str) -> str:
    """Return a small file's text.

    Raises:
        UsageError: It cannot be read, is too large, or is not UTF-8.
    """
    from supervisor.errors import UsageError

    try:
        with path.open("rb") as file:
            data = file.read(4 * chars_max + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError(f"{what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {path} is not UTF-8") from error
    if len(text) > chars_max:
        raise UsageError(f"{what} {path} has more than {chars_max:,} characters")
    return text
