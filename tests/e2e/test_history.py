"""The history beside a real stack: in its file, deleted under it, and on a real PostgreSQL server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.line import Finished, Line
from tests.e2e.watching import stack_pids, wait_until
from tests.servers.databases import Cluster, cluster
from tests.servers.engines import NotHereError

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def postgres(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    try:
        with cluster() as server:
            yield server
    except NotHereError as error:
        if request.config.getoption("--require-all"):
            raise
        pytest.skip(str(error))


def told(line: Line) -> list[dict[str, Any]]:
    """Return the runs of `andon history`."""
    done = line.andon("history", "--json")
    assert done.exit_code == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    return found


def told_of(line: Line, done: Finished) -> dict[str, Any]:
    """Wait until the history is as far as a finished run, and return what it says of it."""

    def landed() -> list[dict[str, Any]]:
        return [run for run in told(line) if run["run_id"] == done.result["run_id"] and run["commit"]]

    (run,) = wait_until(landed, "the history knows that the run landed", 30)
    found: dict[str, Any] = run
    return found


def agrees(run: dict[str, Any], done: Finished) -> None:
    """Check that the history and the run's own result say the same."""
    keys = ("feature", "state", "exit_code", "cost_usd", "usage", "branch", "commit", "replay", "trace_id")
    assert {key: run[key] for key in keys} == {key: done.result[key] for key in keys}
    assert run["executors"] == ["local"]
    assert run["cost_usd"] > 0


def test_the_history_of_a_stack_says_what_its_runs_say(tmp_path: Path):
    """In a file; deleted while the stack is up it comes back with everything."""
    line = Line(tmp_path / "home", {})
    line.home.mkdir()
    assert line.andon("up").exit_code == 0
    try:
        done = line.run()
        assert done.exit_code == 0, done.stderr
        agrees(told_of(line, done), done)

        (line.state / "history.db").unlink()

        agrees(told_of(line, done), done)
    finally:
        assert line.andon("down").exit_code == 0


def test_a_stack_keeps_its_history_on_postgresql(tmp_path: Path, postgres: Cluster):
    """With the password where it has to be: not with the executor, not in a log or a file."""
    url = postgres.url().replace("postgres@", "postgres:hush-hush@")
    line = Line(tmp_path / "home", {"ANDON_DATABASE_URL": url})
    line.home.mkdir()
    assert line.andon("up").exit_code == 0
    try:
        done = line.run()
        assert done.exit_code == 0, done.stderr
        agrees(told_of(line, done), done)
        environ = Path(f"/proc/{stack_pids(line)['executor']}/environ").read_bytes()
    finally:
        assert line.andon("down").exit_code == 0

    assert b"hush-hush" not in environ
    assert not (line.state / "history.db").exists()
    assert [path for path in line.state.rglob("*") if path.is_file() and b"hush-hush" in path.read_bytes()] == []
    assert int(postgres.run("SELECT count(*) FROM andon_calls WHERE settled_at IS NOT NULL")) > 0
