"""The proof as a story: sandboxes that attack themselves, controls beside them, and what each probe came to.

A probe that holds without a control proves nothing by itself, and says so. What is slow goes on side by side; attacks that take
a host's room run one after the other.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sandbox.contract.errors import EngineError
from sandbox.executor.prove.catalogue import PROBES
from sandbox.executor.prove.controls import control_alone, control_limits, control_neighbour
from sandbox.executor.prove.ear import ear
from sandbox.executor.prove.report import Proof, Report, judged
from sandbox.executor.prove.sandboxes import attack_alone, attack_as_tool, attack_limits, attack_neighbour, merged
from sandbox.executor.prove.scene import LinkFor, staged
from sandbox.runtime.control import default_gateway
from sandbox.runtime.docker import DockerRuntime


async def prove(
    runtime: DockerRuntime, image: str, *, state: Path, oci_runtime: str, link_for: LinkFor, uid: int, say: Callable[[str], None]
) -> tuple[Proof, ...]:
    """Attack sandboxes made by the very specification jobs run under, and return what every probe came to, in the catalogue's order.

    Takes some 20 s. Nothing stays: no container, mount, directory or process, also if this process is killed.

    Args:
        runtime: The engine.
        image: The agent image's id.
        state: A state directory; a directory `prove` is made in it.
        oci_runtime: The runtime of the sandboxes, by the engine's name; controls run with the engine's default one.
        link_for: The supervisor's ledger.
        uid: Who we are.
        say: Told in a line what goes on.

    Raises:
        EngineError: The engine refused a sandbox or a control, or a control broke off; then nothing is proved.
        UsageError: No slots are free, or the state directory cannot be used.
    """
    async with staged(runtime, image, state=state, oci_runtime=oci_runtime, link_for=link_for, uid=uid) as scene:
        first, second, third = scene.slots
        say("sandboxes attack what is around them, containers with default flags beside them")
        async with ear(await default_gateway(runtime)) as listening:
            (alone, careless, guest), (tool, names_peers), control = await asyncio.gather(
                attack_alone(scene, first, listening), attack_as_tool(scene, second), control_alone(scene, listening)
            )
        say("sandboxes take more than they may")
        limits = await attack_limits(scene, third)
        control_of_limits = await control_limits(scene)
        say("sandboxes look for each other")
        neighbour = await attack_neighbour(scene, first, second)
        inside = merged(alone, tool, limits, neighbour)
        without = {**control, **careless, **control_of_limits, **await control_neighbour(scene)}
        _require_controls(without)
        guest = replace(guest, names_peers=names_peers and oci_runtime not in (await runtime.facts()).gvisor)
        return tuple(judged(probe, inside, without, guest) for probe in PROBES)


def _require_controls(without: Report) -> None:
    """Refuse to judge beside a control that broke off: it would look like one that failed."""
    made = {name for name, said in without.items() if said.made}
    silent = [name for probe in PROBES for name in probe.attacks if name not in made]
    if silent:
        raise EngineError(f"the controls did not report {', '.join(silent[:10])}: nothing is proved; try again when the host is less busy")
