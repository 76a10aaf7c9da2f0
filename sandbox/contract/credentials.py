"""Who a process is to the broker, and the file that says so (`NAME.andon.json`, DECISIONS D4); not how keys are made (`sandbox/bus`)."""

import os
import stat
from pathlib import Path
from typing import Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from sandbox.contract.blob import input_bucket
from sandbox.contract.errors import ConfigError
from sandbox.contract.ids import ExecutorName, PoolName
from sandbox.contract.labels import Labels
from sandbox.contract.model import Frozen

FILE_SUFFIX = ".andon.json"
FILE_BYTES_MAX = 64 << 10
FLEET = "fleet"
"""Connection name and reply prefix of the FLEET account's own users."""


_URL = r"(?:nats|tls|ws|wss)://[^,\s]+"


class Credentials(Frozen):
    """A broker's address and one user's key to it: an nkey seed, or a JWT credentials file of a foreign cluster."""

    url: str = Field(pattern=rf"^{_URL}(?:,{_URL}){{0,15}}$")
    """Where the broker is; for a cluster all its servers' addresses, separated by commas."""
    nkey_seed: str | None = Field(None, repr=False, pattern=r"^SU[A-Z2-7]{56}$")
    creds_file: Path | None = None
    """Where `NATS_CREDS` pointed when it holds a JWT and its key; NATS reads it again at each reconnect."""
    ca: str | None = None
    """PEM text of the authority that signed the broker's certificate; None: the system's."""

    @property
    def probe(self) -> str:
        """Return a subject this user may ask on, to see whether the broker answers."""
        return "$JS.API.DIRECT.GET.OBJ_IN"

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if (self.nkey_seed is None) == (self.creds_file is None):
            raise ValueError("give nkey_seed or creds_file, one of them")
        return self


class SupervisorCredentials(Credentials):
    """The supervisors' own key, which may do anything in the FLEET account; or, with `client`, the key of a CLI that may ask them."""

    client: ExecutorName | None = None
    """Name of a client, whose rights are restricted and whose replies come to its own inbox; None: the supervisors' key."""

    @property
    def inbox(self) -> str:
        """Return the name whose reply subjects this key may listen on."""
        return self.client or FLEET


class ExecutorCredentials(Credentials):
    """A user of the EXEC account, who may pull from `pools` and speak as `executor`."""

    executor: ExecutorName
    pools: tuple[PoolName, ...] = Field(("default",), min_length=1, max_length=64)
    labels: Labels = Field(default_factory=dict)
    """What whoever admitted it says of its host; the executor's own options add to them and win."""

    @property
    def probe(self) -> str:
        """Return a subject this user may ask on, to see whether the broker answers."""
        return f"$JS.API.DIRECT.GET.OBJ_{input_bucket(self.pools[0])}"


AnyCredentials = TypeVar("AnyCredentials", bound=Credentials)


def inbox_prefix(name: str) -> str:
    """Return the prefix of a user's reply subjects; the account configuration grants it to that user only."""
    return f"_INBOX_{name}"


def read_credentials(path: Path, kind: type[AnyCredentials]) -> AnyCredentials:
    """Read a credentials file.

    Raises:
        ConfigError: Absent, larger than 64 KiB, readable by others, or not credentials of this kind.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"credentials {path}: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"credentials {path} can be read by others (mode {mode:o}); run 'chmod 600 {path}'")
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"credentials {path} is larger than {FILE_BYTES_MAX} bytes")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]  # never echo a key
        where = ".".join(str(part) for part in problem["loc"]) or "file"
        raise ConfigError(f"credentials {path}: {where}: {problem['msg']}") from None


def write_credentials(path: Path, credentials: Credentials) -> None:
    """Write a credentials file that only its owner can read, whole or not at all."""
    write_private(path, (credentials.model_dump_json(indent=2, exclude_none=True) + "\n").encode())


def write_private(path: Path, data: bytes) -> None:
    """Replace a file that only its owner can read, whole or not at all; it is on the disk when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
