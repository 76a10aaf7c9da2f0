"""The stack's own process: broker, supervisor and executor as its children, until nobody needs it; not who uses it (`client`)."""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from sandbox.contract.credentials import FILE_SUFFIX, write_credentials
from sandbox.contract.errors import AndonError
from sandbox.contract.release import RELEASE
from sandbox.log import LEVEL, Log, log_to_stderr
from supervisor.config import ENVIRONMENT, PROVIDER_ENVIRONMENT, Config, StateDirectory, load, write_atomically
from supervisor.errors import InfrastructureError
from supervisor.stack.file import POLL_S, STOP_S, StackFile, fingerprint, listen_of
from supervisor.stack.log_file import keep_bounded
from supervisor.store.broker.child import bound_to_us
from supervisor.store.broker.embedded import EmbeddedBroker, supervisor_file

log = Log(__name__)

EXECUTOR_NAME = "local"
GRACE_S = 2.0
"""How long a stack without clients stays, so that two runs in a row share one."""
TAKE_TRIES_MAX = 10
RESTARTS_MAX = 10
"""Restarts of one child within `RESTARTS_WINDOW_S` before the stack gives up: a child that cannot stay up is a fault to show."""
RESTARTS_WINDOW_S = 600.0


class _Child:
    """A child process that is started again when it dies."""

    def __init__(self, name: str, argv: list[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._argv = argv
        self._environment = dict(environment)
        self._deaths: deque[float] = deque(maxlen=RESTARTS_MAX)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(bound_to_us(self._argv), stdin=subprocess.DEVNULL, env=self._environment, cwd="/", start_new_session=True)

    def revive(self) -> bool:
        """Start it again if it is dead; return whether it was."""
        if self.process.poll() is None:
            return False
        now = time.monotonic()
        if len(self._deaths) == RESTARTS_MAX and now - self._deaths[0] < RESTARTS_WINDOW_S:
            times = f"{RESTARTS_MAX + 1} times in {RESTARTS_WINDOW_S / 60:.0f} minutes"
            raise InfrastructureError(f"{self.name} ended {times}, last with exit code {self.process.returncode}")
        self._deaths.append(now)
        log.warning("child.restarted", f"{self.name} ended and is started again", exit_code=self.process.returncode)
        self.process = self._start()
        return True

    def stop(self, seconds: float) -> None:
        """End it, by force after `seconds`."""
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Stack:
    """The stack process."""

    def __init__(self, config: Config, state: StateDirectory, environment: Mapping[str, str], clients: int) -> None:
        self._config = config
        self._state = state
        self._environment = environment
        self._clients = clients
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Hold everything up until nobody needs it or SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)
        binary = self._environment.get("NATS_SERVER_BIN")
        binary_path = Path(binary) if binary else None
        async with EmbeddedBroker.run(self._state.nats, binary=binary_path, listen=listen_of(self._config)) as broker:
            credentials = await self._admit(broker)
            children = [self._supervisor(broker), self._executor(credentials)]
            try:
                await self._watch(broker, children)
            finally:
                self._state.stack_file.unlink(missing_ok=True)
                for child, seconds in zip(reversed(children), (STOP_S / 2, STOP_S / 4), strict=True):
                    child.stop(seconds)

    async def _admit(self, broker: EmbeddedBroker) -> Path:
        """Give our own executor a new key; an old one of a copied directory is worth nothing then."""
        self._state.executor.mkdir(mode=0o700, exist_ok=True)
        path = self._state.executor / f"{EXECUTOR_NAME}{FILE_SUFFIX}"
        credentials = await broker.add_executor(EXECUTOR_NAME)
        write_credentials(path, credentials.model_copy(update={"url": broker.url}))
        return path

    def _supervisor(self, broker: EmbeddedBroker) -> _Child:
        # The control plane never sees the provider's key.
        environment = {name: value for name, value in self._environment.items() if name not in PROVIDER_ENVIRONMENT}
        own = {"NATS_URL": broker.url, "NATS_CREDS": str(supervisor_file(self._state.nats))}
        return _Child("supervisor", [sys.executable, "-m", "supervisor", "--embedded"], {**environment, **own})

    def _executor(self, credentials: Path) -> _Child:
        argv = [sys.executable, "-m", "sandbox.executor", "--embedded", "--creds", str(credentials)]
        argv += ["--state", str(self._state.executor), "--slots", str(self._config.slots)]
        # The data plane never sees the history's password.
        environment = {name: value for name, value in self._environment.items() if name not in ENVIRONMENT["database_url"]}
        return _Child("executor", argv, {**environment, LEVEL: self._config.log_level})

    async def _watch(self, broker: EmbeddedBroker, children: list[_Child]) -> None:
        """Write the stack file whenever a process changed, and return when the stack should stop."""
        alone_since: float | None = None
        written: dict[str, int] = {}
        failed = asyncio.create_task(broker.wait_failed())
        try:
            while not self._stopping.is_set():
                for child in children:
                    child.revive()
                written = self._write(broker, children, written)
                keep_bounded(self._state.stack_log)
                if failed.done():
                    raise InfrastructureError(f"the broker cannot be kept running: {failed.result()}")
                if self._keep or not self._is_alone():
                    alone_since = None
                else:
                    alone_since = alone_since or time.monotonic()
                    if time.monotonic() - alone_since >= GRACE_S and self._is_alone(keep_lock=True):
                        return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), POLL_S)
        finally:
            failed.cancel()

    def _write(self, broker: EmbeddedBroker, children: list[_Child], written: dict[str, int]) -> dict[str, int]:
        pids = {"nats-server": broker.pid, **{child.name: child.process.pid for child in children}}
        if pids != written:
            stack = StackFile(
                pid=os.getpid(),
                nats_url=broker.url,
                supervisor_credentials=supervisor_file(self._state.nats),
                fingerprint=fingerprint(self._config),
                release=RELEASE,
                keep=self._keep,
                listen=self._config.listen or "",
                advertise=self._config.advertise or "",
                others_url=broker.others_url if self._config.listen else "",
                children=pids,
            )
            write_atomically(self._state.stack_file, stack.model_dump_json(indent=2).encode() + b"\n")
        return pids

    @property
    def _keep(self) -> bool:
        return (self._state.root / "stack.keep").exists()

    def _is_alone(self, *, keep_lock: bool = False) -> bool:
        """Return whether no client holds the shared lock; `keep_lock` keeps new ones out while the stack stops."""
        try:
            fcntl.flock(self._clients, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not keep_lock:
            fcntl.flock(self._clients, fcntl.LOCK_UN)
        return True


def _take(lock: int) -> bool:
    """Take the stack's lock; whoever only looks whether it is taken holds it for a moment, so once is not enough."""
    for _ in range(TAKE_TRIES_MAX):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL_S / 5)
        else:
            return True
    return False


def main(arguments: list[str]) -> int:
    """Run the stack process; a second one on the same state directory ends at once with 0."""
    config = load()
    log_to_stderr("andon-stack", os.environ, config.log_level)
    state = StateDirectory.open(config.state_directory)
    if "--keep" in arguments:
        (state.root / "stack.keep").touch(mode=0o600)
    lock = os.open(state.root / "stack.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _take(lock):
        return 0
    clients = os.open(state.root / "stack.clients", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    state.stack_file.unlink(missing_ok=True)
    try:
        asyncio.run(_Stack(config, state, dict(os.environ), clients).run())
    except AndonError as error:
        log.error("stack.failed", f"the stack ends: {error}")  # noqa: TRY400 - no trace: the message says what, which and what to do
        return error.exit_code
    return 0
