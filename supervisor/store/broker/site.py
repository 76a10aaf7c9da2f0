"""A broker's directory: keys, who may connect, where it listens, its configuration; not its process, nor who changes it and when.

Everything in it is readable by its owner alone. Whoever changes it holds `changing` meanwhile.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from sandbox.bus import new_user_key, public_key
from sandbox.contract.credentials import FILE_SUFFIX, Credentials, SupervisorCredentials, read_credentials, write_credentials, write_private
from sandbox.contract.errors import ConfigError, ConflictError
from sandbox.contract.model import Frozen
from supervisor.store.broker.certificates import Certificates, ensure_certificates
from supervisor.store.broker.config import OBSERVER, SYSTEM, Accounts, ClientUser, ExecutorUser, Server, broker_config
from supervisor.store.broker.listen import ANY_PORT, Listen

SUPERVISOR: Final = "supervisor"
CONFIG_FILE: Final = "nats.conf"
PORTS: Final = "ports"
CHANGE_S: Final = 30.0
"""How long a change waits for another one."""
_OWN: Final = (SUPERVISOR, OBSERVER, SYSTEM)
_FIRST_URL: Final = "nats://127.0.0.1:0"
_LOCK: Final = "admission.lock"

T = TypeVar("T")


class Place(Frozen):
    """Where the broker of a directory listens, and who starts it."""

    listen: Listen = Listen()
    is_elsewhere: bool = False
    """Somebody else starts it, e.g. in a container; its directory is at the same path there."""


_executors: TypeAdapter[tuple[ExecutorUser, ...]] = TypeAdapter(tuple[ExecutorUser, ...])
_clients: TypeAdapter[tuple[ClientUser, ...]] = TypeAdapter(tuple[ClientUser, ...])
_place: TypeAdapter[Place] = TypeAdapter(Place)


class Site:
    """One directory; every property reads its files anew, because any process of this host may have changed them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    @classmethod
    def made(cls, directory: Path) -> "Site":
        """Make the directory and the broker's own keys where they are missing."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        site = cls(directory)
        (site.directory / PORTS).mkdir(mode=0o700, exist_ok=True)
        for name in _OWN:
            if not site.file(name).exists():
                write_credentials(site.file(name), Credentials(url=_FIRST_URL, nkey_seed=new_user_key().seed))
        return site

    @classmethod
    def there(cls, directory: Path) -> "Site":
        """Return the site of a directory.

        Raises:
            ConfigError: There was never a broker.
        """
        site = cls(directory)
        if not site.file(SUPERVISOR).exists():
            raise ConfigError(f"{directory} is no broker's directory: it has no {site.file(SUPERVISOR).name}")
        return site

    def file(self, name: str) -> Path:
        """Return where one of the broker's own keys is kept."""
        return self.directory / f"{name}{FILE_SUFFIX}"

    @property
    def executors(self) -> tuple[ExecutorUser, ...]:
        """Return the executors that are admitted."""
        return self._read("executors.json", _executors, ())

    @executors.setter
    def executors(self, users: tuple[ExecutorUser, ...]) -> None:
        self._write("executors.json", _executors.dump_json(users, indent=2))

    @property
    def clients(self) -> tuple[ClientUser, ...]:
        """Return the clients that are admitted."""
        return self._read("clients.json", _clients, ())

    @clients.setter
    def clients(self, users: tuple[ClientUser, ...]) -> None:
        self._write("clients.json", _clients.dump_json(users, indent=2))

    @property
    def place(self) -> Place:
        """Return where the broker listens."""
        return self._read("place.json", _place, Place())

    @place.setter
    def place(self, place: Place) -> None:
        self._write("place.json", _place.dump_json(place, indent=2))

    @property
    def port(self) -> int:
        """Return the port it was told to take, or got last; -1: none yet."""
        told = self.place.listen.port
        try:
            return told if told != ANY_PORT else int((self.directory / "port").read_text())
        except (OSError, ValueError):
            return ANY_PORT

    @port.setter
    def port(self, port: int) -> None:
        self._write("port", str(port).encode())

    @property
    def url(self) -> str:
        """Return what others connect to."""
        return self.place.listen.url(self.port)

    @property
    def own_url(self) -> str:
        """Return what processes beside this directory connect to."""
        place = self.place
        return place.listen.url(self.port) if place.is_elsewhere else place.listen.local_url(self.port)

    @property
    def accounts(self) -> Accounts:
        """Return who may connect."""
        public = {name: public_key(read_credentials(self.file(name), Credentials).nkey_seed or "") for name in _OWN}
        return Accounts(
            supervisor=public[SUPERVISOR],
            observer=public[OBSERVER],
            system=public[SYSTEM],
            executors=self.executors,
            clients=self.clients,
        )

    @property
    def supervisor(self) -> SupervisorCredentials:
        """Return the supervisors' key."""
        return read_credentials(self.file(SUPERVISOR), SupervisorCredentials)

    @property
    def certificates(self) -> Certificates | None:
        """Return the certificate, made or renewed where needed; None: it speaks to this host alone, in clear text."""
        listen = self.place.listen
        return None if listen.is_loopback else ensure_certificates(self.directory, listen.names)

    @property
    def authority(self) -> str | None:
        """Return what clients have to trust; None: nothing besides the system's."""
        certificates = self.certificates
        return certificates.authority_pem if certificates is not None else None

    def write_config(self, port: int | None = None) -> Path:
        """Write the server's configuration from the other files; `port` instead of the one it got last."""
        place = self.place
        listen = place.listen.model_copy(update={"port": self.port if port is None else port})
        server = Server(directory=self.directory, listen=listen, log_to_file=not place.is_elsewhere, certificates=self.certificates)
        self._write(CONFIG_FILE, broker_config(self.accounts, server).encode())
        return self.directory / CONFIG_FILE

    def write_own_files(self) -> None:
        """Write where the broker is into its own credentials files."""
        where = {"url": self.own_url, "ca": self.authority}
        for name in _OWN:
            path = self.file(name)
            write_credentials(path, read_credentials(path, Credentials).model_copy(update=where))

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Hold the directory against other changes.

        Raises:
            ConflictError: Somebody else held it for 30 s.
        """
        descriptor = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await held(descriptor, CHANGE_S, f"somebody else changes {self.directory}")
            yield
        finally:
            os.close(descriptor)

    def _read(self, name: str, kind: TypeAdapter[T], absent: T) -> T:
        path = self.directory / name
        try:
            return kind.validate_json(path.read_bytes()) if path.exists() else absent
        except ValidationError as error:
            raise ConfigError(f"{path} is not ours: {error.error_count()} errors") from error

    def _write(self, name: str, data: bytes) -> None:
        write_private(self.directory / name, data)


async def held(descriptor: int, wait_s: float, otherwise: str) -> None:
    """Take the lock of an open file.

    Raises:
        ConflictError: It is taken for longer than `wait_s`; `otherwise` is the message.
    """
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise ConflictError(otherwise) from None
        else:
            return
        await asyncio.sleep(0.05)
