"""What a command reaches the world through: environment, clock, supervisor; imports next to nothing, so that `--help` is quick."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from supervisor.cli.client import Bootstrap
    from supervisor.config import Config, StateDirectory


def _real_bootstrap() -> "Bootstrap":
    from supervisor.cli.client import RealBootstrap

    return RealBootstrap()


@dataclass(frozen=True)
class App:
    """One invocation. Tests give their own environment and supervisor; nothing is patched."""

    environ: Mapping[str, str] | None = None
    """None: this process's own, read in `supervisor.config`."""
    bootstrap: Callable[[], "Bootstrap"] = _real_bootstrap
    now: Callable[[], float] = time.time

    def config(self, **flags: object) -> "Config":
        """Read the configuration; `flags` are values given on the command line, None if not given."""
        from supervisor.config import load

        return load(flags, self.environ)

    def reading(self) -> "StateDirectory":
        """Return the state directory for a verb that only reads; nothing is made."""
        from supervisor.config import StateDirectory

        return StateDirectory.reading(self.config().state_directory)

    def is_anybody_at_work(self) -> bool:
        """Return whether a supervisor may be driving runs: a fleet's, or a running embedded stack. Starts nothing."""
        from supervisor.stack import read_stack

        return self.config().is_remote or read_stack(self.reading()) is not None


def say(text: str) -> None:
    """Write one line of progress to stderr."""
    from supervisor.api.inert import inert_line

    click.echo(f"andon: {inert_line(text, 400)}", err=True)
