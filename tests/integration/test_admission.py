"""Who may connect, changed from any process beside a running or a stopped broker."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.bus import Connection, NatsExecutorLink, NatsSupervisorLink
from sandbox.contract.credentials import ExecutorCredentials, read_credentials
from sandbox.contract.errors import BrokerError, BrokerRefused, ConfigError, UsageError
from supervisor.store.broker.admission import (
    RESERVED,
    admit_client,
    admit_executor,
    admitted,
    admitted_clients,
    dismiss,
    prepare,
    reload,
    stanza,
)
from supervisor.store.broker.config import ExecutorUser
from supervisor.store.broker.embedded import EmbeddedBroker, find_server
from supervisor.store.broker.listen import Listen
from supervisor.store.broker.site import Site
from supervisor.store.client import NatsFleetClient
from tests.fakes.wire_data import a_heartbeat, a_job, take, wait_until

_ADMITS = """
import asyncio, sys
from pathlib import Path
from sandbox.contract.credentials import write_credentials
from supervisor.store.broker.admission import admit_executor
credentials = asyncio.run(admit_executor(Path(sys.argv[1]), sys.argv[2], ("gpu",), {"arch": "arm64"}))
write_credentials(Path(sys.argv[3]), credentials)
"""

MANY = 6
_ADMITS_MANY = f"""
import asyncio, sys
from pathlib import Path
from supervisor.store.broker.admission import admit_executor
async def main():
    for number in range({MANY}):
        await admit_executor(Path(sys.argv[1]), sys.argv[2] + str(number))
sys.stdin.readline()
asyncio.run(main())
"""


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Path]:
    """Return the directory of a running broker whose streams exist."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker, NatsSupervisorLink.connect(broker.supervisor):
        yield tmp_path / "nats"


async def test_another_process_admits_beside_a_running_broker(directory: Path, tmp_path: Path) -> None:
    """`andon fleet add` is not the stack: its key works at once, and says its pools and labels."""
    path = tmp_path / "ex1.andon.json"
    await asyncio.to_thread(_admit_elsewhere, directory, "ex1", path)
    credentials = read_credentials(path, ExecutorCredentials)

    async with NatsExecutorLink.connect(credentials) as link:
        await link.heartbeat(a_heartbeat())

    assert (credentials.pools, credentials.labels) == (("gpu",), {"arch": "arm64"})
    [user] = admitted(directory)
    assert (user.name, user.pools, user.labels) == ("ex1", ("gpu",), {"arch": "arm64"})


async def test_who_is_admitted_to_a_stopped_broker_may_connect_when_it_runs(tmp_path: Path) -> None:
    """There is nobody to tell; the next start reads the files."""
    async with EmbeddedBroker.run(tmp_path / "nats"):
        pass
    credentials = await admit_executor(tmp_path / "nats", "ex1")
    client = await admit_client(tmp_path / "nats", "laptop")

    async with EmbeddedBroker.run(tmp_path / "nats"), NatsExecutorLink.connect(credentials), NatsFleetClient.connect(client):
        pass


async def test_a_name_is_taken_once_and_replaced_on_purpose(directory: Path) -> None:
    """Executors and clients share their names, because they are dismissed by them."""
    first = await admit_executor(directory, "ex1")
    for admit in (admit_executor, admit_client):
        with pytest.raises(UsageError, match="admitted already"):
            await admit(directory, "ex1")
    async with NatsExecutorLink.connect(first):
        pass

    second = await admit_client(directory, "ex1", replace=True)

    with pytest.raises(BrokerRefused):
        async with NatsExecutorLink.connect(first):
            pass
    async with NatsFleetClient.connect(second):
        pass
    assert admitted(directory) == ()
    assert [user.name for user in admitted_clients(directory)] == ["ex1"]


@pytest.mark.parametrize("name", ["", "a b", "A", "../x", "x" * 33, 'a"', "ex.1", "*", ">", "-a", *sorted(RESERVED)])
async def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    """A name becomes part of subjects and of the configuration; some are the broker's own."""
    Site.made(tmp_path)

    with pytest.raises(UsageError):
        await admit_executor(tmp_path, name)
    with pytest.raises(UsageError):
        await admit_client(tmp_path, name)
    assert admitted(tmp_path) == ()


@pytest.mark.parametrize(
    ("pools", "labels"), [(("*",), {}), ((), {}), (("a.b",), {}), (("default",), {"A": "x"}), (("default",), {"a": "x y"})]
)
async def test_a_pool_or_label_that_is_none_is_refused(tmp_path: Path, pools: tuple[str, ...], labels: dict[str, str]) -> None:
    """A pool `*` would be everybody's jobs."""
    Site.made(tmp_path)

    with pytest.raises(UsageError, match="ex1"):
        await admit_executor(tmp_path, "ex1", pools, labels)


async def test_dismissal_ends_connections_and_is_told_of_nobody(directory: Path) -> None:
    """A dismissed client is cut off; dismissing nobody says so."""
    credentials = await admit_client(directory, "laptop")
    async with Connection.open(credentials, name="laptop", inbox=credentials.inbox) as connection:
        assert await dismiss(directory, "laptop")
        assert await asyncio.wait_for(connection.wait_lost(), 20)

    assert not await dismiss(directory, "laptop")
    assert not await dismiss(directory, "sys")
    with pytest.raises(BrokerRefused):
        async with NatsFleetClient.connect(credentials):
            pass


async def test_changes_at_the_same_time_are_all_made(directory: Path) -> None:
    """Admissions of four processes wait for each other instead of overwriting, and every key works."""
    argv = (sys.executable, "-c", _ADMITS_MANY, str(directory))
    cwd = Path(__file__).parents[2]
    processes = [await asyncio.create_subprocess_exec(*argv, name, stdin=asyncio.subprocess.PIPE, cwd=cwd) for name in "abcd"]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")  # all of them at once, whatever their starts took
    assert [await asyncio.wait_for(process.wait(), 60) for process in processes] == [0, 0, 0, 0]

    assert sorted(user.name for user in admitted(directory)) == sorted(f"{name}{number}" for name in "abcd" for number in range(MANY))


async def test_a_change_the_broker_does_not_take_is_taken_back(directory: Path) -> None:
    """A configuration it refuses, here one with the same key twice, leaves everybody as they were."""
    kept = await admit_executor(directory, "ex1")
    site = Site.there(directory)
    before = site.executors
    site.executors = (*before, ExecutorUser(name="twin", public_key=site.accounts.supervisor, pools=("default",)))
    with pytest.raises(BrokerError, match="refused its configuration"):
        await admit_executor(directory, "ex2")

    assert [user.name for user in admitted(directory)] == ["ex1", "twin"]
    site.executors = before
    await admit_executor(directory, "ex3")
    async with NatsExecutorLink.connect(kept):
        pass


async def test_a_directory_without_a_broker_is_said(tmp_path: Path) -> None:
    """Admitting to nothing is a mistake, not a new broker."""
    with pytest.raises(ConfigError, match="no broker's directory"):
        await admit_executor(tmp_path / "nothing", "ex1")
    assert not (tmp_path / "nothing").exists()


async def test_a_server_somebody_else_starts_goes_by_what_was_prepared(tmp_path: Path) -> None:
    """As in compose: configuration first, then the server, then admissions over its own reload request."""
    directory, port = tmp_path / "nats", _free_port()
    config = prepare(directory, Listen(host="127.0.0.1", port=port))
    early = await admit_executor(directory, "early")
    server = await asyncio.create_subprocess_exec(str(find_server(None)), "-c", str(config), stderr=asyncio.subprocess.DEVNULL)
    try:
        async with NatsSupervisorLink.connect(Site.there(directory).supervisor) as supervisor:
            late = await admit_executor(directory, "late")
            assert prepare(directory, Listen(host="127.0.0.1", port=port)) == config
            await reload(directory)
            await supervisor.publish_job(a_job(), "d1")
            async with NatsExecutorLink.connect(early), NatsExecutorLink.connect(late) as link:
                assert await link.next_job(5) is not None
    finally:
        server.terminate()
        await server.wait()

    assert early.url == late.url == f"nats://127.0.0.1:{port}"
    with pytest.raises(UsageError, match="port"):
        prepare(tmp_path / "other", Listen())


async def test_the_stanza_is_what_our_own_configuration_says(directory: Path) -> None:
    """A person who pastes it into a cluster of theirs grants the same rights."""
    await admit_executor(directory, "ex1", ("gpu",))
    await admit_client(directory, "laptop")
    written = (directory / "nats.conf").read_text()

    executors = admitted(directory)
    told = [stanza(executors[0], executors), stanza(admitted_clients(directory)[0], executors)]

    assert ["account EXEC;" in told[0], "account CLIENT;" in told[1]] == [True, True]
    assert all(text.splitlines()[1] in written for text in told)


async def test_what_a_client_needs_is_allowed(directory: Path) -> None:
    """The control of every refusal in tests/security: life signs, drain."""
    client = await admit_client(directory, "laptop")
    executor = await admit_executor(directory, "ex1")
    async with NatsFleetClient.connect(client) as cli, NatsExecutorLink.connect(executor) as link:
        await link.heartbeat(a_heartbeat())
        heard = asyncio.create_task(take(link.controls(), 1))

        async def is_heard() -> bool:
            await cli.drain("ex1", "maintenance")
            return heard.done()

        await wait_until(is_heard, "the drain is heard")

        assert [beat.executor for beat in await cli.executors()] == ["ex1"]
        assert [control.verb for control in await heard] == ["drain"]


async def test_keys_in_the_directory_are_their_owners_alone(directory: Path) -> None:
    """Whatever an admission writes there."""
    await admit_executor(directory, "ex1")
    await admit_client(directory, "laptop")

    readable = [path.name for path in directory.iterdir() if path.is_file() and path.stat().st_mode & 0o077]

    assert set(readable) <= {"nats.log", "nats.err"}
    assert json.loads((directory / "executors.json").read_text())[0]["name"] == "ex1"


def _admit_elsewhere(directory: Path, name: str, path: Path) -> None:
    subprocess.run([sys.executable, "-c", _ADMITS, str(directory), name, str(path)], check=True, cwd=Path(__file__).parents[2], timeout=60)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
