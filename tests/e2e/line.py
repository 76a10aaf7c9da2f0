"""The `andon` command with a home of its own and the scripted model as its provider; shared by the end-to-end tests and `make cassette`."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.script import Script
from tests.fakes.scripted_model import ScriptedModel
from tests.fakes.scripts.rate_limit import HAPPY

RUN_S = 180
CANARY = "sk-scripted-canary-7f3a9c51e2"
_ONE_OBJECT = {"run", "resume", "status"}
"""The verbs whose `--json` is the result object."""


class Provider:
    """The scripted model on a thread of its own, so that it outlives single tests."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted-model", daemon=True)
        self.server = ScriptedModel(HAPPY, api_key=CANARY, host=host)

    def __enter__(self) -> "Provider":
        self._thread.start()
        self._do(self.server.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self.server.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def says(self, script: Script) -> None:
        """Serve another script from the next call on, with an empty log."""

        async def change() -> None:
            self.server.script = script
            self.server.log.clear()
            self.server.begun.clear()
            self.server.violations.clear()

        self._do(change())


@dataclass
class Finished:
    """One command's end."""

    exit_code: int
    stdout: str
    stderr: str
    result: dict[str, Any] = field(default_factory=dict)

    def stage(self, name: str, round_: int = 1) -> dict[str, Any]:
        """Return one job of the result object."""
        found = [each for each in self.result["stages"] if (each["stage"], each["round"]) == (name, round_)]
        assert found, f"no job {name} of round {round_} in {[(e['stage'], e['round']) for e in self.result['stages']]}\n{self.stderr}"
        job: dict[str, Any] = found[0]
        return job

    @property
    def rounds(self) -> list[tuple[str, int, str]]:
        """Return every job as (stage, round, verdict)."""
        return [(each["stage"], each["round"], each["verdict"]) for each in self.result["stages"]]


class Line:
    """The `andon` command with a state directory and an environment of its own."""

    def __init__(self, home: Path, environment: dict[str, str], command: Sequence[str] = ()) -> None:
        """Use `command` for `andon`, by default the one of this environment."""
        self.home = home
        self.command = tuple(command) or (str(Path(sys.executable).with_name("andon")),)
        self.state = home / "state" / "andon"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "NO_COLOR": "1",
            **({"DOCKER_HOST": os.environ["DOCKER_HOST"]} if "DOCKER_HOST" in os.environ else {}),
            **environment,
        }

    def andon(self, *arguments: str, timeout_s: float = RUN_S, stdin: str | None = None) -> Finished:
        """Run a command to its end."""
        done = subprocess.run(
            [*self.command, *arguments],
            env=self.environment,
            cwd=self.home,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        finished = Finished(done.returncode, done.stdout, done.stderr)
        if "--json" in arguments and arguments[0] in _ONE_OBJECT and done.stdout.strip():
            finished.result = json.loads(done.stdout)
        return finished

    def run(self, *arguments: str, timeout_s: float = RUN_S) -> Finished:
        """`andon run … --json`."""
        return self.andon("run", *arguments, "--json", timeout_s=timeout_s)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command and leave it running."""
        return subprocess.Popen(
            [*self.command, *arguments],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
