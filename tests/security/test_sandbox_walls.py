"""The walls of a sandbox seen from inside, each beside a control that shows the probe can succeed on this kernel."""

import contextlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest

from sandbox.runtime.container_spec import SlotSpec
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.hardening import MASKED_PATHS
from tests.servers.engines import TestEngine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the probe's numbers are x86-64"),
    pytest.mark.parametrize("engine", ["debian", "current"], indirect=True),
]

PROBE = (Path(__file__).parent / "probe.py").read_text()
DENIED = {
    "vsock", "alg", "packet", "netlink audit", "netlink netfilter", "io_uring", "ptrace", "process_vm_readv", "pidfd_getfd", "userfaultfd",
    "keyctl", "bpf", "perf_event_open", "unshare user", "mount", "chroot", "message queue", "shared memory", "semaphores", "device node",
}  # fmt: skip
CAPABILITIES = ("SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "MKNOD", "SYS_CHROOT")
NEEDED = {"unix", "inet", "inet6", "netlink route", "memfd_create", "fifo"}
# What this kernel does not have cannot be controlled; each may be absent on some kernel we test on.
MAY_BE_ABSENT = {"vsock", "vsock by 32-bit socketcall", "io_uring", "userfaultfd", "bpf", "perf_event_open", "message queue", "alg"}


async def seen_in_a_sandbox(runtime: DockerRuntime, slot: SlotSpec, image: str) -> dict[str, Any]:
    box = await runtime.stand_by(slot, image)
    try:
        await box.wait()
        said: dict[str, Any] = json.loads(await box.log())
    finally:
        await box.remove()
    return said


def seen_without_walls(engine: TestEngine, image: str) -> dict[str, Any]:
    """Run the same probe as root, with capabilities and no filter: what it cannot do there, the kernel cannot do."""
    with contextlib.closing(docker.APIClient(engine.url)) as client:
        options = client.create_host_config(cap_add=list(CAPABILITIES), security_opt=["seccomp=unconfined"], network_mode="none")
        command = ["/opt/andon/bin/python", "-I", "-c", PROBE]
        container = client.create_container(image, command, host_config=options)
        try:
            client.start(container)
            client.wait(container)
            said: dict[str, Any] = json.loads(client.logs(container, stderr=False))
        finally:
            client.remove_container(container, force=True)
    return said


async def test_the_kernel_refuses_what_an_agent_does_not_need(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, a_slot: Callable[..., SlotSpec]
):
    """Every probe that succeeds without walls fails inside with EPERM, and what programs need still works."""
    slot = a_slot(command=("/opt/andon/bin/python", "-I", "-c", PROBE))

    inside = (await seen_in_a_sandbox(docker_runtime, slot, agent_image))["attempts"]
    control = seen_without_walls(engine, agent_image)["attempts"]

    assert {name: inside[name] for name in DENIED} == dict.fromkeys(DENIED, "EPERM")
    assert {name for name in DENIED | {"vsock by 32-bit socketcall", "clone3"} if control[name] != "ok"} <= MAY_BE_ABSENT
    # A 32-bit call is not one of the filter's architecture: the process is killed for it.
    assert inside["vsock by 32-bit socketcall"] in ("EPERM", "SIGSYS")
    # ENOSYS, so that the C library falls back to clone, whose flags can be judged.
    assert inside["clone3"] == "ENOSYS"
    assert {name: inside[name] for name in NEEDED} == dict.fromkeys(NEEDED, "ok")
    assert inside["landlock version"] in ("ok", "ENOSYS", "EOPNOTSUPP")


async def test_a_sandbox_has_no_power_no_network_and_one_socket(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, a_slot: Callable[..., SlotSpec]
):
    """Golden values of SANDBOX.md §4: capabilities, privileges, filter, interfaces, environment, host facts."""
    slot = a_slot(command=("/opt/andon/bin/python", "-I", "-c", PROBE, *MASKED_PATHS, "/proc/self/cmdline"))

    seen = await seen_in_a_sandbox(docker_runtime, slot, agent_image)

    none = "0000000000000000"
    assert seen["status"] == {
        "CapEff": none,
        "CapPrm": none,
        "CapBnd": none,
        "CapAmb": none,
        "NoNewPrivs": "1",
        "Seccomp": "2",
        "Groups": "",
    } | {"Groups": seen["status"]["Groups"]}
    assert seen["status"]["Groups"] in ("", str(slot.gid))
    assert seen["uid"] == slot.uid
    assert seen["interfaces"] == ["lo"]
    assert seen["routes"] == 0
    assert seen["host name"] == "sandbox"
    assert seen["localhost"] == "127.0.0.1"
    assert sorted(seen["environment"]) == ["HOME", "HOSTNAME", "LANG", "PATH", "VIRTUAL_ENV"]
    assert seen["sockets"] == []
    assert seen["masked"].pop("/proc/self/cmdline") > 0
    assert {path: said for path, said in seen["masked"].items() if said not in (0, "No such file or directory")} == {}
