"""The file that says who a process is to the broker."""

import os
from pathlib import Path

import pytest

from sandbox.contract.credentials import (
    FILE_BYTES_MAX,
    Credentials,
    ExecutorCredentials,
    SupervisorCredentials,
    read_credentials,
    write_credentials,
)
from sandbox.contract.errors import ConfigError

SEED = "SU" + "A" * 56
EXECUTOR = ExecutorCredentials(url="nats://127.0.0.1:4222", nkey_seed=SEED, executor="ex1", pools=("default", "gpu"))


def test_what_is_written_is_read_and_private(tmp_path: Path) -> None:
    """A file made by one process serves another, and nobody else."""
    path = tmp_path / "ex1.andon.json"

    write_credentials(path, EXECUTOR)
    write_credentials(path, EXECUTOR)

    assert read_credentials(path, ExecutorCredentials) == EXECUTOR
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """A key that was readable is a key that leaked; the message says what to do."""
    path = tmp_path / "ex1.andon.json"
    write_credentials(path, EXECUTOR)
    path.chmod(mode)

    with pytest.raises(ConfigError, match="chmod 600"):
        read_credentials(path, ExecutorCredentials)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "JSON"),
        ("[]", "file"),
        ('{"url": "nats://h"}', "nkey_seed or creds_file"),
        (f'{{"url": "nats://h", "nkey_seed": "{SEED}", "creds_file": "/x"}}', "one of them"),
        (f'{{"url": "http://h", "nkey_seed": "{SEED}"}}', "url"),
        (f'{{"url": "nats://h", "nkey_seed": "{SEED}X"}}', "nkey_seed"),
        (f'{{"url": "nats://h", "nkey_seed": "{SEED}", "more": 1}}', "more"),
    ],
)
def test_what_is_wrong_is_named_without_the_key(tmp_path: Path, text: str, what: str) -> None:
    """An error names file and field; it never repeats a value, which may be a key."""
    path = _file(tmp_path, text)

    with pytest.raises(ConfigError, match=what) as error:
        read_credentials(path, SupervisorCredentials)

    assert str(path) in str(error.value)
    assert SEED not in str(error.value)


def test_a_file_that_is_missing_or_huge_is_refused(tmp_path: Path) -> None:
    """Absence is said; no more than 64 KiB are read."""
    with pytest.raises(ConfigError, match="No such file"):
        read_credentials(tmp_path / "nothing", Credentials)
    with pytest.raises(ConfigError, match=str(FILE_BYTES_MAX)):
        read_credentials(_file(tmp_path, " " * (FILE_BYTES_MAX + 1)), Credentials)


def test_a_seed_does_not_show_in_a_trace() -> None:
    """Printing credentials, as a traceback or log would, does not print the key."""
    assert SEED not in repr(EXECUTOR)
    assert SEED not in str(EXECUTOR)


def _file(directory: Path, text: str) -> Path:
    path = directory / "x.andon.json"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path
