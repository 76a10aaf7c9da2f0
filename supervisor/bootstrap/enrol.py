"""Who may join a fleet: on the host of its broker, or for a cluster that somebody else configures; how, is `store.admission`."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from sandbox.bus import new_user_key
from sandbox.contract.credentials import Credentials, ExecutorCredentials, SupervisorCredentials
from sandbox.contract.errors import ConfigError
from sandbox.contract.model import Frozen
from supervisor.bootstrap.client import fleet_credentials
from supervisor.config import Config, StateDirectory
from supervisor.store.broker.admission import Listen, admit_client, admit_executor, admitted, dismiss, prepare, stanza
from supervisor.store.broker.config import ClientUser, ExecutorUser

__all__ = ["Enrolled", "Listen", "broker_directory", "dismiss", "enrol", "members", "prepare"]


class Enrolled(Frozen):
    """A new member of a fleet."""

    credentials: Credentials = Field(repr=False)
    """What goes into its file; the key is kept nowhere else."""
    stanza: str = ""
    """What a person has to paste into the cluster's configuration; empty: the broker knows already."""


def broker_directory(config: Config) -> Path | None:
    """Return the directory of the broker that this host may change; None: the fleet's broker is somebody else's."""
    if config.broker_directory is not None:
        return config.broker_directory.absolute()
    return None if config.is_remote else StateDirectory.reading(config.state_directory).nats


def members(config: Config) -> tuple[ExecutorUser, ...]:
    """Return the admitted executors; none if the broker's directory is not at hand or was never made."""
    directory = broker_directory(config)
    try:
        return admitted(directory) if directory is not None else ()
    except ConfigError:
        return ()


async def enrol(
    config: Config, name: str, *, pools: tuple[str, ...], labels: Mapping[str, str], is_client: bool, replace: bool
) -> Enrolled:
    """Admit an executor, or a client, and return what goes into its file.

    Raises:
        UsageError: The name is taken (without `replace`) or none, or a pool or label is none.
        ConfigError: There is no broker yet.
        BrokerError: The broker did not take the change; nothing changed.
    """
    directory = broker_directory(config)
    if directory is None:
        return _for_a_foreign_cluster(fleet_credentials(config), name, pools, labels, is_client=is_client)
    if is_client:
        return Enrolled(credentials=await admit_client(directory, name, replace=replace))
    return Enrolled(credentials=await admit_executor(directory, name, pools, labels, replace=replace))


def _for_a_foreign_cluster(
    ours: SupervisorCredentials, name: str, pools: tuple[str, ...], labels: Mapping[str, str], *, is_client: bool
) -> Enrolled:
    """Make a key and the stanza that lets it in: we may not write that cluster's configuration (DECISIONS G19)."""
    key = new_user_key()
    where = {"url": ours.url, "ca": ours.ca, "nkey_seed": key.seed}
    if is_client:
        client = ClientUser(name=name, public_key=key.public)
        return Enrolled(credentials=SupervisorCredentials.model_validate({**where, "client": name}), stanza=stanza(client, ()))
    user = ExecutorUser(name=name, public_key=key.public, pools=pools, labels=dict(labels))
    credentials = ExecutorCredentials.model_validate({**where, "executor": name, "pools": pools, "labels": user.labels})
    return Enrolled(credentials=credentials, stanza=stanza(user, ()))
