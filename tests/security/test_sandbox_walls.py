"""The walls of a sandbox seen from inside, on both engines, each beside a control. Every other attack: `tests/integration/prove`."""

import asyncio
import contextlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import docker
import pytest

from sandbox.contract.job import Limits
from sandbox.executor.prove.report import Said, read_lines
from sandbox.executor.prove.scene import command, task_bundle
from sandbox.runtime.container_spec import PROGRAM, TASK, SlotSpec
from sandbox.runtime.control import running_control
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.hardening import MASKED_PATHS
from tests.servers.engines import TestEngine

pytestmark = pytest.mark.docker
BOTH_ENGINES = pytest.mark.parametrize("engine", ["debian", "current"], indirect=True)
SlotBuilder = Callable[..., SlotSpec]

GOLDEN = (*PROGRAM[:2], "-c", (Path(__file__).parent / "golden.py").read_text())
NO_POWER = "0000000000000000"
DENIED = {
    *("vsock.socket", "io_uring.setup", "ptrace.attach", "ptrace.process_vm_readv", "ptrace.pidfd_getfd"),
    *(f"surface.{name}" for name in ("alg", "packet", "netlink_audit", "netlink_netfilter", "userfaultfd", "keyctl", "bpf")),
    *(f"surface.{name}" for name in ("perf_event_open", "unshare_user", "mount", "chroot")),
    *("ipc.message_queue", "ipc.shared_memory", "ipc.semaphores"),
}
NEEDED = {f"needed.{name}" for name in ("unix", "inet", "inet6", "netlink_route", "memfd", "fifo")}
# What this kernel does not have cannot be controlled; each may be absent on some kernel we test on.
MAY_BE_ABSENT = {
    *("vsock.socket", "vsock.socketcall", "io_uring.setup", "ipc.message_queue"),
    *(f"surface.{name}" for name in ("alg", "userfaultfd", "bpf", "perf_event_open")),
}
A_BUSY_LOOP = "import os, time\nos.fork(), os.fork()\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


@pytest.fixture
def attacks(tmp_path: Path) -> Path:
    """Return a directory with the programs of the proof."""
    directory = tmp_path / "attacks"
    for name, source in task_bundle().files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(source)
    return directory


async def printed_in_a_sandbox(runtime: DockerRuntime, slot: SlotSpec, image: str) -> bytes:
    box = await runtime.stand_by(slot, image)
    try:
        await box.wait()
        return await box.log()
    finally:
        await box.remove()


async def printed_by_a_control(
    runtime: DockerRuntime, image: str, program: tuple[str, ...], binds: Mapping[Path, str] | None = None, *, walls: bool = True
) -> bytes:
    deadline = time.time() + 300
    async with running_control(runtime, image, program, instance="test-control", binds=binds or {}, deadline=deadline, walls=walls) as box:
        assert await box.wait(60)
        return await box.output()


@BOTH_ENGINES
@pytest.mark.abuse("D07", "D17", "D24")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="what a filter answers to a 32-bit call is x86-64's")
async def test_the_kernel_refuses_what_an_agent_does_not_need(
    docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder, attacks: Path
):
    """Each attempt fails with EPERM, what programs need works. The control: without a filter, with capabilities, each succeeds."""
    program = command("kernel", {})

    inside = read_lines(await printed_in_a_sandbox(docker_runtime, a_slot(command=program, task=attacks), agent_image))
    control = read_lines(await printed_by_a_control(docker_runtime, agent_image, program, {attacks: f"{TASK}:ro"}, walls=False))

    assert {name: inside[name] for name in DENIED} == dict.fromkeys(DENIED, Said(won=False, said="EPERM"))
    assert {name for name in DENIED | {"vsock.socketcall", "surface.clone3"} if not control[name].won} <= MAY_BE_ABSENT
    # A 32-bit call is not one of the filter's architecture: the process is killed for it.
    assert inside["vsock.socketcall"].said in ("EPERM", "killed by SIGSYS")
    # ENOSYS, so that the C library falls back to clone, whose flags can be judged.
    assert inside["surface.clone3"].said == "ENOSYS"
    assert {name for name in NEEDED if not inside[name].won} == set()
    assert inside["needed.landlock"].won or inside["needed.landlock"].said in ("ENOSYS", "EOPNOTSUPP")


@BOTH_ENGINES
@pytest.mark.abuse("D22")
async def test_a_sandbox_has_no_power_no_network_and_no_facts(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """Golden values of SANDBOX.md §4. The control: with default flags it has power, and reads the host's facts."""
    program = (*GOLDEN, *MASKED_PATHS, "/proc/self/cmdline")
    slot = a_slot(command=program)

    seen: dict[str, Any] = json.loads(await printed_in_a_sandbox(docker_runtime, slot, agent_image))
    control: dict[str, Any] = json.loads(await printed_by_a_control(docker_runtime, agent_image, program))

    groups = seen["status"].pop("Groups")
    powers = dict.fromkeys(("CapEff", "CapPrm", "CapBnd", "CapAmb"), NO_POWER)
    assert seen["status"] == powers | {"NoNewPrivs": "1", "Seccomp": "2"}
    assert groups in ("", str(slot.gid))
    assert (seen["uid"], seen["directory"]) == (slot.uid, "/workspace")
    assert (seen["interfaces"], seen["routes"]) == (["lo"], 0)
    assert (seen["host name"], seen["localhost"]) == ("sandbox", "127.0.0.1")
    assert sorted(seen["environment"]) == ["HOME", "HOSTNAME", "LANG", "PATH", "VIRTUAL_ENV"]
    assert seen["masked"].pop("/proc/self/cmdline") > 0
    assert {path: said for path, said in seen["masked"].items() if said not in (0, "No such file or directory")} == {}
    assert (control["uid"], control["status"]["NoNewPrivs"]) == (0, "0")
    assert control["status"]["CapEff"] != NO_POWER
    assert [
        path for path in ("/proc/cmdline", "/proc/partitions", "/sys/kernel") if control["masked"][path] in (0, "Permission denied")
    ] == []


@pytest.mark.slow
@pytest.mark.abuse("D16")
async def test_a_busy_sandbox_leaves_the_others_their_time(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, a_slot: SlotBuilder
):
    """The kernel holds four spinners to a tenth of a CPU, as the job may have. The control: with default flags it never holds them back."""
    program = (*PROGRAM[:2], "-c", A_BUSY_LOOP)
    with contextlib.closing(docker.APIClient(engine.url)) as client:

        def cpu(container: str) -> tuple[int, int]:
            """Return nanoseconds used, and how often its time was up."""
            stats = client.stats(container, stream=False)["cpu_stats"]
            return stats["cpu_usage"]["total_usage"], stats["throttling_data"]["throttled_periods"]

        box = await docker_runtime.stand_by(a_slot(command=program, limits=Limits(cpus=0.1)), agent_image)
        try:
            await wait_until(lambda: cpu(box.container_id)[1] >= 5, "it is held back")
        finally:
            await box.remove()
        async with running_control(docker_runtime, agent_image, program, instance="test-control", binds={}, deadline=0) as control:
            await wait_until(lambda: cpu(control.container_id)[0] > 10**9, "it has used a second")
            assert cpu(control.container_id)[1] == 0


async def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Ask until it is so: each question takes the engine a second."""
    for _ in range(40):
        if await asyncio.to_thread(is_so):
            return
    raise AssertionError(f"in vain: {what}")


@pytest.mark.abuse("D04")
async def test_an_images_own_directory_and_program_are_not_used(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, a_slot: SlotBuilder, tmp_path: Path
):
    """The places where faults of runc began are constants of ours. The control: an engine takes them from the image."""
    (tmp_path / "Dockerfile").write_text(f'FROM {agent_image}\nWORKDIR /proc/self/fd/7\nENTRYPOINT ["/bin/false"]\n')
    with contextlib.closing(docker.APIClient(engine.url)) as client:
        list(client.build(path=str(tmp_path), tag="andon-test/fd7", rm=True, labels={"andon.test": "1"}))
        try:
            image = client.inspect_image("andon-test/fd7")["Id"]  # type: ignore[no-untyped-call]
            created = client.create_container(image)
            config = client.inspect_container(created["Id"])["Config"]
            client.remove_container(created["Id"], force=True)
            box = await docker_runtime.stand_by(a_slot(command=GOLDEN), image)
            try:
                ours = client.inspect_container(box.container_id)["Config"]
                await box.wait()
                seen = json.loads(await box.log())
            finally:
                await box.remove()
        finally:
            client.remove_image("andon-test/fd7", force=True)

    assert (config["WorkingDir"], config["Entrypoint"]) == ("/proc/self/fd/7", ["/bin/false"])
    assert (ours["WorkingDir"], ours["Entrypoint"], seen["directory"]) == ("/workspace", [PROGRAM[0]], "/workspace")
