"""A command line that has one file of a fleet: what `doctor` finds wrong, and that it lists every run; over a real broker with TLS."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.bus import NatsSupervisorLink, new_user_key
from sandbox.contract.credentials import Credentials, write_credentials
from supervisor.api.views import Probe
from supervisor.bootstrap.fleet_probes import fleet_probes
from supervisor.config import load
from supervisor.store.broker.admission import admit_client, admit_executor, dismiss
from supervisor.store.broker.embedded import EmbeddedBroker
from supervisor.store.broker.listen import Listen
from supervisor.store.client import NatsFleetClient
from supervisor.store.log.jetstream import JetStreamEventLog
from tests.fakes import run_events


@dataclass
class Site:
    """A broker and a client's file for it."""

    broker: EmbeddedBroker
    directory: Path
    file: Path


@asynccontextmanager
async def a_site(tmp_path: Path) -> AsyncIterator[Site]:
    """Run a broker that serves other hosts, and admit a client."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    directory, file = tmp_path / "nats", tmp_path / "ada.andon.json"
    async with EmbeddedBroker.run(directory, listen=Listen(host="0.0.0.0", port=port, advertise="127.0.0.1")) as broker:
        write_credentials(file, await admit_client(directory, "ada"))
        yield Site(broker, directory, file)


async def probes(file: Path, **environ: str) -> dict[str, Probe]:
    """Look at the fleet a file names."""
    found = await fleet_probes(load({}, {"HOME": str(file.parent), "NATS_CREDS": str(file), **environ}))
    return {probe.name: probe for probe in found}


async def test_each_missing_part_of_a_fleet_is_one_line_with_advice(tmp_path: Path) -> None:
    """The broker is there, the key is good; nobody leads and nobody works."""
    async with a_site(tmp_path) as site, NatsSupervisorLink.connect(site.broker.supervisor):
        found = await probes(site.file)

    assert {name: probe.status for name, probe in found.items()} == {
        "fleet file": "ok",
        "broker": "ok",
        "supervisor": "fail",
        "executors": "fail",
    }
    assert "with TLS, the key is accepted" in found["broker"].detail
    assert all(probe.advice for probe in found.values() if probe.status == "fail")


async def test_a_revoked_key_is_told_from_a_broker_that_is_away(tmp_path: Path) -> None:
    """Two reasons, two pieces of advice."""
    async with a_site(tmp_path) as site:
        await dismiss(site.directory, "ada")
        revoked = await probes(site.file)
    away = await probes(site.file)

    assert "andon fleet add NAME --client --force" in revoked["broker"].advice
    assert "is the stack up" in away["broker"].advice
    assert (revoked["broker"].status, away["broker"].status) == ("fail", "fail")


async def test_another_brokers_authority_is_named(tmp_path: Path) -> None:
    """Nothing is said to a broker the file does not vouch for."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with a_site(tmp_path / "one") as one, a_site(tmp_path / "two") as two:
        found = await probes(one.file, NATS_URL=two.broker.others_url)

    assert found["broker"].status == "fail"
    assert "authority is not this broker's" in found["broker"].advice


@pytest.mark.parametrize("content", ["nonsense", "executor", "missing"])
async def test_a_wrong_file_is_one_line(tmp_path: Path, content: str) -> None:
    """No JSON, an executor's, none at all."""
    file = tmp_path / "x.andon.json"
    async with a_site(tmp_path) as site:
        if content == "executor":
            write_credentials(file, await admit_executor(site.directory, "ex1"))
        elif content == "nonsense":
            write_credentials(file, Credentials(url="nats://127.0.0.1:1", nkey_seed=new_user_key().seed))
            file.write_text("nonsense")
        found = await probes(file)

    assert [(probe.name, probe.status, bool(probe.advice)) for probe in found.values()] == [("fleet file", "fail", True)]


async def test_a_client_lists_and_reads_every_run(tmp_path: Path) -> None:
    """With a client's rights, which do not reach the stream's own list of subjects."""
    logs = [run_events.happy()[:3], run_events.happy(run="01jd8m7zzz")[:5]]
    async with a_site(tmp_path) as site, NatsSupervisorLink.connect(site.broker.supervisor) as link:
        stored = JetStreamEventLog(link.connection)
        for log in logs:
            seq = 0
            for event in log:
                seq = await stored.append(event, seq)
        credentials = await admit_client(site.directory, "eve")
        async with NatsFleetClient.connect(credentials) as client:
            runs = await client.runs()
            lengths = [len(await client.read(run_id)) for run_id in runs]

    assert (runs, lengths) == ([run_events.RUN, "01jd8m7zzz"], [3, 5])
