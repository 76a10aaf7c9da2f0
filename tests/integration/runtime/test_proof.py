"""The one container that is tried before the first job."""

import os
from pathlib import Path

import pytest

from sandbox.contract.errors import EngineError
from sandbox.runtime.container_spec import OnStep, Sandbox, SlotSpec, unheard
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.proof import Place, prove_engine

pytestmark = pytest.mark.docker


async def _prove(runtime: DockerRuntime, image: str, directory: Path, uid: int) -> None:
    await prove_engine(runtime, image, Place("proof", directory / "state", directory / "gw", uid, uid))


@pytest.mark.parametrize("engine", ["debian", "current"], indirect=True)
async def test_an_engine_that_serves_is_proved_and_nothing_stays(docker_runtime: DockerRuntime, agent_image: str, tmp_path: Path):
    """The proof's directories are gone afterwards."""
    await _prove(docker_runtime, agent_image, tmp_path, os.getuid() or 231_000)

    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.is_socket()] == []


@pytest.mark.root
async def test_a_sandbox_that_may_not_write_is_found_before_the_first_job(docker_runtime: DockerRuntime, agent_image: str, tmp_path: Path):
    """As with an engine that maps users: the directories belong to another uid than the container runs as."""

    class Mapping:
        facts = docker_runtime.facts
        containers = docker_runtime.containers
        discard = docker_runtime.discard

        async def stand_by(self, slot: SlotSpec, image_id: str, on_step: OnStep = unheard) -> Sandbox:
            return await docker_runtime.stand_by(slot.model_copy(update={"uid": slot.uid + 1, "gid": slot.gid + 1}), image_id, on_step)

    with pytest.raises(EngineError, match=r"write: Permission denied.*docs/engines.md"):
        await prove_engine(Mapping(), agent_image, Place("proof", tmp_path / "state", tmp_path / "gw", 231_000, 231_000))


async def test_a_missing_image_is_an_engine_error(docker_runtime: DockerRuntime, tmp_path: Path):
    """It is the engine's own reason that is shown."""
    with pytest.raises(EngineError, match="cannot create a sandbox"):
        await _prove(docker_runtime, "sha256:" + "0" * 64, tmp_path, 231_000)
