"""A proof asks the engine for the very sandbox a job asks for: otherwise it would prove the walls of something else."""

import os
from pathlib import Path
from typing import Any, cast

import pytest

from sandbox.contract.errors import EngineError
from sandbox.contract.job import JobSpec
from sandbox.contract.wire import ClaimReply, Delivery
from sandbox.executor.account import Account
from sandbox.executor.place import Surroundings
from sandbox.executor.prove.scene import LIMITS, Scene
from sandbox.executor.sandboxed import running_sandbox
from sandbox.executor.slots import Slot
from sandbox.mirror import Mirror
from sandbox.runtime.container_spec import EngineFacts, OnStep, Sandbox, SlotSpec, unheard
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.hardening import create_request
from tests.architecture.source import methods_called, modules
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.fakes.wire_data import a_job
from tests.unit.executor.a_host import BareEngine, a_host
from tests.unit.runtime.test_hardening import facts as engine_facts

IMAGE = "sha256:" + "0" * 64


class Refusing(BareEngine):
    """Notes what it is asked for and starts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[SlotSpec] = []

    async def stand_by(self, slot: SlotSpec, image_id: str, on_step: OnStep = unheard) -> Sandbox:
        self.asked.append(slot)
        raise EngineError("noted")


async def asked_for_a_job(state: Path, slot: Slot, job: JobSpec) -> tuple[SlotSpec, str]:
    """Return what the engine is asked for when a job runs, and the executor's instance."""
    engine = Refusing()
    async with MemoryExecutorLink.connect(MemoryBroker(), "ex1") as link, a_host(state, link, engine) as host:
        grant = ClaimReply(decision="granted", attempt=1, token="t", wall_left_s=60)
        account = Account(host, Delivery(job=job, ack_subject="ack", deliveries=1), grant, slot)
        with pytest.raises(EngineError, match="noted"):
            async with running_sandbox(host, job, slot, IMAGE, account):
                pass
        return engine.asked[0], host.instance


def a_scene(home: Path, instance: str, slot: Slot) -> Scene:
    return Scene(
        runtime=cast(DockerRuntime, None),
        image=IMAGE,
        oci_runtime="runc",
        instance=instance,
        home=home,
        sockets=home,
        slots=(slot,),
        mirror=cast(Mirror, None),
        base="",
        around=cast(Surroundings, None),
        link_for=cast(Any, None),
        key="",
        born=0.0,
    )


def request(spec: SlotSpec, facts: EngineFacts, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    asked = create_request(spec, IMAGE, facts, Path("/slots/0/hosts"))
    asked["Labels"].pop("andon.deadline")
    return {key: value for key, value in asked.items() if key not in without}


async def test_a_proof_asks_for_the_sandbox_of_a_job(tmp_path: Path):
    """The same request, byte for byte, but for the program; the agent's own program is the job's, too."""
    slot = Slot(0, os.getuid() or 200_000, tmp_path / "slots" / "0", tmp_path / "gw")
    of_a_job, instance = await asked_for_a_job(tmp_path / "ex", slot, a_job(limits=LIMITS))
    scene = a_scene(tmp_path, instance, slot)

    for facts in (engine_facts(), engine_facts(cgroup_version="2", security_options=("name=selinux",))):
        assert request(scene.spec(slot), facts) == request(of_a_job, facts)
        program = ("Entrypoint", "Cmd")
        assert request(scene.spec(slot, "alone", {}), facts, without=program) == request(of_a_job, facts, without=program)
    assert scene.spec(slot, "alone", {}).command != of_a_job.command


def test_sandboxes_are_described_in_two_places():
    """For jobs and proofs together, and for the one container before the first job."""
    makers = {str(path) for path in modules("sandbox", "supervisor") if "SlotSpec" in methods_called(path)}

    assert makers == {"sandbox/executor/sandboxed.py", "sandbox/runtime/proof.py"}
