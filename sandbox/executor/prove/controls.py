"""The same attacks where the walls are absent: containers with the engine's default flags, a key in the environment as is common,
a careless gateway; and, for what even those flags stop, a container without a filter and with capabilities. They only report."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from sandbox.executor.prove.attack.neighbour import READY
from sandbox.executor.prove.ear import Ear
from sandbox.executor.prove.gateways import racing_gateway
from sandbox.executor.prove.report import Said, read_lines
from sandbox.executor.prove.sandboxes import ROLE_S, alone_arguments, bomb_arguments
from sandbox.executor.prove.scene import Scene, command, task_bundle
from sandbox.runtime.container_spec import GATEWAY, LOG_BYTES_MAX, TASK
from sandbox.runtime.control import Control, running_control

KEY_VARIABLE = "ANTHROPIC_API_KEY"
WITHOUT_FILTER = "without the engine's filter"
_POLL_S = 0.05
_OTHER_USER = 64_999
"""For two controls of one user, where this process has no uids of its own to give."""


async def control_alone(scene: Scene, ear: Ear) -> dict[str, Said]:
    """Attack everything around with the engine's default flags; what fails there, once more without its filter."""
    directory = scene.sockets / "c"
    directory.mkdir(mode=0o755)
    root = await _root_outside(scene)
    if root is not None:
        os.chown(directory, root, root)
    task = await asyncio.to_thread(_task, scene, "alone", f"{KEY_VARIABLE}={scene.key}\n")
    engine_socket = directory / "docker.sock"
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(racing_gateway(scene, directory, root, walls=False))
        # A socket like the engine's, found by whoever looks for one; the real one is given to nobody.
        stack.push_async_exit(await asyncio.start_unix_server(_hang_up, engine_socket))
        default, loose = await asyncio.gather(
            _alone(scene, "alone-control", alone_arguments(scene, ear), {task: f"{TASK}:ro", directory: GATEWAY}),
            _alone(scene, "wall-less", alone_arguments(scene, ear), {task: f"{TASK}:ro"}, walls=False),
        )
        default["race.overspent"] = gateway.overspent()
        default["spans.passed"] = gateway.traces.passed_unjudged()
    both = _either(default, loose)
    # One search is control for both: of the sandbox's own process and of the agent's tool.
    return both | {name.replace("key.", "key_tool."): said for name, said in both.items() if name.startswith("key.")}


async def control_limits(scene: Scene) -> dict[str, Said]:
    """Take more than a job may, with the engine's default flags; the bombs end by themselves a little beyond."""
    task = await asyncio.to_thread(_task, scene, "limits")
    async with _running(scene, command("bombs", bomb_arguments([])), {task: f"{TASK}:ro"}) as box:
        await box.wait(ROLE_S)
        log = await box.output()
    said = read_lines(log)
    return said | {"log.kept": Said(won=len(log) > LOG_BYTES_MAX, said=f"{len(log) >> 20} MiB kept")}


async def control_neighbour(scene: Scene) -> dict[str, Said]:
    """Let two containers of one user, with a directory in common, reach each other."""
    uid = await _user_inside(scene)
    task = await asyncio.to_thread(_task, scene, "neighbour")
    binds = {task: f"{TASK}:ro", scene.shared: "/shared"}
    mark = scene.instance + "-mark"
    holding = command("hold", {"mark": mark, "places": ["/shared"], "limits": True})
    async with _running(scene, holding, binds, user=f"{uid}:{uid}") as holder:
        if not await _is_ready(holder):
            return {"neighbour.files": Said(won=False, said=f"the first control did not begin: {(await holder.output())[-200:]!r}")}
        visiting = {"address": await holder.address(), "shape": mark, "limits": True, **scene.wanted(mark)}
        async with _running(scene, command("visit", visiting), binds, user=f"{uid}:{uid}") as visitor:
            await visitor.wait(ROLE_S)
            return read_lines(await visitor.output())


async def _root_outside(scene: Scene) -> int | None:
    """Return who a container's root is on this host, where the engine maps users; None: root."""
    users = (await scene.runtime.facts()).users
    return users.first_uid if users.kind == "remapped" else None


async def _user_inside(scene: Scene) -> int:
    """Return a user that is nobody else on this host, as containers call it."""
    uid = scene.slots[-1].uid
    return _OTHER_USER if uid is None else (await scene.runtime.facts()).users.inside(uid, uid)[0]


def _either(default: Mapping[str, Said], loose: Mapping[str, Said]) -> dict[str, Said]:
    """Return for each attack the default flags' report, or the loose one's where only that succeeded."""
    found = dict(default)
    for name, said in loose.items():
        before = default.get(name)
        if said.won and not (before and before.won):
            found[name] = Said(won=True, said=f"{said.said}, {WITHOUT_FILTER}")
    return found


async def _alone(
    scene: Scene, role: str, arguments: Mapping[str, Any], binds: Mapping[Path, str], *, walls: bool = True
) -> dict[str, Said]:
    async with _running(scene, command(role, arguments), binds, walls=walls, environment={KEY_VARIABLE: scene.key}) as box:
        await box.wait(ROLE_S)
        return read_lines(await box.output())


@asynccontextmanager
async def _running(
    scene: Scene,
    program: tuple[str, ...],
    binds: Mapping[Path, str],
    *,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    walls: bool = True,
) -> AsyncIterator[Control]:
    async with running_control(
        scene.runtime,
        scene.image,
        program,
        instance=scene.instance,
        binds=binds,
        deadline=scene.deadline,
        environment=environment,
        user=user,
        walls=walls,
    ) as box:
        yield box


async def _is_ready(box: Control) -> bool:
    deadline = time.monotonic() + ROLE_S / 2
    while time.monotonic() < deadline:
        if READY.encode() in await box.output():
            return True
        await asyncio.sleep(_POLL_S)
    return False


def _task(scene: Scene, name: str, key_file: str = "") -> Path:
    """Write the attacks where a control of any user reads them; a key file beside them is what some people do."""
    directory = scene.home / "control" / name
    for path, source in task_bundle().files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(source)
    if key_file:
        (directory / "key.env").write_text(key_file)
    return directory


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
