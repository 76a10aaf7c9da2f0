"""The sample: a small API as a fresh git repository, and the feature that is shown on it; not the cassette's recording.

The repository's files are package data under `repository/`. Its one commit has a fixed date and identity, so that equal
releases give equal commits and a cassette fits every copy.
"""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from sandbox.contract.errors import ConflictError
from sandbox.git import ANDON, Git, in_thread

SAMPLE_REQUEST = "Add rate limiting to the API: 100 requests/minute per IP, 429 with Retry-After"
SAMPLE_FEATURE = "add-rate-limiting-to-the-api"
COMMITTED_AT = 1_735_689_600
"""2025-01-01T00:00:00Z."""
_LITTER = frozenset({"__pycache__", ".pytest_cache"})


async def create_sample_repository(path: Path) -> None:
    """Make a new git repository with the sample's files, committed on `main`, and its work tree.

    Raises:
        ConflictError: `path` exists and is not an empty directory.
        GitError: Git failed.
    """
    await in_thread(_create, path)


def sample_files() -> dict[str, bytes]:
    """Return the sample's files by path relative to its root."""
    found: dict[str, bytes] = {}
    _collect(files("supervisor.demo").joinpath("repository"), "", found)
    return dict(sorted(found.items()))


def _collect(folder: Traversable, prefix: str, found: dict[str, bytes]) -> None:
    for entry in folder.iterdir():
        if entry.name in _LITTER:
            continue
        if entry.is_dir():
            _collect(entry, f"{prefix}{entry.name}/", found)
        else:
            found[prefix + entry.name] = entry.read_bytes()


def _create(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConflictError(f"{path} is not empty; the sample needs a new directory")
    contents = sample_files()
    for name, data in contents.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    git = Git(path / ".git")
    git.run("init", "--quiet", "--template=", "--initial-branch=main")
    git.run("fast-import", "--quiet", "--done", "--date-format=raw", stdin=_stream(contents))
    git.run("read-tree", "refs/heads/main")  # the index, so that `git status` is clean


def _stream(contents: dict[str, bytes]) -> bytes:
    """Return the `fast-import` stream of one root commit."""
    who = f"{ANDON.name} <{ANDON.email}> {COMMITTED_AT} +0000"
    message = b"Notes API 1.0.0\n"
    parts = [f"commit refs/heads/main\nauthor {who}\ncommitter {who}\ndata {len(message)}\n".encode(), message]
    for name, data in contents.items():
        parts += [f"M 100644 inline {name}\ndata {len(data)}\n".encode(), data, b"\n"]
    return b"".join([*parts, b"\ndone\n"])
