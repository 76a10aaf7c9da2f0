"""Finds the container engine and calls it: endpoint, errors in our words, calls in threads; not what is asked of it (`docker`, `images`).

The Docker SDK is synchronous, so every call runs in a thread. A cancelled call is waited for before the cancellation goes
on: otherwise a container could appear after its owner has cleaned up.
"""

import asyncio
import hashlib
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound

from sandbox.contract.errors import EngineError
from sandbox.runtime.container_spec import EngineFacts
from sandbox.runtime.protections import gvisor_runtimes, missing_in, warnings_of
from sandbox.runtime.users import read_users

T = TypeVar("T")

DEFAULT_ENDPOINT = "unix:///var/run/docker.sock"
CALL_S = 120
"""How long one call may take; builds have no bound of their own but make progress."""
_INSTALL = "start it (`systemctl start docker`), or run `make setup` as root to install one"


class NoEngineError(EngineError):
    """Nothing listens at the endpoint, or nothing answers; other than permission denied, starting one helps."""


@dataclass(frozen=True)
class Endpoint:
    """Where an engine listens, and who said so."""

    url: str
    source: str

    @property
    def socket_path(self) -> Path | None:
        """Return the unix socket's path, or None for another kind of endpoint."""
        return Path(self.url.removeprefix("unix://")) if self.url.startswith("unix://") else None


def find_endpoint(docker_host: str | None, docker_context: str | None = None, config: Path | None = None) -> Endpoint:
    """Return the endpoint the docker command would use: DOCKER_HOST, then the current context, then the default (DECISIONS G15).

    Args:
        docker_host: Value of DOCKER_HOST, if set.
        docker_context: Value of DOCKER_CONTEXT, if set.
        config: Directory of the docker command's configuration, by default `~/.docker`.

    Raises:
        EngineError: A context is named that is not configured.
    """
    if docker_host:
        return Endpoint(docker_host, "DOCKER_HOST")
    directory = config or Path.home() / ".docker"
    name = docker_context or str(_json(directory / "config.json").get("currentContext") or "default")
    if name == "default":
        return Endpoint(DEFAULT_ENDPOINT, "default")
    meta = _json(directory / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json")
    try:
        return Endpoint(str(meta["Endpoints"]["docker"]["Host"]), f"context {name}")
    except (KeyError, TypeError) as error:
        raise EngineError(f"docker context {name!r} is not configured in {directory}; choose another with `docker context use`") from error


class Engine:
    """A connection to one engine; safe to use from several tasks."""

    def __init__(self, client: docker.APIClient, facts: EngineFacts) -> None:
        self.client = client
        self.facts = facts

    @classmethod
    async def connect(cls, endpoint: Endpoint) -> "Engine":
        """Connect and read the facts.

        Raises:
            EngineError: Nothing listens, permission is denied, or the engine is on another host; the message says what to do.
        """
        return await asyncio.to_thread(_connect, endpoint)

    async def call(self, what: str, call: Callable[[], T]) -> T:
        """Run `call` in a thread, to its end even if cancelled; `what` begins the error's message."""
        task = asyncio.ensure_future(asyncio.to_thread(_translated, what, call))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task}, timeout=CALL_S)
            if task.done() and not task.cancelled():
                task.exception()  # seen: the cancellation is what goes on
            raise

    def image(self, name: str) -> dict[str, Any] | None:
        """Return what the engine knows of an image, or None; synchronous, for use inside `call`."""
        try:
            return dict(self.client.inspect_image(name))  # type: ignore[no-untyped-call]
        except ImageNotFound:
            return None

    def close(self) -> None:
        """Close idle connections."""
        self.client.close()


def explain(error: Exception) -> str:
    """Return an engine's reason in one line."""
    if isinstance(error, APIError) and error.explanation:
        return " ".join(str(error.explanation).split())
    return " ".join(str(error).split()) or type(error).__name__


def _translated(what: str, call: Callable[[], T]) -> T:
    try:
        return call()
    # The SDK's transport errors (requests) are OSErrors.
    except (DockerException, OSError) as error:
        raise EngineError(f"{what}: {explain(error)}") from error


def _connect(endpoint: Endpoint) -> Engine:
    where = f"{endpoint.url} ({endpoint.source})"
    if endpoint.url.startswith("ssh://"):
        raise EngineError(f"the engine at {where} is on another host; sandboxes bind local directories: run an executor there instead")
    if endpoint.socket_path is not None:
        _knock(endpoint.socket_path, where)
    client: docker.APIClient | None = None
    try:
        client = docker.APIClient(base_url=endpoint.url, version="auto", timeout=CALL_S)
        facts = read_facts(endpoint, client.info(), client.version())
        _check_owner(endpoint, facts)
        return Engine(client, facts)
    except EngineError:
        if client is not None:
            client.close()
        raise
    except (DockerException, OSError) as error:
        if client is not None:
            client.close()
        raise EngineError(f"the engine at {where} does not answer: {explain(error)}; {_INSTALL}") from error


def _check_owner(endpoint: Endpoint, facts: EngineFacts) -> None:
    """Refuse a rootless engine of somebody else: it may neither enter our directories nor make files that are ours."""
    if facts.users.kind != "rootless" or endpoint.socket_path is None:
        return
    owner = endpoint.socket_path.stat().st_uid
    if owner != os.geteuid():
        raise EngineError(
            f"the engine at {endpoint.url} ({endpoint.source}) is rootless and belongs to uid {owner}, you are uid {os.geteuid()}: "
            "run Andon as that user, or choose another engine with DOCKER_HOST"
        )


def _knock(path: Path, where: str) -> None:
    """Tell "no engine" from "not allowed": the SDK reports both as a failed connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.settimeout(5)
        try:
            knocking.connect(str(path))
        except PermissionError as error:
            advice = "add yourself to its group (`sudo usermod -aG docker $USER`) and log in again"
            raise EngineError(f"permission denied on the engine's socket {where}: {advice}") from error
        except FileNotFoundError as error:
            raise NoEngineError(f"no container engine at {where}; {_INSTALL}") from error
        except OSError as error:
            raise NoEngineError(f"the engine's socket {where} is there, but nothing answers; {_INSTALL}") from error


def read_facts(endpoint: Endpoint, info: dict[str, Any], version: dict[str, Any]) -> EngineFacts:
    """Return what the engine's `info` and `version` say, as one value; pure."""
    security = tuple(str(option) for option in info.get("SecurityOptions") or ())
    return EngineFacts(
        endpoint=endpoint.url,
        source=endpoint.source,
        version=str(version.get("Version", "")),
        api_version=str(version.get("ApiVersion", "")),
        architecture=str(info.get("Architecture", "")),
        kernel=str(info.get("KernelVersion", "")),
        cgroup_version=str(info.get("CgroupVersion", "1")),
        storage_driver=str(info.get("Driver", "")),
        default_runtime=str(info.get("DefaultRuntime", "")),
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        security_options=security,
        cpus=int(info.get("NCPU") or 1),
        memory_bytes=int(info.get("MemTotal") or 0),
        gvisor=gvisor_runtimes(info),
        users=read_users(info),
        missing=missing_in(info),
        warnings=warnings_of(version),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
