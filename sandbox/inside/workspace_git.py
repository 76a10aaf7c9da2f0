"""Makes the private, throwaway `/workspace/.git` with one commit of the base (DECISIONS D17); the host never reads it.

It lets the agent and the checks use `git status`, `diff` and `log`. It runs beside the slow imports; that git is
missing or fails is said in the log and stops nothing.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path

from sandbox.inside.process import CommandNotStarted, run_process

TIMEOUT_S = 120.0
_PLAIN = (
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.autocrlf=false",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "gc.auto=0",
    "-c",
    "commit.gpgSign=false",
)
_COMMANDS = (
    ("init", "--quiet", "--template=", "--initial-branch=main"),
    ("add", "--all", "--force"),  # an ignored file that was provisioned is part of the base
    ("commit", "--quiet", "--allow-empty", "--no-verify", "--message=base"),
)
# A fixed date: equal trees give equal commits, so that a replayed conversation reads the same `git log`.
_IDENTITY = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "andon",
    "GIT_AUTHOR_EMAIL": "andon@localhost",
    "GIT_COMMITTER_NAME": "andon",
    "GIT_COMMITTER_EMAIL": "andon@localhost",
    "GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z",
}


class PrivateRepository:
    """A repository in the making."""

    def __init__(self, workspace: Path, environment: Mapping[str, str]) -> None:
        self._workspace = workspace
        self._environment = {**environment, **_IDENTITY}
        self._outcome = ""
        self._thread = threading.Thread(target=self._make, name="private-git", daemon=True)
        self._thread.start()

    def wait(self) -> str:
        """Wait until it is made or given up, at most `TIMEOUT_S`; return one line about it."""
        self._thread.join(TIMEOUT_S)
        return self._outcome or f"private git: not ready after {TIMEOUT_S:.0f} s"

    def _make(self) -> None:
        started = time.monotonic()
        output = bytearray()
        for command in _COMMANDS:
            argv = ["git", *_PLAIN, *command]
            left_s = TIMEOUT_S - (time.monotonic() - started)
            try:
                ended = run_process(argv, cwd=self._workspace, env=self._environment, timeout_s=left_s, sink=output.extend)
            except CommandNotStarted as error:
                self._outcome = f"private git: none ({error})"
                return
            if ended.exit_code != 0:
                said = output[-300:].decode(errors="replace").strip()
                self._outcome = f"private git: `git {command[0]}` ended with {ended.exit_code}: {said}"
                return
        self._outcome = "private git: ready"


def begin(workspace: Path, environment: Mapping[str, str]) -> PrivateRepository:
    """Start making the repository beside other work."""
    return PrivateRepository(workspace, environment)
