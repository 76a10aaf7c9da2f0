"""`andon doctor`: looks at everything Andon needs on this host; changes nothing and never raises for a missing part."""

import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence

from sandbox.contract.errors import AndonError
from sandbox.executor.slots import NO_UID_OF_ITS_OWN
from sandbox.git import version as git_version
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.images import agent_image_key
from supervisor.api.views import Probe
from supervisor.bootstrap.fleet_probes import fleet_probes
from supervisor.config import Config, StateDirectory
from supervisor.stack import read_stack
from supervisor.store.broker.embedded import find_server

GIT_REQUIRED = (2, 39, 4)
GIT_RECOMMENDED = (2, 46, 0)
FREE_BYTES_WANTED = 2 << 30

Look = tuple[str, Callable[[Config], Awaitable[list[Probe]]]]
"""What is looked at, and how."""


async def doctor_probes(config: Config) -> Sequence[Probe]:
    """Return one probe for each part; with a fleet elsewhere the parts are that fleet's, and this host needs no engine."""
    here: tuple[Look, ...] = (("engine", _engine), ("sandbox", _sandbox), ("broker", _broker), ("state", _state), ("model", _model))
    elsewhere: tuple[Look, ...] = (("fleet", fleet_probes), ("state", _state))
    looks: tuple[Look, ...] = (("python", _python), ("git", _git), *(elsewhere if config.is_remote else here))
    probes: list[Probe] = []
    for name, look in looks:
        try:
            probes += await look(config)
        except (AndonError, OSError) as error:
            probes.append(Probe(name=name, status="fail", detail=str(error)))
    return probes


async def _python(_config: Config) -> list[Probe]:
    version = ".".join(map(str, sys.version_info[:3]))
    return [Probe(name="python", status="ok", detail=f"{version} in {sys.prefix}; our own environment, so that no `supervisor` clashes")]


async def _git(_config: Config) -> list[Probe]:
    version = git_version()
    text = ".".join(map(str, version))
    if version < GIT_REQUIRED:
        return [Probe(name="git", status="fail", detail=text, advice="install git 2.39.4 or later")]
    if version < GIT_RECOMMENDED:
        return [
            Probe(name="git", status="warn", detail=f"{text}: older than 2.46", advice="our quarantine does not rely on git's own checks")
        ]
    return [Probe(name="git", status="ok", detail=text)]


async def _engine(config: Config) -> list[Probe]:
    runtime = await DockerRuntime.connect(config.docker_host)
    try:
        facts = await runtime.facts()
        image = runtime.engine.image(f"andon/agent:{agent_image_key()}")
    finally:
        runtime.close()
    probes = [
        Probe(name="engine", status="ok", detail=f"{facts.version} at {facts.endpoint} ({facts.source}), cgroup v{facts.cgroup_version}")
    ]
    probes += [Probe(name="engine", status="warn", detail=line) for line in (*facts.missing, *facts.warnings)]
    if image is None:
        probes.append(Probe(name="image", status="warn", detail="the agent image is not built yet", advice="the first run builds it"))
    else:
        probes.append(Probe(name="image", status="ok", detail=f"andon/agent:{agent_image_key()}"))
    return probes


async def _sandbox(_config: Config) -> list[Probe]:
    if os.getuid() == 0:
        return [Probe(name="sandbox", status="ok", detail="a uid and a size-limited file system for each slot")]
    return [
        Probe(name="sandbox", status="warn", detail=NO_UID_OF_ITS_OWN),
        Probe(name="sandbox", status="warn", detail="no quota mount: workspaces are plain directories", advice="needs root"),
    ]


async def _broker(config: Config) -> list[Probe]:
    running = read_stack(StateDirectory.reading(config.state_directory))
    binary = find_server(None)
    detail = f"embedded, running at {running.nats_url}" if running else f"embedded, {binary}; starts with a run"
    return [Probe(name="broker", status="ok", detail=detail)]


async def _state(config: Config) -> list[Probe]:
    path = config.state_directory
    existing = next(each for each in (path, *path.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if free < FREE_BYTES_WANTED:
        return [
            Probe(name="state", status="warn", detail=f"{path}: {free >> 20} MiB free", advice="make room: runs keep packs and logs there")
        ]
    return [Probe(name="state", status="ok", detail=f"{path}, {free >> 30} GiB free")]


async def _model(config: Config) -> list[Probe]:
    if config.has_provider_key:
        return [Probe(name="model", status="ok", detail="a key is set: runs are live")]
    return [Probe(name="model", status="warn", detail="no key: only the shipped sample runs, as a replay", advice="set ANTHROPIC_API_KEY")]
