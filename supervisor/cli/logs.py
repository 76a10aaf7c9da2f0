"""`andon logs [RUN] [-f]`: what happened, event by event, with the containers' own output; from files, starts nothing."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from supervisor.cli.app import App
from supervisor.cli.arguments import files_named, run_argument
from supervisor.errors import InfrastructureError

if TYPE_CHECKING:
    from supervisor.api.run_files import RunFiles
    from supervisor.pipeline.events import AnyEvent, AttemptEnded
    from supervisor.pipeline.run import RunState

POLL_S = 0.25
LOG_GRACE_S = 2.0
"""How long after a run's end a container's log may still be written."""


@click.command()
@run_argument(required=False)
@click.option("--follow", "-f", is_flag=True, help="Go on until the run is over.")
@click.option("--stage", metavar="NAME", help="Only this stage.")
@click.option("--json", "as_json", is_flag=True, help="Print the events, one JSON object a line.")
@click.pass_obj
def command(app: App, run_id: str | None, follow: bool, stage: str | None, as_json: bool) -> None:
    """Show what happened in a run; -f follows it. Without RUN: the newest."""
    files = files_named(app, run_id, logs=not follow)
    reader = _Reader(files, stage, as_json=as_json)
    if not follow:
        reader.run_or_unknown()
    if follow and app.config().is_remote:
        from supervisor.cli.afar import follow_afar

        follow_afar(app, files, reader.show_new, reader.is_over)
        return
    for _ in _polls(reader, follow=follow):
        reader.show_new()
        if follow and not reader.is_over() and not app.is_anybody_at_work():
            raise InfrastructureError(f"nobody works on run {files.directory.name} now; go on with: andon resume {files.directory.name}")


class _Reader:
    """Reads a run's files on and prints what is new."""

    def __init__(self, files: "RunFiles", stage: str | None, *, as_json: bool) -> None:
        self.files = files
        self.stage = stage
        self.as_json = as_json
        self.offset = 0
        self.run: RunState | None = None
        self.logs_due: list[tuple[str, int, int]] = []

    def run_or_unknown(self) -> None:
        """Raise `UnknownRun` if there is nothing to read."""
        self.files.run()

    def show_new(self) -> None:
        """Print the events and logs that were not there before."""
        from supervisor.pipeline.fold import apply

        events, self.offset = self.files.read_from(self.offset)
        for event in events:
            self.run = apply(self.run, event)
            self._show(self.run, event)
        self.logs_due = [due for due in self.logs_due if not self._show_log(*due)]

    def is_over(self) -> bool:
        """Return whether nothing more will come."""
        from supervisor.api.views import is_over

        return self.run is not None and is_over(self.run)

    def _show(self, run: "RunState", event: "AnyEvent") -> None:
        from supervisor.api.lines import lines_for

        if self.as_json:
            if self.stage is None or _stage_of(run, event) == self.stage:
                click.echo(event.model_dump_json())
            return
        for line in lines_for(run, event):
            if self.stage is None or line.startswith(f"[{self.stage}]"):
                click.echo(line)
        if event.type == "attempt_ended":
            self._note_log(run, event)

    def _note_log(self, run: "RunState", event: "AttemptEnded") -> None:
        job = run.jobs[event.job_id]
        due = (job.stage, job.round, event.attempt)
        if (self.stage is None or self.stage == job.stage) and not self._show_log(*due):
            self.logs_due.append(due)

    def _show_log(self, stage: str, round_: int, attempt: int) -> bool:
        """Print one container's log, each line prefixed; return whether there is one."""
        from supervisor.api.inert import inert

        path = self.files.log_path(stage, round_, attempt)
        if not path.is_file():
            return False
        for line in inert(path.read_bytes().decode("utf-8", "replace")).splitlines():
            click.echo(f"[{stage}] | {line}")
        return True


def _polls(reader: _Reader, *, follow: bool) -> Iterator[None]:
    """Yield once, or while following until the run is over and its logs had time to arrive."""
    yield
    if not follow:
        return
    while not reader.is_over():
        time.sleep(POLL_S)
        yield
    end = time.monotonic() + LOG_GRACE_S
    while reader.logs_due and time.monotonic() < end:
        time.sleep(POLL_S)
        yield


def _stage_of(run: "RunState", event: "AnyEvent") -> str | None:
    job_id = getattr(event, "job_id", None)
    return run.jobs[job_id].stage if job_id in run.jobs else getattr(event, "stage", None)
