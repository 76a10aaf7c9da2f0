"""Who may connect to a broker, changed from any process of its host (DECISIONS D3, D4, G19); not what they may do (`config`).

A change holds the broker's directory, writes its files, and lets a running server read them again by its own request; a
stopped one reads them at its start. A change the server does not take is taken back.
"""

import asyncio
import fcntl
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import ValidationError

from sandbox.bus import Connection, new_user_key
from sandbox.contract.blob import output_bucket
from sandbox.contract.credentials import Credentials, ExecutorCredentials, SupervisorCredentials, read_credentials
from sandbox.contract.errors import BrokerError, UsageError
from supervisor.store.broker.config import OBSERVER, SYSTEM, ClientUser, ExecutorUser, client_entry, executor_entry
from supervisor.store.broker.listen import ANY_PORT, Listen
from supervisor.store.broker.site import SUPERVISOR, Place, Site

__all__ = ["Listen", "admit_client", "admit_executor", "admitted", "admitted_clients", "dismiss", "prepare", "reload", "stanza"]

RESERVED: Final = frozenset({SUPERVISOR, OBSERVER, SYSTEM, "fleet", "all"})
"""Names of the broker's own users and of everybody."""
PROBE_S: Final = 2.0
SERVERS_S: Final = 2.0
"""How long the servers of a cluster have to say that they are there."""
LOCK_FILE: Final = "lock"
"""Held by the embedded server for as long as it lives."""


async def admit_executor(
    directory: Path, name: str, pools: tuple[str, ...] = ("default",), labels: Mapping[str, str] | None = None, *, replace: bool = False
) -> ExecutorCredentials:
    """Admit an executor with a new key and return its credentials, which are kept nowhere else.

    Args:
        directory: The broker's.
        name: As which it speaks.
        pools: Whose jobs and inputs it may read.
        labels: What is said of its host; they go into its credentials file.
        replace: An executor or client of that name loses its key and its connection.

    Raises:
        UsageError: The name is taken or none, or a pool or label is none.
        BrokerError: The broker did not take the change; nothing changed.
    """
    key = new_user_key()
    try:
        user = ExecutorUser(name=name, public_key=key.public, pools=pools, labels=dict(labels or {}))
    except ValidationError as error:
        raise _refusal("executor", name, error) from None
    site = Site.there(directory)
    await _change(site, name, replace, lambda: setattr(site, "executors", (*site.executors, user)))
    where = Credentials(url=site.url, nkey_seed=key.seed, ca=site.authority)
    return ExecutorCredentials(**where.model_dump(), executor=name, pools=pools, labels=user.labels)


async def admit_client(directory: Path, name: str, *, replace: bool = False) -> SupervisorCredentials:
    """Admit a CLI with a new key and return its credentials; it may ask the supervisor, and read events and objects.

    Raises:
        UsageError: The name is taken or none.
        BrokerError: The broker did not take the change; nothing changed.
    """
    key = new_user_key()
    try:
        user = ClientUser(name=name, public_key=key.public)
    except ValidationError as error:
        raise _refusal("client", name, error) from None
    site = Site.there(directory)
    await _change(site, name, replace, lambda: setattr(site, "clients", (*site.clients, user)))
    return SupervisorCredentials(url=site.url, nkey_seed=key.seed, ca=site.authority, client=name)


async def dismiss(directory: Path, name: str) -> bool:
    """Refuse an executor's or client's key from now on and drop its connection; return whether there was one.

    Raises:
        BrokerError: The broker did not take the change; nothing changed.
    """
    site = Site.there(directory)
    if name not in _names(site):
        return False
    await _change(site, name, True, lambda: None)
    return True


def admitted(directory: Path) -> tuple[ExecutorUser, ...]:
    """Return the executors that are admitted, in the order they were."""
    return Site.there(directory).executors


def admitted_clients(directory: Path) -> tuple[ClientUser, ...]:
    """Return the clients that are admitted, in the order they were."""
    return Site.there(directory).clients


def prepare(directory: Path, listen: Listen) -> Path:
    """Write keys, certificate and configuration for a nats-server that somebody else starts, and return the configuration.

    Who was admitted stays so; a running server goes by it after `reload` or its next start.

    Args:
        directory: At the same path where the server runs.
        listen: Where it listens there, with a port; `advertise` is by what everybody reaches it, also from here.

    Raises:
        UsageError: `listen` has no port.
    """
    if listen.port == ANY_PORT:
        raise UsageError("a server that somebody else starts needs a port")
    site = Site.made(directory)
    site.place = Place(listen=listen, is_elsewhere=True)
    path = site.write_config()
    site.write_own_files()
    return path


async def reload(directory: Path) -> None:
    """Let the server, or all servers of its cluster, read the configuration again; returns when they have.

    Raises:
        BrokerError: It cannot be reached, or cannot read it.
    """
    await reload_servers(read_credentials(Site.there(directory).file(SYSTEM), Credentials))


async def reload_servers(credentials: Credentials) -> None:
    """Like `reload`, given the system user's credentials; a bare SIGHUP would say nothing of its success."""
    async with Connection.open(credentials, name=SYSTEM, inbox=SYSTEM) as connection:
        for server in await _servers(connection):
            answer = await connection.request(f"$SYS.REQ.SERVER.{server}.RELOAD")
            problem = json.loads(answer.data).get("error")
            if problem:
                raise BrokerError(f"the broker refused its configuration: {problem.get('description', problem)}")


def stanza(user: ExecutorUser | ClientUser, executors: Sequence[ExecutorUser]) -> str:
    """Return what a person pastes into the configuration of a cluster we do not write; a client reads what `executors` store."""
    account, entry = ("EXEC", executor_entry(user)) if isinstance(user, ExecutorUser) else ("CLIENT", client_entry(user, executors))
    also = "" if isinstance(user, ExecutorUser) else f"; for logs, one DIRECT.GET.OBJ_{output_bucket('NAME')} for each executor"
    return f"# one more of the users of account {account}{also}; then let every server reload\n{entry}\n"


async def _servers(connection: Connection) -> list[str]:
    """Return the ids of all servers of the cluster."""
    inbox = connection.new_inbox()
    found: dict[str, int] = {}
    async with connection.subscription(inbox) as answers:
        await connection.publish("$SYS.REQ.SERVER.PING", b"", reply=inbox)
        while not found or len(found) < max(found.values()):
            answer = await answers.next(SERVERS_S)
            if answer is None:
                break
            said = json.loads(answer.data)
            found[said["server"]["id"]] = int(said.get("statsz", {}).get("active_servers", 1))
    if not found:
        raise BrokerError("no server answers the system account")
    return list(found)


async def _change(site: Site, name: str, replace: bool, add: Callable[[], None]) -> None:
    """Take the name out, let `add` put it in anew, and have the server take it; or leave everything as it was."""
    if name in RESERVED:
        raise UsageError(f"{name!r} is a name of the broker's own; choose another one")
    async with site.changing():
        executors, clients = site.executors, site.clients
        if name in _names(site) and not replace:
            raise UsageError(f"{name!r} is admitted already; choose another name, or replace it and its key")
        site.executors = tuple(user for user in executors if user.name != name)
        site.clients = tuple(user for user in clients if user.name != name)
        try:
            add()
            site.write_config()
            if await _is_running(site):
                await reload(site.directory)
        except BaseException:
            site.executors, site.clients = executors, clients
            site.write_config()
            raise


def _names(site: Site) -> set[str]:
    return {user.name for user in site.executors} | {user.name for user in site.clients}


async def _is_running(site: Site) -> bool:
    """Return whether there is a server to tell."""
    if site.port == ANY_PORT or not (site.place.is_elsewhere or _is_locked(site.directory / LOCK_FILE)):
        return False
    where = urlsplit(site.own_url)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return True
    return False


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _refusal(what: str, name: str, error: ValidationError) -> UsageError:
    problem = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    if where == "name":
        return UsageError(f"{what} {name!r}: a name is 1 to 32 of a-z, 0-9, '-' and '_', and begins and ends with a letter or digit")
    return UsageError(f"{what} {name!r}: {where}: {problem['msg']}")
