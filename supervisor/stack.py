"""The embedded stack: nats-server, supervisor and executor as processes of one parent, per user and state directory (DECISIONS G9).

The stack is a process of its own (`python -m supervisor.stack`): runs attach to it by holding a shared lock on `stack.clients`, the last
one out stops it unless `andon up` keeps it, and its children die with it, not with a CLI. Locks are the kernel's, so that a
kill -9 of anything leaves nothing to tidy by hand.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sandbox.contract.credentials import FILE_SUFFIX, write_credentials
from sandbox.contract.errors import AndonError
from sandbox.contract.model import Frozen
from sandbox.contract.release import RELEASE
from sandbox.log import log_to_stderr
from supervisor.config import ENVIRONMENT, PROVIDER_ENVIRONMENT, Config, StateDirectory, load, write_atomically
from supervisor.errors import InfrastructureError, UsageError
from supervisor.store.child import bound_to_us
from supervisor.store.embedded import EmbeddedBroker, supervisor_file
from supervisor.store.listen import Listen

log = logging.getLogger(__name__)

EXECUTOR_NAME = "local"
READY_S = 30.0
STOP_S = 20.0
LOG_TAIL_BYTES = 16 << 10
GRACE_S = 2.0
"""How long a stack without clients stays, so that two runs in a row share one."""
POLL_S = 0.1
TAKE_TRIES_MAX = 10
RESTARTS_MAX = 10
"""Restarts of one child within `RESTARTS_WINDOW_S` before the stack gives up: a child that cannot stay up is a fault to show."""
RESTARTS_WINDOW_S = 600.0

Say = Callable[[str], None]


class StackFile(Frozen):
    """`stack.json`: how to reach a running stack."""

    pid: int
    nats_url: str
    supervisor_credentials: Path
    fingerprint: str
    """Digest of the environment it was started with; says nothing about the values."""
    release: str
    keep: bool
    listen: str = ""
    """Where the broker serves other hosts, as it was asked for; empty: this host alone."""
    advertise: str = ""
    others_url: str = ""
    """How other hosts reach the broker; empty: they do not."""
    children: dict[str, int]


def fingerprint(config: Config) -> str:
    """Return what must be equal for a run to use a running stack (DECISIONS D14)."""
    models = hashlib.sha256(repr((sorted(config.models.items()), config.database_url)).encode()).hexdigest()[:8]
    return f"{config.provider_fingerprint}-{config.docker_host or ''}-{config.otlp_endpoint or ''}-{config.slots}-{models}"


def listen_of(config: Config) -> Listen | None:
    """Return where the broker is to serve other hosts; None: this host alone.

    Raises:
        UsageError: The address is none.
    """
    return Listen.parse(config.listen, config.advertise) if config.listen else None


def read_stack(state: StateDirectory) -> StackFile | None:
    """Return the running stack's file; None if none runs, whatever an old file says."""
    if not _is_locked(state.root / "stack.lock"):
        return None
    try:
        return StackFile.model_validate_json(state.stack_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


@asynccontextmanager
async def attached(config: Config, state: StateDirectory, environment: Mapping[str, str], say: Say) -> AsyncIterator[StackFile]:
    """Use the running stack or start one; it lives at least as long as this block.

    Raises:
        UsageError: A busy stack has another environment (another key, engine or exporter).
        InfrastructureError: The stack does not come up; the message names its log.
    """
    with _client(state) as descriptor:
        await _make_room(config, state, descriptor, say)
        yield await _started(config, state, environment, keep=False)


async def keep_up(config: Config, state: StateDirectory, environment: Mapping[str, str], say: Say) -> StackFile:
    """Start the stack and keep it until `shut_down`; a running one is told to stay.

    Raises:
        UsageError: The address to listen on is none, or a busy stack has another environment.
        InfrastructureError: The stack does not come up; the message names its log.
    """
    listen_of(config)
    with _client(state) as descriptor:
        await _make_room(config, state, descriptor, say)
        (state.root / "stack.keep").touch(mode=0o600)
        return await _started(config, state, environment, keep=True)


async def shut_down(state: StateDirectory) -> bool:
    """Stop the stack; return whether one ran. Runs in progress go on when the next stack starts."""
    (state.root / "stack.keep").unlink(missing_ok=True)
    stack = read_stack(state)
    if stack is None:
        return False
    await _stop(state, stack)
    return True


@contextmanager
def presence(state: StateDirectory) -> Iterator[None]:
    """Keep the stack from stopping while the block runs, as a client does; the supervisor holds it while runs are open."""
    with _client(state):
        yield


@contextmanager
def _client(state: StateDirectory) -> Iterator[int]:
    descriptor = os.open(state.root / "stack.clients", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock_shared(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock_shared(descriptor: int) -> None:
    """Take the shared lock; a stack that is stopping holds it exclusively until its process ends, so that is waited for."""
    deadline = time.monotonic() + STOP_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise InfrastructureError(f"the stack did not stop within {STOP_S:.0f} s; see stack.log in the state directory") from None
            time.sleep(POLL_S)
        else:
            return


async def _make_room(config: Config, state: StateDirectory, descriptor: int, say: Say) -> None:
    """Stop an idle stack that has another environment; refuse when somebody else uses it."""
    stack = read_stack(state)
    if stack is None or (stack.fingerprint == fingerprint(config) and _listens_as(stack, config)):
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        raise UsageError(
            "the running stack has another environment (key, engine, exporter, listen) and is busy; "
            "wait for its runs or set another ANDON_STATE_DIRECTORY"
        ) from None
    say("restarting the idle stack: its environment differs")
    await _stop(state, stack)
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def _listens_as(stack: StackFile, config: Config) -> bool:
    """Return whether a stack listens as configured; a run that says nothing of it uses whatever is there."""
    return config.listen is None or (stack.listen, stack.advertise) == (config.listen, config.advertise or "")


async def _stop(state: StateDirectory, stack: StackFile) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(stack.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while _is_locked(state.root / "stack.lock"):
        if time.monotonic() > deadline:
            raise InfrastructureError(f"stack process {stack.pid} did not stop within {STOP_S:.0f} s; see {state.root / 'stack.log'}")
        await asyncio.sleep(POLL_S)


async def _started(config: Config, state: StateDirectory, environment: Mapping[str, str], *, keep: bool) -> StackFile:
    deadline = time.monotonic() + READY_S
    process: subprocess.Popen[bytes] | None = None
    while True:
        stack = read_stack(state)
        if stack is not None:
            return stack
        if process is None:
            process = _spawn(config, state, environment, keep=keep)
        elif process.poll() == 0:  # another one was faster; if it is gone already, the next round starts ours
            process = None
        elif process.returncode is not None:
            raise InfrastructureError(f"the stack did not come up: {_last_words(state)}; see {state.root / 'stack.log'}")
        if time.monotonic() > deadline:
            raise InfrastructureError(f"the stack did not come up within {READY_S:.0f} s; see {state.root / 'stack.log'}")
        await asyncio.sleep(POLL_S / 2)


def _last_words(state: StateDirectory) -> str:
    """Return why the stack said that it ended."""
    with (state.root / "stack.log").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            said = json.loads(line)
            if said["level"] == "error":
                return str(said["msg"])
    return "it said nothing"


def _spawn(config: Config, state: StateDirectory, environment: Mapping[str, str], *, keep: bool) -> subprocess.Popen[bytes]:
    own = {**environment, "ANDON_STATE_DIRECTORY": str(state.root), "ANDON_SLOTS": str(config.slots)}
    own |= {"ANDON_LISTEN": config.listen or "", "ANDON_ADVERTISE": config.advertise or ""}
    argv = [sys.executable, "-m", "supervisor.stack", *(["--keep"] if keep else [])]
    with (state.root / "stack.log").open("ab") as out:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=own, cwd="/", start_new_session=True)


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


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
        log.warning("%s ended with exit code %s and is started again", self.name, self.process.returncode)
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
        return _Child("executor", argv, environment)

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
    log_to_stderr("andon-stack")
    config = load()
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
        log.error("the stack ends: %s", error)  # noqa: TRY400 - no trace: the message says what, which and what to do
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
