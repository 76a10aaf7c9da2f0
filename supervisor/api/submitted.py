"""What this host remembers of a submission (`runs/<id>/submitted.json`): where it went and the files it was made from; not the request."""

import hashlib
from pathlib import Path

from pydantic import ValidationError

from sandbox.contract.ids import Sha256
from sandbox.contract.model import Frozen
from supervisor.config import write_atomically
from supervisor.errors import ConflictError

FILE = "submitted.json"
FILE_BYTES_MAX = 1 << 20


class GivenFile(Frozen):
    """A file an option named, as it was."""

    option: str
    path: Path
    """Absolute."""
    sha256: Sha256


class Submitted(Frozen):
    """One submission."""

    request_id: str
    repository: str
    fleet: str = ""
    """The broker's address if the fleet is elsewhere; empty: this host's own stack."""
    given: tuple[GivenFile, ...] = ()


def given_file(option: str, path: Path, text: str) -> GivenFile:
    """Return what is remembered of a UTF-8 file that held `text` when it was read."""
    return GivenFile(option=option, path=path.absolute(), sha256=hashlib.sha256(text.encode()).hexdigest())


def remember(directory: Path, submitted: Submitted) -> None:
    """Write it into the run's directory."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(directory / FILE, submitted.model_dump_json(indent=2).encode() + b"\n")


def remembered(directory: Path) -> Submitted | None:
    """Return it; None if this host did not submit the run, or an older release did."""
    try:
        return Submitted.model_validate_json((directory / FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def check_unchanged(directory: Path) -> list[str]:
    """Return a notice for each file the run was given that is gone since; the run has its own copy.

    Raises:
        ConflictError: One has changed, so whoever edited it expects something else than what would go on.
    """
    submitted = remembered(directory)
    notices = []
    for each in submitted.given if submitted else ():
        now = _digest(each.path)
        if now is None:
            notices.append(f"{each.option} {each.path} is gone; the run goes on with what it held")
        elif now != each.sha256:
            run_id = directory.name
            raise ConflictError(
                f"{each.option} {each.path} has changed since run {run_id} began; a new `andon run` takes what it says now, "
                f"`andon resume {run_id} --force` goes on with what it said then"
            )
    return notices


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(FILE_BYTES_MAX)).hexdigest()
    except OSError:
        return None
