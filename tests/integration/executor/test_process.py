"""`andon executor` as a process: what it says, on which stream, and the code it ends with."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.contract.credentials import ExecutorCredentials, write_credentials
from tests.fakes.script import single, submit
from tests.integration.executor.fleet import a_fleet, an_executor_process, until
from tests.servers.engines import TestEngine

NOTHING = single(submit("done"))
CREDENTIALS = ExecutorCredentials(url="nats://127.0.0.1:9", nkey_seed="SU" + "A" * 56, executor="ex1")


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="andon-it-", dir="/tmp") as made:
        yield Path(made)


@pytest.fixture
def creds(directory: Path) -> Path:
    """A credentials file of a broker that is not there."""
    path = directory / "ex1.andon.json"
    write_credentials(path, CREDENTIALS)
    return path


def an_executor(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sandbox.executor", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Return the exit code and the last words."""
    _, err = process.communicate(timeout=60)
    return process.returncode, last_words(err)


def last_words(err: str) -> list[str]:
    """Return the lines of stderr that are for a person; every other one is a record of the log."""
    return [line for line in err.splitlines() if not line.startswith("{")]


def test_without_an_engine_it_ends_with_one_line(creds: Path, directory: Path):
    """Infrastructure: exit 5."""
    code, lines = ended(an_executor("--creds", str(creds), "--state", str(directory / "s"), DOCKER_HOST=f"unix://{directory}/none"))

    assert code == 5
    assert len(lines) == 1
    assert "no container engine" in lines[0]


@pytest.mark.parametrize("wrong", ["readable by others", "absent", "not credentials"])
def test_wrong_credentials_end_it_with_one_line(creds: Path, directory: Path, wrong: str):
    """A person's mistake: exit 2."""
    if wrong == "readable by others":
        creds.chmod(0o644)
    elif wrong == "absent":
        creds.unlink()
    else:
        creds.write_text("{}")

    code, lines = ended(an_executor("--creds", str(creds), "--state", str(directory / "s")))

    assert (code, len(lines)) == (2, 1)
    assert str(creds) in lines[0]


async def test_a_broker_that_is_away_is_waited_for_and_its_state_is_taken(engine: TestEngine, creds: Path, directory: Path):
    """It says so in its log, refuses a second executor meanwhile, and ends well when it is told to."""
    arguments = ("--creds", str(creds), "--state", str(directory / "s"))
    first = an_executor(*arguments, DOCKER_HOST=engine.url)
    try:
        assert first.stderr is not None
        line = json.loads(await asyncio.wait_for(asyncio.to_thread(first.stderr.readline), 60))
        assert (line["event"], line["worker_id"]) == ("broker.awaited", "ex1")
        assert "no broker at nats://127.0.0.1:9" in line["msg"]

        code, lines = ended(an_executor(*arguments, DOCKER_HOST=engine.url))
        assert (code, len(lines)) == (2, 1)
        assert "another executor uses the state directory" in lines[0]

        first.send_signal(signal.SIGTERM)
        assert ended(first) == (0, [])
    finally:
        first.kill()
        first.wait()


async def test_a_revoked_key_ends_it_with_one_line(engine: TestEngine, directory: Path):
    """While it runs, and when it starts again."""
    del engine
    async with a_fleet(directory, NOTHING) as fleet:
        said = directory / "ex.err"
        async with an_executor_process(fleet) as process:
            await until(lambda: said.exists() and "joined the fleet as ex1" in said.read_text(), "it joins")
            await fleet.broker.remove_executor("ex1")
            assert await asyncio.to_thread(process.wait, 60) == 5
        async with an_executor_process(fleet) as process:
            assert await asyncio.to_thread(process.wait, 60) == 5

        first, second = last_words(said.read_text())
        assert "gone for good" in first
        assert "refuses the key of ex1" in second


async def test_a_refused_executor_ends_with_one_line(engine: TestEngine, directory: Path):
    """Another version: exit 2, which systemd does not try again."""
    del engine
    async with a_fleet(directory, NOTHING) as fleet:
        fleet.desk.refusal = "protocol 2 is needed"
        async with an_executor_process(fleet) as process:
            assert await asyncio.to_thread(process.wait, 60) == 2

        (line,) = last_words((directory / "ex.err").read_text())
        assert line.startswith("andon executor: the supervisor refuses this executor: protocol 2 is needed")
        assert "supervisor is release 9.9" in line
