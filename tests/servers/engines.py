"""Container engines for tests: the machine's own, Debian's 20.10, the current one, and unusual ones; not what runs in them.

A private engine has its own socket, state and network namespace, so that it touches nothing of another one on the
machine. Its images are kept between sessions, beside the programs, outside the tree.

Unusual are: `runsc`, where gVisor is registered as we ask for it, and as somebody would who did not read that (`runsc-bare`);
`userns` and `userns-debian`, which map users (`userns-remap`); `apart`, which sees /tmp through another file system, where files
arrive and sockets do not, as with an engine in a virtual machine.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import docker

from tests.leaks import SESSION_PROCESSES

EngineName = Literal["default", "debian", "current", "runsc", "userns", "userns-debian", "apart"]

DEFAULT_URL = "unix:///var/run/docker.sock"
DEBIAN_VERSION = "20.10."
RECIPES = Path(__file__).parent
FIRST_MAPPED = 300_000
"""The user of the host that is root in a container of an engine that maps users."""
_READY_S = 60
_STOP_S = 30
_BUILD_S = 1800
_SESSIONS_MAX = 8


class NotHereError(Exception):
    """This machine cannot give the engine; the message says why."""


@dataclass(frozen=True)
class TestEngine:
    """One engine tests may use."""

    __test__ = False

    name: EngineName
    url: str
    version: str


@dataclass(frozen=True)
class Setting:
    """What is unusual about a private engine."""

    runtimes: dict[str, dict[str, object]] = field(default_factory=dict)
    """As in its daemon.json."""
    flags: tuple[str, ...] = ()
    prelude: str = ""
    """Shell, run as root in the engine's own mount namespace before it starts; `$state` is its directory, `$data` that of its data."""
    place: str = tempfile.gettempdir()
    """Where its socket and state are."""
    data: str = "{data}"
    """Its data directory."""
    brand: str = ""
    """Of its data, if others cannot use them."""


class Engines:
    """The engines of one test session, each found or started at first use and stopped when the stack closes."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._known: dict[EngineName, TestEngine] = {}

    def get(self, name: EngineName) -> TestEngine:
        """Return an engine, starting it if need be.

        Raises:
            NotHereError: This machine cannot give it.
        """
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def started(self) -> list[TestEngine]:
        """Return the engines used so far."""
        return list(self._known.values())

    def _find(self, name: EngineName) -> TestEngine:
        version = _version(DEFAULT_URL)
        if name == "default" and version is not None:
            return TestEngine(name, DEFAULT_URL, version)
        if name == "debian" and (version or "").startswith(DEBIAN_VERSION):
            return TestEngine(name, DEFAULT_URL, version or "")
        if os.geteuid() != 0:
            raise NotHereError(f"needs root: engine {name!r} is not running and only root can start one")
        is_debian = name in {"default", "debian", "userns-debian"}
        programs = _debian_programs() if is_debian else _current_programs()
        url = self._stack.enter_context(_private_engine("debian" if is_debian else "current", programs, _setting(name)))
        return TestEngine(name, url, _version(url) or "")


def _setting(name: EngineName) -> Setting:
    if name == "runsc":
        program = str(recipe("gvisor") / "runsc")
        registered: dict[str, object] = {"path": program, "runtimeArgs": ["--host-uds=open", "--oci-seccomp"]}
        return Setting(runtimes={"runsc": registered, "runsc-bare": {"path": program}})
    if name in {"userns", "userns-debian"}:
        # The files a distribution has; `nobody` is the one user besides root that is everywhere.
        ids = f'echo nobody:{FIRST_MAPPED}:65536 > "$state/ids"; for file in subuid subgid; do mount --bind "$state/ids" /etc/$file; done'
        # Its data, below a home that is closed to others, is where the mapped users may go.
        own = 'mkdir "$state/data"; chmod 711 "$data"; mount --bind "$data" "$state/data"'
        return Setting(flags=("--userns-remap=nobody:nogroup",), prelude=f"{ids}; {own}", data="{state}/data", brand=name)
    if name == "apart":
        recipe("debian-tools")
        return Setting(prelude="bindfs -o dev,suid /tmp /tmp", place="/run")
    return Setting()


def recipe(name: str) -> Path:
    """Return the directory of a recipe's programs, building them if need be.

    Raises:
        NotHereError: This machine cannot build them.
    """
    done = subprocess.run(["/bin/sh", str(RECIPES / name / "build.sh")], capture_output=True, text=True, timeout=_BUILD_S, check=False)
    if done.returncode != 0:
        raise NotHereError(f"{name} cannot be built here: {done.stderr.strip().splitlines()[-1:]}")
    return Path(done.stdout.strip())


def copy_images(source: str, target: str, tags: list[str]) -> None:
    """Copy tagged images from one engine to another, where the source has them and the target has not."""
    with contextlib.closing(docker.APIClient(source, timeout=300)) as old, contextlib.closing(docker.APIClient(target, timeout=300)) as new:
        have = {tag for image in new.images() for tag in image.get("RepoTags") or ()}
        given = {tag for image in old.images() for tag in image.get("RepoTags") or ()}
        for tag in tags:
            if tag in given and tag not in have:
                new.load_image(old.get_image(tag))  # type: ignore[no-untyped-call]


def _version(url: str) -> str | None:
    """Ask without the SDK, whose client leaves a socket open when nothing answers."""
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(10)
            asking.connect(url.removeprefix("unix://"))
            asking.sendall(b"GET /version HTTP/1.0\r\nHost: engine\r\n\r\n")
            answer = b"".join(iter(lambda: asking.recv(65_536), b""))
        return str(json.loads(answer.partition(b"\r\n\r\n")[2])["Version"])
    except (OSError, ValueError, KeyError):
        return None


def _debian_programs() -> Path:
    program = Path("/usr/sbin/dockerd")
    if not program.exists():
        raise NotHereError("Debian's engine is not installed; `make setup` as root installs it")
    return program.parent


def _current_programs() -> Path:
    return recipe("docker-engine")


@contextlib.contextmanager
def _private_engine(name: str, programs: Path, setting: Setting = Setting()) -> Iterator[str]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "andon-servers"
    state = Path(tempfile.mkdtemp(prefix=f"andon-{name}-", dir=setting.place))
    state.chmod(0o711)  # the socket's group reaches it, as it does in /run
    try:
        with _own_data(cache, f"{setting.brand or name}-data") as data:
            url = f"unix://{state}/docker.sock"
            (state / "daemon.json").write_text(json.dumps({"runtimes": setting.runtimes} if setting.runtimes else {}))
            command = [
                *_namespaces(state, data, setting.prelude),
                *("dockerd", "--config-file", str(state / "daemon.json"), *setting.flags),
                *(
                    "--data-root",
                    setting.data.format(state=state, data=data),
                    "--exec-root",
                    str(state / "exec"),
                    "--pidfile",
                    str(state / "pid"),
                ),
                *("--host", url, "--bridge", "none", "--iptables=false", "--ip6tables=false"),
            ]
            environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
            with (
                (state / "log").open("wb") as log,
                subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True) as process,
            ):
                SESSION_PROCESSES.add(process.pid)
                try:
                    _wait_ready(process, url, state / "log")
                    yield url
                finally:
                    _stop(process)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _namespaces(state: Path, data: Path, prelude: str) -> tuple[str, ...]:
    """Return how an engine begins: with the session, and in a network namespace of its own, where it can delete nobody's bridge."""
    begins = ("setpriv", "--pdeathsig", "TERM", "unshare", "--net")
    if not prelude:
        return begins
    # What is mounted outside later has to arrive inside, and nothing of inside outside.
    return (
        *begins,
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-ec",
        f'state=$0; data=$1; shift; {prelude}; exec "$@"',
        str(state),
        str(data),
    )


@contextlib.contextmanager
def _own_data(cache: Path, brand: str) -> Iterator[Path]:
    """Hold a data directory nobody else holds: two sessions at once get two."""
    cache.mkdir(parents=True, exist_ok=True)
    for number in range(_SESSIONS_MAX):
        data = cache / f"{brand}-{number}"
        data.mkdir(exist_ok=True)
        with (cache / f"{brand}-{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield data
            return
    raise NotHereError(f"{_SESSIONS_MAX} sessions use a private engine already")


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while _version(url) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotHereError("a private engine did not start: " + " | ".join(log.read_text().splitlines()[-3:]))
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


@contextlib.contextmanager
def rootless_engine(as_user: tuple[str, ...], home: Path) -> Iterator[str]:
    """Run Debian's engine as an ordinary user, whose command lines begin with `as_user` and who owns `home`; yield its address.

    Raises:
        NotHereError: This machine cannot give it.
    """
    programs = _debian_programs()
    recipe("debian-tools")
    state = home / "rootless"
    start = (
        f"mkdir -m 700 {state} && echo {{}} > {state}/daemon.json && "
        f"exec rootlesskit --net=host --state-dir={state}/kit --copy-up=/etc --copy-up=/run --propagation=rslave "
        f"dockerd --rootless --config-file {state}/daemon.json --data-root {state}/data --exec-root {state}/exec --pidfile {state}/pid "
        f"--host unix://{state}/docker.sock --bridge none --iptables=false --ip6tables=false"
    )
    # Outside, so that it shares no network with the machine although it asks for no other.
    command = ["setpriv", "--pdeathsig", "TERM", "unshare", "--net", *as_user, "sh", "-ec", start]
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(state), "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin"}
    with tempfile.NamedTemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=home) as process:
        SESSION_PROCESSES.add(process.pid)
        try:
            _wait_ready(process, f"unix://{state}/docker.sock", Path(log.name))
            yield f"unix://{state}/docker.sock"
        finally:
            _stop(process)
