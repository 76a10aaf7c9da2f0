"""What an end-to-end test does to a repository and looks at while and after a line runs: bytes, events, containers, processes."""

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

import docker

from sandbox.runtime.container_spec import LABEL_INSTANCE
from supervisor.demo import create_sample_repository
from tests.e2e.line import Finished, Line
from tests.fakes.repositories import run_git

POLL_S = 0.05
END_S = 240.0

RESULT_KEYS = {
    "run_id",
    "feature",
    "state",
    "exit_code",
    "repo",
    "base",
    "branch",
    "commit",
    "trace_id",
    "trace_url",
    "cost_usd",
    "usage",
    "replay",
    "stages",
    "files",
    "tests",
    "report",
}
USAGE_KEYS = {"input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens"}
STAGE_KEYS = {"stage", "job", "round", "verdict", "assurance", "attempts"}
ATTEMPT_KEYS = {"attempt", "outcome", "executor", "container_id", "missing", "started_at", "ended_at", "cost_usd"}
"""What the documentation promises of the result object."""


def wait_until(is_so: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Poll until `is_so` returns something true, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"after {timeout_s:.0f} s still not: {what}"
        time.sleep(POLL_S)
    return found


def a_sample(path: Path) -> Path:
    """Make the sample repository, with an identity, and return it."""
    asyncio.run(create_sample_repository(path))
    run_git(path, "config", "user.name", "Ref O'Sitory")
    run_git(path, "config", "user.email", "ref@example.org")
    return path


def commit_files(repository: Path, files: dict[str, str], *, removed: tuple[str, ...] = ()) -> str:
    """Commit these files on top of HEAD and return the commit."""
    for name, text in files.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text)
    if removed:
        run_git(repository, "rm", "--quiet", "-r", "--", *removed)
    run_git(repository, "add", "-A")
    run_git(repository, "commit", "--quiet", "-m", "more")
    return run_git(repository, "rev-parse", "HEAD")


def every_byte(directory: Path) -> dict[str, str]:
    """Return type, mode and content of everything below a directory, by relative path."""
    found: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        name, mode = os.fspath(path.relative_to(directory)), f"{path.lstat().st_mode:o}"
        if path.is_symlink():
            found[name] = f"{mode} -> {path.readlink()}"
        else:
            found[name] = mode if path.is_dir() else f"{mode} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return found


def is_delivered(name: str) -> bool:
    """Return whether a path is one a delivery may add to a repository: an object, or a branch below `andon/`."""
    return name.startswith(".git/objects/") or name == ".git/refs/heads/andon" or name.startswith(".git/refs/heads/andon/")


def branches(repository: Path) -> list[str]:
    """Return the branches of a repository."""
    return run_git(repository, "for-each-ref", "--format=%(refname:short)", "refs/heads").split()


def events_of(line: Line, run_id: str) -> list[dict[str, Any]]:
    """Return the events of a run, as its file has them now."""
    try:
        text = (line.state / "runs" / run_id / "events.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(each) for each in text.splitlines(keepends=True) if each.endswith("\n")]


def has(events: list[dict[str, Any]], kind: str, **fields: object) -> bool:
    """Return whether there is an event of that type with those fields."""
    return any(one["type"] == kind and all(one.get(name) == value for name, value in fields.items()) for one in events)


class Going:
    """A run that goes on in the background, with its id."""

    def __init__(self, line: Line, process: "Popen[str]", run_id: str) -> None:
        self.line = line
        self.process = process
        self.run_id = run_id

    def wait_event(self, kind: str, timeout_s: float = 90.0, **fields: object) -> None:
        """Wait until the run has such an event."""
        wait_until(lambda: has(events_of(self.line, self.run_id), kind, **fields), f"{kind} {fields} in run {self.run_id}", timeout_s)

    def wait_calls(self, count: Callable[[], int], at_least: int) -> None:
        """Wait until the provider saw that many calls."""
        wait_until(lambda: count() >= at_least, f"{at_least} calls at the provider", 90)

    def end(self, timeout_s: float = END_S) -> Finished:
        """Wait for the command and return its end."""
        stdout, stderr = self.process.communicate(timeout=timeout_s)
        finished = Finished(self.process.returncode, stdout, stderr)
        if stdout.strip().startswith("{"):
            finished.result = json.loads(stdout)
        return finished


@contextmanager
def going(line: Line, *arguments: str) -> Iterator[Going]:
    """Start `andon run … --json`, wait until it is accepted, and see to it that neither command nor run outlives the block."""
    before = {path.name for path in (line.state / "runs").glob("*")}
    process = line.start("run", *arguments, "--json")
    try:

        def new_run() -> str | None:
            assert process.poll() is None, process.communicate()
            return next((path.name for path in (line.state / "runs").glob("*") if path.name not in before and path.is_dir()), None)

        yield Going(line, process, wait_until(new_run, "the run is accepted"))
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(TimeoutExpired):
                process.communicate(timeout=60)
        process.kill()
        process.communicate()


def sandboxes(line: Line) -> list[dict[str, Any]]:
    """Return what the engine says of every container of this line's executor, dead ones included."""
    with contextlib.closing(docker.APIClient(line.environment.get("DOCKER_HOST"), timeout=30)) as client:
        found = []
        for each in client.containers(all=True, filters={"label": LABEL_INSTANCE}):
            with contextlib.suppress(docker.errors.NotFound):
                facts = client.inspect_container(each["Id"])
                if any(str(mount["Source"]).startswith(str(line.state)) for mount in facts["Mounts"]):
                    found.append(facts)
        return found


def kill_sandbox(line: Line, container_id: str) -> None:
    """End a container as an operator would, `docker kill`."""
    with contextlib.closing(docker.APIClient(line.environment.get("DOCKER_HOST"), timeout=30)) as client:
        client.kill(container_id)


def stack_pids(line: Line) -> dict[str, int]:
    """Return the processes of the running stack, the stack itself as `stack`."""
    stack = json.loads((line.state / "stack.json").read_text())
    return {"stack": stack["pid"], **stack["children"]}


def salvaged(line: Line, run_id: str) -> dict[str, str]:
    """Return the salvage refs of a run in the supervisor's mirrors, with their commits."""
    found: dict[str, str] = {}
    for mirror in (line.state / "mirrors").glob("*.git"):
        text = run_git(mirror, "for-each-ref", "--format=%(refname) %(objectname)", f"refs/andon/salvage/{run_id}")
        found |= dict(each.split() for each in text.splitlines())
    return found


def file_in_mirror(line: Line, commit: str, path: str) -> str:
    """Return a file of a commit in the supervisor's mirror."""
    (mirror,) = (line.state / "mirrors").glob("*.git")
    return run_git(mirror, "show", f"{commit}:{path}")
