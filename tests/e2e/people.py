"""Who uses Andon in the tests: root with this checkout, and an ordinary member of the `docker` group with a clone of their own."""

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("build.lock", "andon.lock")
PATH = "/usr/local/bin:/usr/bin:/bin"
PYTHON = "/usr/bin/python3"
SETUP_S = 600
_PACKAGE_S = 600


@dataclass(frozen=True)
class Person:
    """Somebody with a home, a checkout that is set up, and perhaps a user of their own."""

    uid: int
    gid: int
    home: Path
    checkout: Path
    as_user: tuple[str, ...] = ()
    """What a command line begins with."""
    environment: Mapping[str, str] | None = None
    """A clean environment; None: the test's own."""

    @property
    def andon(self) -> tuple[str, ...]:
        """Return the command as this person calls it."""
        return (*self.as_user, str(self.checkout / ".venv" / "bin" / "andon"))

    def calls(self, *argv: str, extra: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout, to its end; `extra` is added to the environment."""
        return subprocess.run(
            [*self.as_user, *argv],
            cwd=self.checkout,
            env={**(os.environ if self.environment is None else self.environment), **(extra or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SETUP_S,
            check=False,
        )

    def owns(self, path: Path) -> None:
        """Give `path` and everything below it to this person."""
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        for directory, directories, files in os.walk(os.fsencode(path)):
            for each in directories + files:
                os.chown(os.path.join(directory, each), self.uid, self.gid, follow_symlinks=False)  # noqa: PTH118  # bytes


def the_tester(home: Path) -> Person:
    """Return the user who runs the tests, with the checkout and environment they run from."""
    checkout = Path(sys.prefix).parent
    return Person(os.geteuid(), os.getegid(), home, checkout)


@contextmanager
def ordinary_member() -> Iterator[Person]:
    """Make a user in the group `docker` who has a copy of this checkout and nothing else; gone afterwards, with all it owns."""
    name = f"andon-t{os.getpid()}"
    home = Path(tempfile.mkdtemp(prefix="andon-person-"))
    home.chmod(0o755)
    _root("useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", "--user-group", "--groups", "docker", name)
    try:
        account = pwd.getpwnam(name)
        as_user = ("setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups", "--")
        environment = {"HOME": str(home), "USER": name, "LOGNAME": name, "SHELL": "/bin/sh", "LANG": "C.UTF-8", "PATH": PATH}
        person = Person(account.pw_uid, account.pw_gid, home, home / "andon", as_user, environment)
        _clone(person.checkout)
        person.owns(home)
        yield person
    finally:
        _root("userdel", "--force", name)
        shutil.rmtree(home, ignore_errors=True)


def sets_up(person: Person) -> None:
    """Run `make setup` in the person's checkout; what pip downloads is kept outside the tree, for each state of the lock files."""
    if subprocess.run([PYTHON, "-c", "import ensurepip"], capture_output=True, timeout=60, check=False).returncode != 0:
        _root("apt-get", "install", "-y", "-q", "--no-install-recommends", "python3-venv")
    locks = [ROOT / "requirements" / name for name in LOCKS]
    kept = _cache() / f"pip-{sha256(b''.join(lock.read_bytes() for lock in locks)).hexdigest()[:16]}"
    own = person.home / ".cache" / "pip"
    if kept.is_dir():
        shutil.copytree(kept, own)
        person.owns(own.parent)
    done = person.calls("make", "setup")
    assert done.returncode == 0, done.stderr
    if not kept.is_dir():
        _keep(own, kept)


def _keep(downloads: Path, kept: Path) -> None:
    """Copy at once or not at all: another session may do the same."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch, contextlib.suppress(OSError):
        shutil.copytree(downloads, Path(scratch) / "pip")
        (Path(scratch) / "pip").rename(kept)


def processes_at(home: Path) -> dict[int, str]:
    """Return the processes whose HOME is this one, with their commands."""
    wanted = f"HOME={home}".encode()
    found: dict[int, str] = {}
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and wanted in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return {pid: command for pid, command in found.items() if command}


def _clone(into: Path) -> None:
    """Copy the files git knows or would add, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    for name in map(os.fsdecode, filter(None, listed.split(b"\0"))):
        if (ROOT / name).is_file():  # one that was deleted and not yet committed is listed too
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, into / name)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "andon-servers"


def _root(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_PACKAGE_S, check=False)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr.strip()}"
