"""A container with the engine's own default flags: the control beside a proof of our walls, and never for a job.

An attack that fails in a sandbox proves something only if it succeeds where the wall is absent. What runs here is our own program
with its own bounds; the host is protected by those, not by this container.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from docker.errors import NotFound

from sandbox.contract.errors import EngineError
from sandbox.runtime.container_spec import LABEL_DEADLINE, LABEL_INSTANCE, LABEL_SLOT, LOG_BYTES_MAX
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.engine import Engine

CAPABILITIES = ("SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "NET_RAW", "MKNOD", "SYS_CHROOT")
"""What a control without walls has besides the engine's default ones."""
OUTPUT_BYTES_MAX = 4 * LOG_BYTES_MAX
_POLL_S = 0.05


class Control:
    """One container, started; it is removed by whoever started it."""

    def __init__(self, engine: Engine, container_id: str) -> None:
        self._engine = engine
        self._id = container_id

    @property
    def container_id(self) -> str:
        """Return the engine's full id."""
        return self._id

    async def wait(self, limit_s: float) -> bool:
        """Wait until it has ended by itself; False if it did not in that time."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if not (await self._inspected())["State"]["Running"]:
                return True
            await asyncio.sleep(_POLL_S)
        return False

    async def output(self) -> bytes:
        """Return what the engine keeps of what it printed, at most `OUTPUT_BYTES_MAX`."""
        return await self._engine.call("cannot read a control's output", self._read)

    async def address(self) -> str:
        """Return its address on the engine's default network; empty if there is none."""
        networks = (await self._inspected())["NetworkSettings"]["Networks"]
        return next((str(each["IPAddress"]) for each in networks.values() if each.get("IPAddress")), "")

    async def _inspected(self) -> dict[str, Any]:
        return await self._engine.call("cannot inspect a control", lambda: dict(self._engine.client.inspect_container(self._id)))

    def _read(self) -> bytes:
        kept = bytearray()
        stream = self._engine.client.logs(self._id, stdout=True, stderr=True, stream=True, follow=False)
        for part in stream:
            kept += part
            if len(kept) >= OUTPUT_BYTES_MAX:
                break
        return bytes(kept[:OUTPUT_BYTES_MAX])


@asynccontextmanager
async def running_control(
    runtime: DockerRuntime,
    image: str,
    command: Sequence[str],
    *,
    instance: str,
    binds: Mapping[Path, str],
    deadline: float,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    walls: bool = True,
) -> AsyncIterator[Control]:
    """Start a container as `docker run IMAGE COMMAND` would, with labels of ours; it is removed at the end.

    Args:
        runtime: The engine.
        image: Its id.
        command: What runs in it.
        instance: Label of whoever removes what is left.
        binds: Directories of the host and where they are seen; `PATH:ro` is read-only.
        deadline: Unix seconds after which a janitor may remove it.
        environment: Variables besides the image's.
        user: `uid:gid`; None: the image's, which is root.
        walls: The engine's defaults; False: no system call filter, more capabilities, and no network.

    Raises:
        EngineError: The engine refused.
    """
    engine = runtime.engine
    name = f"andon-{instance}-control-{secrets.token_hex(4)}"
    labels = {LABEL_INSTANCE: instance, LABEL_SLOT: "0", LABEL_DEADLINE: str(int(deadline))}
    loose: dict[str, Any] = {"cap_add": list(CAPABILITIES), "security_opt": ["seccomp=unconfined"], "network_mode": "none"}

    def create() -> str:
        options = engine.client.create_host_config(
            binds=[f"{source}:{target}" for source, target in binds.items()], **({} if walls else loose)
        )
        created = engine.client.create_container(
            image, list(command), name=name, labels=labels, environment=dict(environment or {}), user=user, host_config=options
        )
        engine.client.start(created["Id"])
        return str(created["Id"])

    def remove() -> None:
        try:
            engine.client.remove_container(name, v=True, force=True)
        except NotFound:
            return

    try:
        yield Control(engine, await engine.call("cannot start a control", create))
    finally:
        await asyncio.shield(engine.call("cannot remove a control", remove))


async def default_gateway(runtime: DockerRuntime) -> str:
    """Return this host's address on the engine's default network; empty if the engine has none."""
    engine = runtime.engine
    try:
        network = await engine.call("cannot inspect the default network", lambda: dict(engine.client.inspect_network("bridge")))
    except EngineError:
        return ""
    configured = (network.get("IPAM") or {}).get("Config") or []
    return next((str(each["Gateway"]) for each in configured if ":" not in str(each.get("Gateway") or ":")), "")
