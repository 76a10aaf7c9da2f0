"""The proof under a runtime with a kernel of its own, and on an engine that maps users: what holds, and what differs."""

import os
from pathlib import Path

import pytest

from sandbox.executor.prove.proof import prove
from sandbox.executor.prove.report import Proof
from sandbox.runtime.docker import DockerRuntime
from supervisor.bootstrap.prove import LedgerOfOne
from tests.integration.prove.test_proof import NEEDS_A_NETWORK

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(400)]


async def proofs_of(runtime: DockerRuntime, image: str, state: Path, oci_runtime: str) -> dict[str, Proof]:
    made = await prove(runtime, image, state=state, oci_runtime=oci_runtime, link_for=LedgerOfOne, uid=os.getuid(), say=lambda _: None)
    return {proof.id: proof for proof in made}


def ids(proofs: dict[str, Proof], **wanted: bool) -> set[str]:
    """Return the probes with these answers."""
    return {name for name, proof in proofs.items() if all(getattr(proof, key) is value for key, value in wanted.items())}


@pytest.mark.parametrize("engine", ["runsc"], indirect=True)
async def test_walls_hold_under_gvisor(docker_runtime: DockerRuntime, agent_image: str, tmp_path: Path):
    """What differs: calls and files of its own kernel, and that no peer is named. The control runs under runc, on the same host."""
    proofs = await proofs_of(docker_runtime, agent_image, tmp_path, "runsc")

    assert {name: proofs[name].detail for name in ids(proofs, held=False)} == {}
    assert {name for name, proof in proofs.items() if proof.detail.startswith("differs")} == {"kernel-surface", "host-facts", "agent-pin"}
    assert ids(proofs, control=False) == NEEDS_A_NETWORK


@pytest.mark.parametrize("engine", ["userns"], indirect=True)
async def test_walls_hold_where_users_are_mapped(docker_runtime: DockerRuntime, agent_image: str, tmp_path: Path):
    """One does not: the kernel charges a mapping's inotify instances to whoever made it, so that jobs share them. A control's root
    is nobody outside, so that devices and kernel settings have none.
    """
    proofs = await proofs_of(docker_runtime, agent_image, tmp_path, "runc")

    assert {name: proofs[name].detail for name in ids(proofs, held=False) - {"cross-job-limits"}} == {}
    assert not proofs["cross-job-limits"].held
    assert ids(proofs, control=False) == NEEDS_A_NETWORK | {"devices", "host-settings"}
