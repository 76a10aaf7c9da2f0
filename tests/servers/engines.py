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
from collections.abc import Callable, Iterator
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
    around: Callable[[Path], contextlib.AbstractContextManager[None]] = lambda _state: contextlib.nullcontext()
    """What has to be there while it runs, given its directory."""
    view: str = ""
    """Below its directory: what it sees at /tmp, in a mount namespace of its own."""
    place: str = tempfile.gettempdir()
    """Where its socket and state are."""
    data: str = ""
    """Where its data are, if not beside the programs."""


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
        programs = _debian_programs() if is_debian(name) else _current_programs()
        url = self._stack.enter_context(_private_engine("debian" if is_debian(name) else "current", programs, _setting(name)))
        return TestEngine(name, url, _version(url) or "")


def is_debian(name: EngineName) -> bool:
    """Return whether an engine that is not running already would be Debian's."""
    return name in {"default", "debian", "userns-debian"}


def _setting(name: EngineName) -> Setting:
    if name == "runsc":
        program = str(recipe("gvisor") / "runsc")
        registered: dict[str, object] = {"path": program, "runtimeArgs": ["--host-uds=open", "--oci-seccomp"]}
        return Setting(runtimes={"runsc": registered, "runsc-bare": {"path": program}})
    if name in {"userns", "userns-debian"}:
        user = f"andon-{'d' if is_debian(name) else 'c'}{os.getpid()}"
        # The users of the mapping have to reach its data: a cache below root's home is closed to them.
        return Setting(flags=(f"--userns-remap={user}",), around=lambda _: _mapped_user(user), data=f"/var/cache/andon-servers/{name}")
    if name == "apart":
        recipe("debian-tools")
        return Setting(around=_carried_view, view="view", place="/run")
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
                # Read to its end: it says whether the image arrived, and an answer nobody reads leaves its socket open.
                for event in new.load_image(old.get_image(tag)):  # type: ignore[no-untyped-call]
                    if "error" in event:
                        raise NotHereError(f"{tag} cannot be copied to {target}: {event['error']}")


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
        with setting.around(state), _own_data(Path(setting.data) if setting.data else cache, f"{name}-data") as data:
            url = f"unix://{state}/docker.sock"
            (state / "daemon.json").write_text(json.dumps({"runtimes": setting.runtimes} if setting.runtimes else {}))
            command = [
                *_namespaces(state / setting.view if setting.view else None),
                *("dockerd", "--config-file", str(state / "daemon.json"), *setting.flags),
                *("--data-root", str(data), "--exec-root", str(state / "exec"), "--pidfile", str(state / "pid")),
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


def _namespaces(view: Path | None) -> tuple[str, ...]:
    """Return how an engine begins: with the session, and in a network namespace of its own, where it can delete nobody's bridge."""
    begins = ("setpriv", "--pdeathsig", "TERM", "unshare", "--net")
    if view is None:
        return begins
    return (*begins, "--mount", "sh", "-ec", 'mount --bind "$0" /tmp; exec "$@"', str(view))


@contextlib.contextmanager
def _mapped_user(name: str) -> Iterator[None]:
    """Make the user whose subordinate users an engine maps to."""
    users = f"{FIRST_MAPPED}-{FIRST_MAPPED + 65_535}"
    _as_root("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", name)
    try:
        _as_root("usermod", "--add-subuids", users, "--add-subgids", users, name)
        yield
    finally:
        _as_root("userdel", name)


@contextlib.contextmanager
def _carried_view(state: Path) -> Iterator[None]:
    """Show /tmp through a file system that carries files and no sockets; its server stays outside, where it sees every later mount."""
    (state / "view").mkdir()
    # Without caches: a directory that is made again at once would be taken for the one that is gone.
    options = "dev,suid,allow_other,entry_timeout=0,attr_timeout=0,negative_timeout=0"
    _as_root("bindfs", "-o", options, "/tmp", str(state / "view"))
    try:
        yield
    finally:
        _as_root("umount", "--lazy", str(state / "view"))


def _as_root(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise NotHereError(f"{command[0]}: {done.stderr.strip()}")


@contextlib.contextmanager
def _own_data(cache: Path, brand: str) -> Iterator[Path]:
    """Hold a data directory nobody else holds: two sessions at once get two."""
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
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
    (dockerd := state / "dockerd.sh").parent.mkdir(mode=0o755)
    dockerd.write_text(
        # What `--copy-up` shows of the machine's own engine is in the way.
        f"rm -rf {state}/run && mkdir -m 700 {state}/run && echo {{}} > {state}/run/daemon.json && rm -f /run/docker /run/containerd\n"
        f"exec dockerd --rootless --config-file {state}/run/daemon.json --data-root {state}/run/data --exec-root {state}/run/exec "
        f"--pidfile {state}/run/pid --host unix://{state}/run/docker.sock --bridge none --iptables=false --ip6tables=false\n"
    )
    shutil.chown(state, home.stat().st_uid, home.stat().st_gid)
    kit = ("rootlesskit", "--net=host", f"--state-dir={state}/kit", "--copy-up=/etc", "--copy-up=/run", "--propagation=rslave")
    # Outside, so that it shares no network with the machine although it asks for no other.
    command = ["setpriv", "--pdeathsig", "TERM", "unshare", "--net", *as_user, *kit, "sh", "-e", str(dockerd)]
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(state), "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin"}
    with tempfile.NamedTemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=home) as process:
        SESSION_PROCESSES.add(process.pid)
        try:
            _wait_ready(process, f"unix://{state}/run/docker.sock", Path(log.name))
            yield f"unix://{state}/run/docker.sock"
        finally:
            _stop(process)
