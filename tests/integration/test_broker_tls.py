"""A broker that listens beyond loopback: TLS for everybody, by an authority of its own that every credentials file carries."""

import asyncio
import ssl
import stat
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from sandbox.bus import Connection, NatsExecutorLink, NatsSupervisorLink
from sandbox.contract.credentials import Credentials, read_credentials
from sandbox.contract.errors import BrokerError, BrokerRefused, ConfigError, UsageError
from supervisor.store.broker.admission import admit_client, admit_executor, dismiss
from supervisor.store.broker.certificates import AUTHORITY_DAYS, CERTIFICATE_DAYS, RENEW_DAYS, ensure_certificates
from supervisor.store.broker.embedded import EmbeddedBroker
from supervisor.store.broker.listen import ANY_PORT, Listen
from supervisor.store.broker.site import Site
from supervisor.store.client import NatsFleetClient
from tests.fakes.wire_data import a_heartbeat

EVERYWHERE = Listen(host="0.0.0.0", port=ANY_PORT, advertise="localhost")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    async with EmbeddedBroker.run(tmp_path / "nats", listen=EVERYWHERE) as broker, NatsSupervisorLink.connect(broker.supervisor):
        yield broker


async def test_everybody_speaks_tls_with_what_their_file_says(broker: EmbeddedBroker, tmp_path: Path) -> None:
    """Executors, clients and the supervisor itself; others connect by the advertised name."""
    executor = await admit_executor(tmp_path / "nats", "ex1")
    client = await admit_client(tmp_path / "nats", "laptop")

    async with NatsSupervisorLink.connect(broker.supervisor) as supervisor, NatsExecutorLink.connect(executor) as link:
        await link.heartbeat(a_heartbeat())
        async with NatsFleetClient.connect(client) as cli:
            assert await cli.executors() == await supervisor.executors() != []

    port = broker.url.rsplit(":", 1)[1]
    assert (executor.url, client.url, broker.url) == (f"tls://localhost:{port}", f"tls://localhost:{port}", f"tls://127.0.0.1:{port}")
    assert executor.ca == client.ca == broker.supervisor.ca == (tmp_path / "nats" / "ca.pem").read_text()


async def test_plain_text_is_refused(broker: EmbeddedBroker) -> None:
    """Whoever goes on without TLS after the broker's greeting is cut off before it says anything else."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(broker.url.rsplit(":", 1)[1]))
    assert b'"tls_required":true' in await reader.readline()

    writer.write(b'CONNECT {"verbose":true}\r\nPING\r\n')

    said = await asyncio.wait_for(reader.read(4096), 10)
    writer.close()
    assert b"PONG" not in said
    assert b"+OK" not in said


async def test_the_wrong_authority_is_one_clear_line_at_once(broker: EmbeddedBroker, tmp_path: Path) -> None:
    """A file from another broker, or none of its own, is said before a key is shown; nobody waits for the connect to time out."""
    other = ensure_certificates(tmp_path, ["localhost"])
    for ca in (other.authority_pem, None):
        began = time.monotonic()
        with pytest.raises(
            BrokerRefused, match=r"^the broker at tls://\S+ shows a certificate its credentials file does not vouch for \("
        ) as told:
            async with Connection.open(broker.supervisor.model_copy(update={"ca": ca}), name="x", inbox="fleet"):
                pass
        assert time.monotonic() - began < 2
        assert "\n" not in str(told.value)


async def test_a_name_that_is_not_the_brokers_is_refused(broker: EmbeddedBroker) -> None:
    """The authority vouches for names, not for whoever answers."""
    elsewhere = broker.supervisor.model_copy(update={"url": broker.url.replace("127.0.0.1", "127.0.0.3")})

    with pytest.raises(BrokerRefused, match=r"127\.0\.0\.3"):
        async with Connection.open(elsewhere, name="x", inbox="fleet"):
            pass


async def test_a_broker_that_lost_its_tls_is_not_spoken_to(tmp_path: Path) -> None:
    """Who was told `tls` says nothing in clear text, even if the other end claims that it wants none."""
    async with EmbeddedBroker.run(tmp_path / "nats") as plain:
        port = plain.url.rsplit(":", 1)[1]
        ours = plain.supervisor.model_copy(update={"url": f"tls://127.0.0.1:{port}"})

        with pytest.raises(BrokerRefused, match="clear text"):
            async with Connection.open(ours, name="x", inbox="fleet"):
                pass


async def test_a_dismissed_executor_is_refused_over_tls_too(broker: EmbeddedBroker, tmp_path: Path) -> None:
    """The refusal's words arrive through the encrypted connection."""
    executor = await admit_executor(tmp_path / "nats", "ex1")
    await dismiss(tmp_path / "nats", "ex1")

    with pytest.raises(BrokerRefused, match=r"(?i)authorization"):
        async with NatsExecutorLink.connect(executor):
            pass


async def test_a_restart_keeps_the_authority_and_the_port(tmp_path: Path) -> None:
    """Files handed out before go on being good; from loopback to the network and back they are not."""
    async with EmbeddedBroker.run(tmp_path / "nats", listen=EVERYWHERE):
        executor = await admit_executor(tmp_path / "nats", "ex1")
    async with EmbeddedBroker.run(tmp_path / "nats", listen=EVERYWHERE.model_copy(update={"advertise": "broker.example"})) as broker:
        assert broker.supervisor.url == f"tls://127.0.0.1:{executor.url.rsplit(':', 1)[1]}"
        async with NatsExecutorLink.connect(executor):
            pass
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        assert broker.supervisor.url.startswith("nats://")
        assert broker.supervisor.ca is None
        with pytest.raises(BrokerError):
            async with NatsExecutorLink.connect(executor):
                pass


async def test_keys_are_their_owners_alone(broker: EmbeddedBroker, tmp_path: Path) -> None:
    """Private keys never leave the directory."""
    directory = tmp_path / "nats"

    modes = {name: stat.S_IMODE((directory / name).stat().st_mode) for name in ("ca.key", "server.key", "nats.conf")}

    assert set(modes.values()) == {0o600}
    for name in ("supervisor", "obs", "sys"):
        assert "PRIVATE KEY" not in (read_credentials(Site.there(directory).file(name), Credentials).ca or "")


async def test_a_running_broker_takes_its_new_certificate(broker: EmbeddedBroker, tmp_path: Path) -> None:
    """A stack that runs for a year does not end with its certificate; who is connected stays so."""
    directory = tmp_path / "nats"
    before = await _shown(broker)
    old = datetime.now(UTC) - timedelta(days=CERTIFICATE_DAYS - RENEW_DAYS + 1)
    (directory / "server.pem").unlink()
    aged = ensure_certificates(directory, EVERYWHERE.names, now=old).certificate.read_bytes()

    async with Connection.open(broker.supervisor, name="x", inbox="fleet") as connection:
        await broker.renew_certificate()
        shown = await _shown(broker)
        await connection.api("INFO")

    assert (directory / "server.pem").read_bytes() != aged
    assert shown == ssl.PEM_cert_to_DER_cert((directory / "server.pem").read_text()) != before


async def _shown(broker: EmbeddedBroker) -> bytes:
    """Return the certificate the broker shows to whoever connects."""
    trust = ssl.create_default_context(cadata=broker.supervisor.ca)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(broker.url.rsplit(":", 1)[1]))
    await reader.readline()
    await writer.start_tls(trust, server_hostname="127.0.0.1")
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with suppress(OSError, ssl.SSLError):
        await writer.wait_closed()
    return shown


def test_a_certificate_holds_every_name_and_is_renewed_before_its_end(tmp_path: Path) -> None:
    """It is made again 30 days before its end and for a new name; the authority stays, until it could not outlive another one."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    files = ensure_certificates(tmp_path, ["host.example", "10.0.0.1", "::1"], now=now)
    authority, first = files.authority.read_bytes(), files.certificate.read_bytes()
    names = x509.load_pem_x509_certificate(first).extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    def after(days: int, names: tuple[str, ...] = ("10.0.0.1", "host.example")) -> bytes:
        return ensure_certificates(tmp_path, names, now=now + timedelta(days=days)).certificate.read_bytes()

    assert sorted(names.get_values_for_type(x509.DNSName)) == ["host.example"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    assert after(CERTIFICATE_DAYS - RENEW_DAYS - 1) == first
    second = after(CERTIFICATE_DAYS - RENEW_DAYS)
    assert second != first
    assert after(CERTIFICATE_DAYS - RENEW_DAYS, ("new.example",)) not in (first, second)
    assert files.authority.read_bytes() == authority
    after(AUTHORITY_DAYS - CERTIFICATE_DAYS)
    assert files.authority.read_bytes() != authority


def test_a_key_that_is_not_the_certificates_is_replaced(tmp_path: Path) -> None:
    """Half a pair, or rubbish, does not stop the broker for good."""
    files = ensure_certificates(tmp_path, ["localhost"])
    files.key.unlink()
    again = ensure_certificates(tmp_path, ["localhost"])
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(again.certificate, again.key)

    files.certificate.write_text("rubbish")
    with pytest.raises(ConfigError, match=r"server\.pem"):
        ensure_certificates(tmp_path, ["localhost"])


@pytest.mark.parametrize(
    ("address", "advertise", "url"),
    [
        ("0.0.0.0:4222", "fleet.example", "tls://fleet.example:7"),
        ("0.0.0.0:4222", "fleet.example:443", "tls://fleet.example:443"),
        ("10.0.0.1:4222", None, "tls://10.0.0.1:7"),
        ("[::1]:4222", None, "nats://[::1]:7"),
        ("localhost:4222", None, "nats://localhost:7"),
        ("[2001:db8::1]:4222", None, "tls://[2001:db8::1]:7"),
    ],
)
def test_others_are_told_where_to_connect(address: str, advertise: str | None, url: str) -> None:
    """The advertised name wins over the address, and its port over the one we listen on."""
    assert Listen.parse(address, advertise).url(7) == url


@pytest.mark.parametrize(
    "address", ["", "4222", "host", "host:", "host:0", "host:65536", "host:-1", "a b:1", "nats://h:1", "[::1", '"x":1']
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """A person is told what one looks like."""
    with pytest.raises(UsageError, match="cannot listen on"):
        Listen.parse(address)
