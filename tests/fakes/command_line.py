"""`andon` called in this process: its own environment and state directory, a scripted supervisor, what it wrote and returned."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from supervisor.api.run_files import RunFiles, files_of
from supervisor.cli import main
from supervisor.cli.app import App
from supervisor.config import StateDirectory
from supervisor.pipeline.events import AnyEvent
from tests.fakes.scripted_client import ScriptedBootstrap


@dataclass
class Ended:
    """How one invocation ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        """Return the one object on stdout."""
        parsed = json.loads(self.out)
        assert isinstance(parsed, dict)
        return parsed


@dataclass
class CommandLine:
    """Calls `andon` in this process."""

    home: Path
    capture: pytest.CaptureFixture[str]
    bootstrap: ScriptedBootstrap = field(default_factory=ScriptedBootstrap)
    environ: dict[str, str] = field(default_factory=dict)
    now: float = 1_735_689_700.0

    def __call__(self, *arguments: str) -> Ended:
        """Run one command."""
        environ = {"HOME": str(self.home), "ANTHROPIC_API_KEY": "sk-canary", **self.environ}
        self.capture.readouterr()
        code = main(arguments, App(environ=environ, bootstrap=lambda: self.bootstrap, now=lambda: self.now))
        assert self.bootstrap.client.following == 0, "a follower was left open"
        shown = self.capture.readouterr()
        return Ended(code, shown.out, shown.err)

    @property
    def state(self) -> StateDirectory:
        """Return the state directory of this command line."""
        return StateDirectory.open(self.home / ".local" / "state" / "andon")

    def has_run(self, events: list[AnyEvent]) -> RunFiles:
        """Let a run have happened on this host."""
        files = files_of(self.state, events[0].run_id)
        files.append(events)
        return files
