"""Three real nats-servers on loopback as one cluster, with our accounts; any of them may be killed and started again."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

from sandbox.bus import Connection
from sandbox.contract.credentials import Credentials, ExecutorCredentials, SupervisorCredentials, read_credentials
from sandbox.contract.errors import BrokerError
from supervisor.store.broker.admission import admit_client, admit_executor, reload_servers
from supervisor.store.broker.certificates import ensure_certificates
from supervisor.store.broker.child import bound_to_us
from supervisor.store.broker.config import SYSTEM, Cluster, Server, broker_config
from supervisor.store.broker.embedded import find_server
from supervisor.store.broker.listen import LOOPBACK, Listen
from supervisor.store.broker.site import Site

SERVERS = 3
READY_S = 30.0


class NatsCluster:
    """The servers by number, 0 to 2; `urls` are all their addresses."""

    def __init__(self, directory: Path) -> None:
        self._site = Site.made(directory / "site")
        self._directory = directory
        ports = _free_ports(2 * SERVERS)
        self._ports, self._route_ports = ports[:SERVERS], ports[SERVERS:]
        self._processes: list[asyncio.subprocess.Process | None] = [None] * SERVERS

    @classmethod
    @asynccontextmanager
    async def run(cls, directory: Path) -> AsyncIterator["NatsCluster"]:
        """Run the cluster for as long as the context lasts; it has a leader from the start."""
        cluster = cls(directory)
        try:
            for number in range(SERVERS):
                await cluster.start(number)
            await cluster._wait_ready()
            yield cluster
        finally:
            for number in range(SERVERS):
                await cluster.kill(number, signal.SIGTERM)

    @property
    def urls(self) -> str:
        """Return all addresses, as credentials files have them."""
        return ",".join(f"nats://{LOOPBACK}:{port}" for port in self._ports)

    @property
    def supervisor(self) -> SupervisorCredentials:
        """Return the FLEET account's key."""
        return self._site.supervisor.model_copy(update={"url": self.urls})

    @property
    def lost(self) -> list[int]:
        """Return the numbers of the servers that do not run."""
        return [number for number, process in enumerate(self._processes) if process is None]

    async def executor(self, name: str, pools: tuple[str, ...] = ("default",)) -> ExecutorCredentials:
        """Admit an executor to all servers."""
        credentials = await admit_executor(self._site.directory, name, pools)
        await self._tell()
        return credentials.model_copy(update={"url": self.urls})

    async def client(self, name: str) -> SupervisorCredentials:
        """Admit a client to all servers."""
        credentials = await admit_client(self._site.directory, name)
        await self._tell()
        return credentials.model_copy(update={"url": self.urls})

    async def start(self, number: int) -> None:
        """Start a server, on the store it had."""
        log = (self._directory / f"{number}.out").open("ab")
        with log:
            self._processes[number] = await asyncio.create_subprocess_exec(
                *bound_to_us([str(find_server(None)), "-c", str(self._write_config(number))]), stdout=log, stderr=log, env={}
            )

    async def kill(self, number: int, how: signal.Signals = signal.SIGKILL) -> None:
        """End a server."""
        process, self._processes[number] = self._processes[number], None
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, how)
            await process.wait()

    async def leader(self, connection: Connection, stream: str) -> int:
        """Return the number of the server that leads a stream."""
        info = await connection.api(f"STREAM.INFO.{stream}")
        return int(info["cluster"]["leader"].removeprefix("andon-"))

    async def _tell(self) -> None:
        for number in range(SERVERS):
            self._write_config(number)
        if self.lost != list(range(SERVERS)):
            system = read_credentials(self._site.file(SYSTEM), Credentials)
            await reload_servers(system.model_copy(update={"url": self.urls}))

    def _write_config(self, number: int) -> Path:
        home = self._directory / str(number)
        (home / "ports").mkdir(parents=True, exist_ok=True)
        server = Server(
            directory=home,
            listen=Listen(port=self._ports[number]),
            name=f"andon-{number}",
            certificates=ensure_certificates(self._site.directory, [LOOPBACK]),
            cluster=Cluster(port=self._route_ports[number], routes=tuple(f"{LOOPBACK}:{port}" for port in self._route_ports)),
        )
        path = home / "nats.conf"
        path.write_text(broker_config(self._site.accounts, server))
        return path

    async def _wait_ready(self) -> None:
        """Wait until the servers have met and JetStream has a leader."""
        async with asyncio.timeout(READY_S), Connection.open(self.supervisor, name="start", inbox="fleet", connect_s=READY_S) as connection:
            while True:
                with suppress(BrokerError):
                    await connection.api("STREAM.LIST")
                    return
                await asyncio.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return [int(server.getsockname()[1]) for server in servers]
