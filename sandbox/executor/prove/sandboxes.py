"""Sandboxes that attack themselves, made, watched and read like a job's; not what they try (`attack`), nor what that means (`report`)."""

import asyncio
import shlex
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.errors import EngineError
from sandbox.contract.job import Assignment
from sandbox.executor.inputs import directories
from sandbox.executor.outputs import read_report
from sandbox.executor.prove import host_side
from sandbox.executor.prove.attack.bombs import BEGUN
from sandbox.executor.prove.attack.neighbour import READY
from sandbox.executor.prove.ear import Ear
from sandbox.executor.prove.gateways import RACE_CALLS, TRACE_ID, agent_gateway, racing_gateway
from sandbox.executor.prove.provider import provider, tool_call
from sandbox.executor.prove.report import Guest, Said, read_lines
from sandbox.executor.prove.scene import LIMITS, MODEL, OUTPUT_TOKENS, STAGE, Scene, command, task_bundle
from sandbox.executor.slots import NO_UID_OF_ITS_OWN, Slot
from sandbox.gateway.policy import Policy
from sandbox.runtime.container_spec import LOG_BYTES_MAX, Sandbox, SlotSpec
from sandbox.runtime.hardening import HOME_MIB, TMP_MIB
from sandbox.workspace.provision import provision

ROLE_S = 90.0
"""How long one container may take: seconds, unless the host is busy."""
LOG_MIB = (LOG_BYTES_MAX >> 20) + 2
LOG_SLACK_BYTES = 1_000
"""The line that says what was dropped."""
BOMBS_MAX = 10
_POLL_S = 0.05


_NOT_SAID = Said(won=False, said="")


def alone_arguments(scene: Scene, ear: Ear) -> dict[str, Any]:
    """Return what the attack on everything around is told; a sandbox's and a control's are the same."""
    return {
        "host": ear.host,
        "tcp_port": ear.tcp_port,
        "udp_port": ear.udp_port,
        "canary": str(scene.canary),
        "secret": str(scene.secret_file),
        "model": MODEL,
        "tokens": OUTPUT_TOKENS,
        "calls": RACE_CALLS,
        "trace_id": TRACE_ID,
        **scene.wanted(scene.key),
    }


def bomb_arguments(done: list[str]) -> dict[str, Any]:
    """Return what the bombs are told: what a job may have at most, and what was tried already."""
    return {
        "done": done,
        "limits": {
            "pids_max": LIMITS.pids_max,
            "memory_mib": LIMITS.memory_mib + LIMITS.workspace_mib,
            "workspace_mib": LIMITS.workspace_mib,
            "workspace_inodes_max": LIMITS.workspace_inodes_max,
            "tmp_mib": TMP_MIB,
            "home_mib": HOME_MIB,
            "files_max": 1_024,
            "log_mib": LOG_MIB,
        },
    }


async def attack_alone(scene: Scene, slot: Slot, ear: Ear) -> tuple[dict[str, Said], dict[str, Said], Guest]:
    """Let a sandbox attack everything around it, and look at what it left: with care, then carelessly; also say what its kernel is."""
    async with _prepared(scene, slot):
        manifest = await provision(scene.mirror, scene.base, slot.workspace, uid=slot.owner[0], gid=slot.owner[1])
        async with racing_gateway(scene, slot.sockets, slot.owner[0]) as gateway:
            said = await _played(scene, scene.spec(slot, "alone", alone_arguments(scene, ear)))
        said["race.overspent"] = gateway.overspent()
        said["spans.passed"] = gateway.traces.passed()
        said |= await host_side.read_plants(scene, slot, manifest, is_planted=said.get("plants.special", _NOT_SAID).won)
        careless = await host_side.read_carelessly(scene, slot)
    release = said.get("role.alone", _NOT_SAID).said
    return said, careless, Guest(kernel="" if release in ("", host_side.kernel_release()) else release)


async def attack_as_tool(scene: Scene, slot: Slot) -> tuple[dict[str, Said], bool]:
    """Let the agent's own program run a tool that attacks it; also say whether the gateway saw which process is which."""
    agent = AgentSpec(
        name=STAGE, model=MODEL, system="prove", prompt="prove", tools=("bash",), output_tokens_max=OUTPUT_TOKENS, steps_max=5
    )
    tool = shlex.join(command("tool", {"model": MODEL, "tokens": OUTPUT_TOKENS, **scene.wanted(scene.key)}))
    turns = [tool_call("bash", {"command": tool}), tool_call("submit", {"status": "done", "summary": "proved"})]
    async with (
        _prepared(scene, slot),
        provider(turns) as ours,
        agent_gateway(scene, slot.sockets, slot.owner[0], Policy.of(agent), ours) as gateway,
        _running(scene, scene.spec(slot)) as box,
    ):
        gateway.session.assign(_assignment(agent))
        await _ended(box)
        try:
            said = read_lines(await asyncio.to_thread(read_report, slot, "tool.txt"))
        except (OSError, ValueError) as error:
            said = {"pin.model": Said(won=False, said=f"the tool left no report: {error}; {(await box.log())[-200:]!r}", made=False)}
        return said, gateway.session.pinned_to == "process"


def _assignment(agent: AgentSpec) -> Assignment:
    return Assignment(
        job_id="0000000000-prove-1",
        stage=STAGE,
        round=1,
        attempt=1,
        kind="agent",
        agent=agent,
        traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01",
        wall_s=int(ROLE_S),
        self_destruct_s=int(ROLE_S) + 10,
    )


async def attack_limits(scene: Scene, slot: Slot) -> dict[str, Said]:
    """Let a sandbox take more than it may; one that dies of it is followed by another, which tries the rest."""
    said: dict[str, Said] = {}
    for _ in range(BOMBS_MAX):
        output = await _bombed(scene, slot, [name for name in said if not name.startswith(BEGUN)])
        new = read_lines(output)
        said |= new | _died(new)
        if "bombs.log" in new:
            kept = len(output) > LOG_BYTES_MAX + LOG_SLACK_BYTES
            said["log.kept"] = Said(won=kept, said=f"{len(output) >> 20} of {LOG_MIB} MiB kept")
        if "role.bombs" in new or not new:
            break
    return said


async def _bombed(scene: Scene, slot: Slot, done: list[str]) -> bytes:
    async with _prepared(scene, slot), _running(scene, scene.spec(slot, "bombs", bomb_arguments(done))) as box:
        await _ended(box)
        return await box.log()


def _died(said: Mapping[str, Said]) -> dict[str, Said]:
    """Return the attack a sandbox died of: begun, and never reported. It ended that job alone."""
    begun = [name.removeprefix(BEGUN) for name in said if name.startswith(BEGUN)]
    return {name: Said(won=False, said="the sandbox ended") for name in begun if name not in said}


async def attack_neighbour(scene: Scene, first: Slot, second: Slot) -> dict[str, Said]:
    """Let one sandbox take what it can, and another look for it, at the same time."""
    mark = scene.instance + "-mark"
    tries_limits = first.uid is not None
    holding = {"mark": mark, "places": ["/workspace", "/out", "/tmp", "/dev/shm"], "limits": tries_limits}  # noqa: S108 - in the sandbox
    visiting = {"address": "", "shape": mark, "limits": tries_limits, **scene.wanted(mark)}
    async with (
        _prepared(scene, first),
        _prepared(scene, second),
        _running(scene, scene.spec(first, "hold", holding)) as holder,
    ):
        if not await _is_ready(holder):
            return {"neighbour.files": Said(won=False, said="the first sandbox did not begin", made=False)}
        said = await _played(scene, scene.spec(second, "visit", visiting))
    return said if tries_limits else said | {"neighbour.limits": Said(won=False, said=f"not tried: {NO_UID_OF_ITS_OWN}", made=False)}


@asynccontextmanager
async def _prepared(scene: Scene, slot: Slot) -> AsyncIterator[None]:
    async with directories(slot, task_bundle(), LIMITS, scene.around.no_quota):
        yield


async def _played(scene: Scene, spec: SlotSpec) -> dict[str, Said]:
    async with _running(scene, spec) as box:
        await _ended(box)
        return dict(read_lines(await box.log()))


@asynccontextmanager
async def _running(scene: Scene, spec: SlotSpec) -> AsyncIterator[Sandbox]:
    box = await scene.runtime.stand_by(spec, scene.image)
    try:
        yield box
    finally:
        await asyncio.shield(box.remove())


async def _ended(box: Sandbox) -> None:
    """Wait until it is dead; one that is late is killed, and then its last attacks are missing in its report."""
    try:
        async with asyncio.timeout(ROLE_S):
            await box.wait()
    except TimeoutError:
        await box.kill()


async def _is_ready(box: Sandbox) -> bool:
    deadline = time.monotonic() + ROLE_S / 2
    while time.monotonic() < deadline:
        if READY.encode() in await box.log():
            return True
        await asyncio.sleep(_POLL_S)
    return False


def merged(*reports: Mapping[str, Said]) -> dict[str, Said]:
    """Return several sandboxes' reports as one.

    Raises:
        EngineError: Two of them report the same attack.
    """
    together: dict[str, Said] = {}
    for report in reports:
        if twice := together.keys() & report.keys():
            raise EngineError(f"two sandboxes report {sorted(twice)}")
        together |= report
    return together
