"""What a person gives an executor: its arguments, its environment, and what follows from its host; not what is made of it (`__main__`)."""

import argparse
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from sandbox.contract.credentials import ExecutorCredentials
from sandbox.contract.errors import ConfigError, UsageError
from sandbox.contract.labels import LABELS_MAX, RESERVED, Labels
from sandbox.contract.release import RELEASE
from sandbox.executor.config import ExecutorConfig
from sandbox.executor.place import Surroundings
from sandbox.runtime.container_spec import EngineFacts

SLOTS_MAX = 64
DISK_FLOOR = "ANDON_DISK_FLOOR_MIB"
DISK_FLOOR_MIB = 1024

_LABELS: TypeAdapter[dict[str, str]] = TypeAdapter(Labels)


@dataclass(frozen=True)
class Options:
    """The arguments of `andon executor`."""

    creds: Path
    state: Path | None
    slots: int
    labels: dict[str, str]
    is_embedded: bool


def read_options(arguments: list[str]) -> Options:
    """Parse arguments; `--help` prints and ends the process with 0.

    Raises:
        UsageError: Something is wrong with them; one line.
    """
    parser = _Parser(prog="andon executor", description="Join a fleet and run its jobs on this host. SIGTERM drains it.", epilog=_EPILOG)
    parser.add_argument("--creds", type=Path, required=True, metavar="FILE", help="the NAME.andon.json that `andon fleet add NAME` wrote")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="where it keeps mirrors, slots and results (default: below XDG_STATE_HOME)"
    )
    parser.add_argument("--slots", type=_slots, default=2, metavar="N", help="how many jobs run at once (default: 2)")
    parser.add_argument("--label", action="append", default=[], metavar="K=V", help="what jobs may ask for, besides arch, os, cpus, mem")
    parser.add_argument("--embedded", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    return Options(given.creds, given.state, given.slots, labels_of(given.label), given.embedded)


_EPILOG = f"Environment: {DISK_FLOOR} (default {DISK_FLOOR_MIB}), DOCKER_HOST, ANTHROPIC_API_KEY. See docs/hosts.md."


def labels_of(given: list[str]) -> dict[str, str]:
    """Return labels given as `k=v`; the last of a name wins.

    Raises:
        UsageError: One of them is none.
    """
    labels: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise UsageError(f"--label {each!r}: expected NAME=VALUE, e.g. --label gpu=a100")
        try:
            _LABELS.validate_python({name: value})
        except ValidationError as error:
            part = "name" if error.errors()[0]["loc"][-1] == "[key]" else "value"
            rule = "lower-case letters, digits, . _ -" if part == "name" else "1 to 63 letters, digits and . _ + : = -"
            raise UsageError(f"--label {each!r}: bad {part}; use {rule}") from None
        if name.startswith(RESERVED):
            raise UsageError(f"--label {each!r}: an executor says by itself which runtimes it has")
        labels[name] = value
    return labels


def state_of(options: Options, credentials: ExecutorCredentials, environment: Mapping[str, str]) -> Path:
    """Return the state directory: what was given, else `executors/NAME` below the user's state directory."""
    if options.state is not None:
        return options.state.resolve()
    home = environment.get("XDG_STATE_HOME") or ""
    base = Path(home) if Path(home).is_absolute() else Path(environment.get("HOME") or Path.home()) / ".local" / "state"
    return base.resolve() / "andon" / "executors" / credentials.executor


def config_of(
    options: Options,
    credentials: ExecutorCredentials,
    state: Path,
    around: Surroundings,
    facts: EngineFacts,
    environment: Mapping[str, str],
    runtimes: Mapping[str, str] = MappingProxyType({}),
) -> ExecutorConfig:
    """Return an executor's settings; `runtimes` are the labels that say which runtimes it has.

    Raises:
        UsageError: Too many labels, or a variable makes no sense.
    """
    return ExecutorConfig(
        name=credentials.executor,
        state=state,
        sockets=around.sockets(instance_of(state)),
        uid_locks=around.uid_locks,
        no_quota=around.no_quota,
        pools=credentials.pools,
        labels=_with_host_labels({**credentials.labels, **options.labels}, facts, runtimes),
        slots=options.slots,
        docker_host=environment.get("DOCKER_HOST"),
        disk_floor_mib=disk_floor_mib(environment),
        release=RELEASE,
    )


def instance_of(state: Path) -> str:
    """Return a short name of a state directory."""
    return sha256(os.fsencode(state)).hexdigest()[:8]


def _with_host_labels(given: dict[str, str], facts: EngineFacts, runtimes: Mapping[str, str]) -> dict[str, str]:
    """Return the labels with what the host is: arch, os, cpus, mem (GiB); a person's own win, but not over its runtimes."""
    host = {
        "arch": facts.architecture or platform.machine(),
        "os": "linux",
        "cpus": str(facts.cpus),
        "mem": str(facts.memory_bytes >> 30),
    }
    own = {name: value for name, value in given.items() if not name.startswith(RESERVED)}
    labels = {**host, **own, **runtimes}
    if len(labels) > LABELS_MAX:
        raise UsageError(f"{len(labels)} labels, with those of the host; at most {LABELS_MAX}")
    return labels


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other command does."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UsageError(f"{message}; see 'andon executor --help'")


def _slots(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= SLOTS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {SLOTS_MAX}")
    return int(text)


def disk_floor_mib(environment: Mapping[str, str]) -> int:
    """Return the room a disk has to have for a job to be taken.

    Raises:
        ConfigError: The variable makes no sense.
    """
    text = environment.get(DISK_FLOOR) or str(DISK_FLOOR_MIB)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigError(f"{DISK_FLOOR}={text!r} is not a number of MiB; 0 switches it off")
    return int(text)
