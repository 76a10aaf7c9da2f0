"""What the host does around a sandbox: it never goes back in, mounts what it meant to, and lets nobody add a flag."""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from pydantic import ValidationError

from sandbox.contract.errors import ConfigError, EngineError, UsageError
from sandbox.executor.slots import SlotPool, private_directory
from sandbox.runtime.container_spec import SlotSpec
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.hardening import create_request
from supervisor.pipeline.load import load_pipeline
from tests.servers.engines import TestEngine
from tests.unit.runtime.test_hardening import IMAGE, facts

SlotBuilder = Callable[..., SlotSpec]
SLEEP = ("sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60")


@pytest.fixture
def plain(engine: TestEngine, agent_image: str) -> Iterator[Callable[..., str]]:
    """Return what starts a container with the engine's default flags, as somebody does who types `docker run`."""
    with contextlib.closing(docker.APIClient(engine.url)) as client:
        made: list[str] = []

        def run(*command: str, binds: tuple[str, ...] = (), **options: Any) -> str:
            config = client.create_host_config(binds=list(binds), network_mode="none", **options)
            made.append(client.create_container(agent_image, entrypoint=list(command), user="0", working_dir="/", host_config=config)["Id"])
            client.start(made[-1])
            return made[-1]

        yield run
        for container in made:
            client.remove_container(container, force=True)


def said_by(engine: TestEngine, container: str) -> str:
    """Return what a container printed, after its end."""
    with contextlib.closing(docker.APIClient(engine.url)) as client:
        client.wait(container, timeout=30)
        return bytes(client.logs(container)).decode()


async def said_inside(runtime: DockerRuntime, slot: SlotSpec, image: str) -> str:
    """Return what a sandbox of ours printed, after its end."""
    box = await runtime.stand_by(slot, image)
    try:
        await asyncio.wait_for(box.wait(), 30)
        return (await box.log()).decode()
    finally:
        await box.remove()


REPLACE_GIT = "printf '#!/bin/sh\\necho replaced\\n' > /usr/local/bin/git && chmod 755 /usr/local/bin/git; echo $?"


@pytest.mark.docker
@pytest.mark.abuse("D05")
async def test_a_program_of_the_image_cannot_be_replaced(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """And no call of ours enters a used container (`tests/architecture/test_places.py`)."""
    said = await said_inside(docker_runtime, a_slot(command=("sh", "-c", REPLACE_GIT)), agent_image)

    assert said.strip().splitlines()[-1] != "0"
    assert "Read-only file system" in said


@pytest.mark.docker
@pytest.mark.abuse("D05")
def test_control_whoever_enters_a_used_container_runs_what_was_left_there(engine: TestEngine, plain: Callable[..., str]):
    """`docker exec … git` is the agent's git."""
    container = plain("sh", "-c", f"{REPLACE_GIT}; sleep 60")

    with contextlib.closing(docker.APIClient(engine.url)) as client:
        until = time.monotonic() + 20
        said = ""
        while "replaced" not in said and time.monotonic() < until:
            said = bytes(client.exec_start(client.exec_create(container, ["git", "--version"])["Id"])).decode()

    assert said == "replaced\n"


@pytest.mark.docker
@pytest.mark.abuse("D14")
def test_control_a_container_outlives_who_asks_it_to_end(engine: TestEngine, plain: Callable[..., str]):
    """With an engine's defaults, process 1 hears no TERM: a stop without a kill leaves it running."""
    container = plain(*SLEEP)

    with contextlib.closing(docker.APIClient(engine.url)) as client:
        client.kill(container, signal="TERM")

        assert client.inspect_container(container)["State"]["Running"]
        assert len(client.top(container)["Processes"]) >= 2


@pytest.mark.docker
@pytest.mark.abuse("D18")
async def test_nothing_is_mounted_where_an_agent_could_have_left_a_link(
    docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder, plain: Callable[..., str], engine: TestEngine, tmp_path: Path
):
    """Links of every name we mount change nothing; the control: a bundle mounted below a workspace lands where the link leads."""
    slot = a_slot(command=("sh", "-c", "cat /task/bundle; ls -A /run"))
    for name in ("task", ".task", "gw", "out"):
        (slot.workspace / name).symlink_to("/run")
    (slot.task / "bundle").write_text("the bundle\n")

    inside = await said_inside(docker_runtime, slot, agent_image)
    assert inside.startswith("the bundle\n")
    assert "bundle" not in inside.split("\n")[1:]

    binds = (f"{slot.workspace}:/workspace", f"{slot.task}:/workspace/.task:ro")
    assert "bundle" in said_by(engine, plain("ls", "-A", "/run", binds=binds)), "the control"


@pytest.mark.abuse("D18")
def test_no_mount_is_below_another(a_slot: SlotBuilder):
    """Every target is a directory of the image's root, where no agent writes."""
    made = create_request(a_slot(), IMAGE, facts(), Path("/hosts"))

    targets = [Path(mount["Target"]) for mount in made["HostConfig"]["Mounts"]]
    assert [target for target in targets if Path("/workspace") in target.parents or Path("/out") in target.parents] == []


@pytest.mark.docker
@pytest.mark.abuse("D19")
def test_control_an_engine_mounts_what_a_link_leads_to(engine: TestEngine, plain: Callable[..., str], tmp_path: Path):
    """And it makes a directory that is not there, as root."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/secret").write_text("canary-77aa")
    (tmp_path / "job").symlink_to(tmp_path / "victim")

    assert "canary-77aa" in said_by(engine, plain("cat", "/x/secret", binds=(f"{tmp_path}/job:/x",)))
    said_by(engine, plain("true", binds=(f"{tmp_path}/absent:/x",)))
    assert (tmp_path / "absent").is_dir()


@pytest.mark.docker
@pytest.mark.abuse("D19")
async def test_a_directory_that_is_gone_is_an_error(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """It is not made by the engine."""
    slot = a_slot()
    slot.task.rmdir()

    with pytest.raises(EngineError):
        await docker_runtime.stand_by(slot, agent_image)

    assert not slot.task.exists()


@pytest.mark.root
@pytest.mark.abuse("D19")
async def test_a_slots_user_cannot_exchange_what_will_be_mounted(tmp_path: Path):
    """The directories that hold the mounted ones are the host's; the control: in a directory of its own it can."""
    for directory in (tmp_path, *list(tmp_path.parents)[:2]):
        directory.chmod(0o711)
    pool = SlotPool.lease(1, state=tmp_path / "state", sockets=Path(f"/tmp/andon-f-{os.getpid()}"), locks=tmp_path / "locks")
    slot = pool.slots[0]
    uid, _ = slot.owner
    own = tmp_path / "own"
    try:
        for directory in (slot.workspace, slot.task, slot.out, own):
            directory.mkdir(exist_ok=True)
            os.chown(directory, uid, uid)
        (own / "job").mkdir()

        def exchange(path: Path) -> bool:
            script = 'mv "$1" "$1-" && ln -s / "$1"'
            return (
                subprocess.run(["sh", "-c", script, "x", path], user=uid, group=uid, cwd="/", capture_output=True, check=False).returncode
                == 0
            )

        for path in (slot.workspace, slot.task, slot.out, slot.home, slot.sockets):
            assert not exchange(path)
            assert not path.is_symlink()
        assert exchange(own / "job"), "the control"
    finally:
        pool.close()


@pytest.mark.abuse("D19")
def test_a_directory_prepared_by_another_is_not_used(tmp_path: Path):
    """A link, or a directory others may enter, in the place of ours."""
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)

    for path in (tmp_path / "link", tmp_path / "open"):
        with pytest.raises(UsageError, match="not a directory that only you may enter"):
            private_directory(path)


@pytest.mark.abuse("D20")
@pytest.mark.parametrize(
    "field",
    [
        {"privileged": True},
        {"env": {"LD_PRELOAD": "/workspace/x.so"}},
        {"docker_args": "--privileged"},
        {"mounts": []},
        {"runtime": "runc --privileged"},
        {"instance": "x --pid=host"},
        {"uid": 0},
        {"gid": 0},
    ],
)
def test_a_sandbox_cannot_be_described_with_more_power(a_slot: SlotBuilder, field: dict[str, Any]):
    """The description is closed: what it does not name cannot be asked for."""
    with pytest.raises(ValidationError):
        a_slot(**field)


@pytest.mark.abuse("D20")
@pytest.mark.parametrize(
    "key", ["privileged: true", "env: {LD_PRELOAD: x}", "docker_args: --privileged", "volumes: [/:/host]", "user: root", "cap_add: [ALL]"]
)
def test_a_pipeline_has_no_key_for_the_engine(key: str):
    """Nor for the environment of a sandbox; the mistake is named."""
    with pytest.raises(ConfigError, match=key.partition(":")[0]):
        load_pipeline(f"pipeline: {{stages: [{{name: docs, {key}}}]}}", "p.yaml")


@pytest.mark.docker
@pytest.mark.abuse("D20")
async def test_the_hosts_environment_stays_outside(
    docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder, monkeypatch: pytest.MonkeyPatch
):
    """Whatever the executor was started with."""
    for name in ("LD_PRELOAD_TEST", "PYTHONPATH", "GIT_DIR", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "canary-3b1d")

    said = await said_inside(docker_runtime, a_slot(command=("env",)), agent_image)

    assert "canary-3b1d" not in said
    assert sorted(line.partition("=")[0] for line in said.splitlines()) == ["HOME", "HOSTNAME", "LANG", "PATH", "VIRTUAL_ENV"]


@pytest.mark.docker
@pytest.mark.abuse("D20")
def test_control_a_runner_that_hands_options_on_gives_everything_away(engine: TestEngine, plain: Callable[..., str]):
    """As runners do that take arguments for the engine from a pipeline's file."""
    from_a_pipeline: dict[str, Any] = {"cap_add": ["SYS_ADMIN"], "binds": ("/etc:/workspace/etc",)}
    command = ("sh", "-c", "grep CapEff /proc/self/status; ls /workspace")

    usual, more = said_by(engine, plain(*command)), said_by(engine, plain(*command, **from_a_pipeline))

    assert int(more.split()[1], 16) > int(usual.split()[1], 16)
    assert (usual.split()[2:], more.split()[2:]) == ([], ["etc"])
