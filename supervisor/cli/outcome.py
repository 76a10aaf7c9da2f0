"""How `run`, `resume` and `status` end: the closing lines or the one JSON object, and the exit code; nothing of what led there."""

import sys
from collections.abc import Callable
from typing import Self

import click

from supervisor.api.inert import inert
from supervisor.api.report import summary
from supervisor.api.run_files import RunFiles
from supervisor.api.views import RunResult, refusal, result_of
from supervisor.cli.live import Display, display_for
from supervisor.config import Config
from supervisor.errors import ExitCode, exit_code_of, root_cause
from supervisor.pipeline.run import RunState

_STYLES = {"landed": "green", "failed": "red", "cancelled": "red", "parked": "yellow", "waiting": "yellow"}


def display(config: Config, now: Callable[[], float], *, as_json: bool) -> Display:
    """Return the display for this process: on stdout, or on stderr when stdout is kept for the JSON object."""
    return display_for(sys.stderr if as_json else sys.stdout, now, no_color=config.no_color, is_plain=config.ci)


class Ending:
    """Sees to it that a command with `--json` prints exactly one object, however it ends."""

    def __init__(self, *, as_json: bool, repository: str | None = None) -> None:
        """Take whether an object is wanted, and the repository to name in it if there will be no run."""
        self.as_json = as_json
        self._repository = repository
        self._run: RunState | None = None
        self._is_printed = False

    def see(self, run: RunState) -> None:
        """Remember how far the run is."""
        self._run = run

    def print(self, result: RunResult) -> None:
        """Print the object."""
        self._is_printed = True
        print_json(result)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Print what is known if the command failed before it could; the error goes on to be told on stderr."""
        if error is None or not self.as_json or self._is_printed:
            return
        code = exit_code_of(error)
        if self._run is None:
            self.print(refusal(inert(str(root_cause(error))) or "interrupted", code, self._repository))
        else:
            self.print(result_of(self._run, None).model_copy(update={"exit_code": code}))


def finish(config: Config, files: RunFiles, run: RunState, ending: Ending) -> int:
    """Write the run's result and report, show how it ended and return the exit code."""
    # The embedded supervisor writes the same bytes; a fleet's supervisor has them on another host.
    result = files.write_result(run)
    print_summary(config, files, run, err=ending.as_json)
    if ending.as_json:
        ending.print(result)
    return exit_code(run)


def print_json(result: RunResult) -> None:
    """Write one JSON object to stdout."""
    click.echo(result.model_dump_json(indent=2))


def print_summary(config: Config, files: RunFiles, run: RunState, *, err: bool = False) -> None:
    """Write the closing lines to stdout, or to stderr when stdout is for the JSON object."""
    report = str(files.report_path) if files.report_path.exists() else None
    first, _, rest = summary(run, report, files.mirror).partition("\n")
    click.echo("\n" + (first if config.no_color else click.style(first, fg=_STYLES.get(run.state), bold=True)), err=err)
    click.echo(rest, err=err)


def current(files: RunFiles, run: RunState) -> RunResult:
    """Return the result object of a run as it is now."""
    return result_of(run, str(files.report_path) if files.report_path.exists() else None)


def exit_code(run: RunState) -> int:
    """Return what a command ends with that ends with this run."""
    return ExitCode.INFRASTRUCTURE if run.exit_code is None else run.exit_code
