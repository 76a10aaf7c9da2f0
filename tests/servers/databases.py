"""A private PostgreSQL cluster for a test session, and a database of its own for each test; not what is in it.

PostgreSQL refuses to run as root: as root the cluster is the package's user's, otherwise the caller's. It listens on a unix
socket only, and dies with the session.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.leaks import SESSION_PROCESSES
from tests.servers.engines import NotHereError

RECIPE = Path(__file__).parent / "postgres" / "build.sh"
ACCOUNT = "postgres"
_READY_S = 30
_STOP_S = 20
_INSTALL_S = 600


@dataclass(frozen=True)
class Cluster:
    """A running server."""

    programs: Path
    directory: Path
    prefix: tuple[str, ...]
    pid: int

    def url(self, database: str = "postgres") -> str:
        """Return the address of one of its databases."""
        return f"postgresql://{ACCOUNT}@/{database}?host={self.directory}"

    def run(self, sql: str, database: str = "postgres") -> str:
        """Run SQL with the server's own client and return what it prints."""
        command = [*self.prefix, str(self.programs / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", str(self.directory)]
        done = subprocess.run([*command, "-U", ACCOUNT, "-d", database, "-c", sql], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop every process of the server, as a machine that hangs does."""
        pids = [self.pid, *(int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split())]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a new, empty cluster for as long as the context lasts.

    Raises:
        NotHereError: There is no server here and it cannot be installed.
    """
    programs = _programs()
    prefix, uid = _user()
    directory = Path(tempfile.mkdtemp(prefix="andon-pg-"))
    os.chown(directory, uid, -1)
    try:
        data = directory / "data"
        _run(
            [
                *prefix,
                str(programs / "initdb"),
                "-D",
                str(data),
                "-U",
                ACCOUNT,
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
                "--locale=C.UTF-8",
            ]
        )
        command = [*prefix, str(programs / "postgres"), "-D", str(data), "-k", str(directory)]
        settings = {"listen_addresses": "", "fsync": "off", "max_connections": "20", "autovacuum": "off", "jit": "off"}
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (directory / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd="/") as process:
            SESSION_PROCESSES.add(process.pid)
            try:
                _wait_ready(process, [*prefix, str(programs / "pg_isready"), "-h", str(directory)], directory / "log")
                yield Cluster(programs, directory, prefix, process.pid)
            finally:
                process.send_signal(signal.SIGINT)  # open sessions are ended
                try:
                    process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _programs() -> Path:
    done = subprocess.run(["/bin/sh", str(RECIPE)], capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    if done.returncode != 0:
        raise NotHereError(f"PostgreSQL cannot be had here: {done.stderr.strip().splitlines()[-1:]}")
    return Path(done.stdout.strip())


def _user() -> tuple[tuple[str, ...], int]:
    """Return what a server's command begins with, and whose process it is then."""
    if os.geteuid() != 0:
        return ("setpriv", "--pdeathsig", "INT"), os.geteuid()
    account = pwd.getpwnam(ACCOUNT)
    drop = ("--reuid", str(account.pw_uid), "--regid", str(account.pw_gid), "--clear-groups")
    return ("setpriv", *drop, "--pdeathsig", "INT"), account.pw_uid


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd="/")
    if done.returncode != 0:
        raise NotHereError(f"{Path(command[-1]).name}: {done.stderr.strip()[-300:]}")


def _wait_ready(process: subprocess.Popen[bytes], is_ready: list[str], log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while subprocess.run(is_ready, capture_output=True, timeout=30, check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NotHereError("PostgreSQL did not start: " + " | ".join(log.read_text().splitlines()[-3:]))
        time.sleep(0.05)
