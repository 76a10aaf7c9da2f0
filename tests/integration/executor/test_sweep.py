"""The janitor on a real engine: of many containers it removes its own stale one, and no other."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from sandbox.executor.janitor import Janitor
from sandbox.runtime.container_spec import SlotSpec
from sandbox.runtime.docker import DockerRuntime
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.servers.engines import TestEngine
from tests.unit.executor.a_host import a_host

pytestmark = pytest.mark.docker

SLEEP = ("/opt/andon/bin/python", "-I", "-c", "import time; time.sleep(600)")


@pytest.mark.abuse("D14", "D23")
async def test_of_all_containers_only_the_stale_one_of_this_executor_goes(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, a_slot: Callable[..., SlotSpec], tmp_path: Path
):
    """A stranger without our label, one with a label like ours, another executor's and a running slot's are planted beside it."""
    async with MemoryExecutorLink.connect(MemoryBroker(), "ex1") as link, a_host(tmp_path / "state", link, docker_runtime) as host:
        stale = await docker_runtime.stand_by(a_slot(1, instance=host.instance, command=SLEEP), agent_image)
        running = await docker_runtime.stand_by(a_slot(0, instance=host.instance, command=SLEEP), agent_image)
        other = await docker_runtime.stand_by(a_slot(2, instance=f"{host.instance}2", command=SLEEP, deadline=1), agent_image)
        with contextlib.closing(docker.APIClient(engine.url)) as client:
            labels: list[dict[str, str]] = [{}, {"instance": host.instance}, {"app": "andon.instance"}]
            strangers = [client.create_container(agent_image, entrypoint=["true"], labels=each)["Id"] for each in labels]
            try:
                stopped = {each["Id"] for each in client.containers(all=True, filters={"status": "created"})}
                assert set(strangers) <= stopped, "the control: a prune of what does not run would take them"

                await Janitor(host, is_busy=lambda number: number == 0, salvage=lambda _: None).sweep()

                left = {each["Id"] for each in client.containers(all=True)}
                assert stale.container_id not in left
                assert {running.container_id, other.container_id, *strangers} <= left
            finally:
                for stranger in strangers:
                    client.remove_container(stranger, force=True)
                for box in (stale, running, other):
                    await box.remove()
