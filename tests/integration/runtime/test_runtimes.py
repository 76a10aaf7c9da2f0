"""Sandboxes of other OCI runtimes, and of engines that map users or see other file systems than we do."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import docker
import pytest

from sandbox.contract.errors import EngineError
from sandbox.runtime.container_spec import SlotSpec
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.proof import NoSocketError, Place, prove_engine
from sandbox.runtime.relay import relayed
from sandbox.runtime.users import NOT_MAPPED, SLOTS_FROM
from tests.servers.engines import FIRST_MAPPED, TestEngine

pytestmark = [pytest.mark.docker, pytest.mark.root]

SlotBuilder = Callable[..., SlotSpec]
ON_RUNSC = pytest.mark.parametrize("engine", ["runsc"], indirect=True)
ON_MAPPING = pytest.mark.parametrize("engine", ["userns-debian", pytest.param("userns", marks=pytest.mark.slow)], indirect=True)
APART = pytest.mark.parametrize("engine", ["apart"], indirect=True)
UID = 231_000
MAPPED_UID = FIRST_MAPPED + SLOTS_FROM + 7

Prove = Callable[..., "tuple[str, ...]"]


async def proved(
    runtime: DockerRuntime, image: str, directory: Path, *, name: str = "runc", uid: int = UID, is_relayed: bool = False
) -> tuple[str, ...]:
    """Return what a first container shows to be missing, in a directory nobody but root may enter, as a state directory is."""
    directory.chmod(0o700)
    place = Place(f"proof-{os.getpid()}", directory / "state", directory / "gw", uid, uid)
    return await prove_engine(runtime, image, place, name=name, relay=partial(relayed, runtime.engine) if is_relayed else None)


def begins(lines: tuple[str, ...]) -> set[str]:
    return {line.split(":")[0] for line in lines}


@ON_RUNSC
async def test_gvisor_registered_as_we_say_lacks_the_pin_and_landlock(docker_runtime: DockerRuntime, agent_image: str, tmp_path: Path):
    """Under it our system call filter holds and the socket works; who calls cannot be told, and nobody gives up rights. runc has both."""
    under_runc = await proved(docker_runtime, agent_image, tmp_path)
    under_runsc = await proved(docker_runtime, agent_image, tmp_path, name="runsc")

    assert begins(under_runsc) - begins(under_runc) == {"no agent pin", "no Landlock"}
    assert not {"no seccomp", "no Landlock"} & begins(under_runc)


@ON_RUNSC
async def test_gvisor_without_its_options_is_refused_and_says_which(docker_runtime: DockerRuntime, agent_image: str, tmp_path: Path):
    """A bound socket of the host is closed to it: found by a real round trip, before a job."""
    with pytest.raises(EngineError, match=r"with runtime runsc-bare cannot serve here: .*connect: .*docs/engines.md"):
        await proved(docker_runtime, agent_image, tmp_path, name="runsc-bare")


@ON_RUNSC
async def test_a_sandbox_of_gvisor_is_known_to_be_one(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """What gVisor lacks stands in the record of a job without a proof, and what only runc lacks does not."""
    facts = await docker_runtime.facts()
    program = ("/opt/andon/bin/python", "-I", "-c", "print(open('/proc/version').read())")

    box = await docker_runtime.stand_by(a_slot(runtime="runsc", command=program), agent_image)
    try:
        await box.wait()
        log = (await box.log()).decode()
    finally:
        await box.remove()

    assert facts.gvisor == ("runsc", "runsc-bare")
    assert facts.kernel not in log  # its own kernel answers
    assert "no agent pin" in begins(box.missing)


@ON_RUNSC
async def test_threads_start_under_gvisor_and_a_tracer_does_not(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """Its filter knows no answer but EPERM, which clone3 must not get; the rest of our list holds."""
    program = (
        "import ctypes, threading; libc = ctypes.CDLL(None, use_errno=True)\n"
        "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
        "for number in (101, 272, 425): print(libc.syscall(number, 0, 0, 0), ctypes.get_errno())"  # ptrace, unshare, io_uring_setup
    )

    box = await docker_runtime.stand_by(a_slot(runtime="runsc", command=("/opt/andon/bin/python", "-I", "-c", program)), agent_image)
    try:
        await box.wait()
        log = (await box.log()).decode()
    finally:
        await box.remove()

    assert log.splitlines() == ["thread", "-1 1", "-1 1", "-1 1"]


@ON_RUNSC
async def test_loopback_is_there_under_gvisor_and_nothing_else_is(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """A test may serve on 127.0.0.1, as under runc; there is no other interface, no route, and no name server of the host."""
    program = (
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 0)); client = socket.create_connection(server.getsockname()); print('served')\n"
        "print([name for _, name in socket.if_nameindex()])\n"
        "print(open('/etc/hosts').readline().split())\n"
        "print([line.split()[1] for line in open('/etc/resolv.conf') if line.startswith('nameserver')])\n"
        "try: socket.create_connection(('192.0.2.1', 80), 3)\n"
        "except OSError as error: print(error.strerror)\n"
    )

    box = await docker_runtime.stand_by(a_slot(runtime="runsc", command=("/opt/andon/bin/python", "-I", "-c", program)), agent_image)
    try:
        await box.wait()
        log = (await box.log()).decode()
    finally:
        await box.remove()

    assert log.splitlines() == ["served", "['lo']", "['127.0.0.1', 'localhost', 'sandbox']", "['127.0.0.1']", "Network is unreachable"]


@ON_MAPPING
async def test_an_engine_that_maps_users_serves_a_user_it_maps(docker_runtime: DockerRuntime, agent_image: str, tmp_path: Path):
    """The sandbox writes as the slot's user of the host and reaches the socket; the second boundary stays up."""
    facts = await docker_runtime.facts()

    missing = await proved(docker_runtime, agent_image, tmp_path, uid=facts.users.slots_from(0) + 7)

    assert facts.users.slots_from(0) + 7 == MAPPED_UID
    assert NOT_MAPPED not in missing
    assert "no agent pin" not in begins(missing)


@ON_MAPPING
async def test_what_a_mapped_sandbox_writes_is_the_slots(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """Inside it is a small number of the mapping, outside the slot's own user."""
    slot = a_slot(uid=MAPPED_UID, gid=MAPPED_UID)
    for directory in (slot.workspace, slot.out, slot.task, slot.gateway):
        os.chown(directory, slot.uid, slot.gid)
    program = "import os; open('/workspace/made', 'w').write('x'); open('/home/agent/x', 'w'); print(os.getuid(), os.getgid())"

    box = await docker_runtime.stand_by(slot.model_copy(update={"command": ("/opt/andon/bin/python", "-I", "-c", program)}), agent_image)
    try:
        await box.wait()
        log = (await box.log()).decode()
    finally:
        await box.remove()

    assert log.split() == [str(SLOTS_FROM + 7)] * 2
    made = (slot.workspace / "made").stat()
    assert (made.st_uid, made.st_gid) == (MAPPED_UID, MAPPED_UID)


@ON_MAPPING
async def test_a_user_the_engine_does_not_map_goes_without_and_it_is_said(docker_runtime: DockerRuntime, agent_image: str, tmp_path: Path):
    """An ordinary member of the group cannot make files for others, so the mapping is switched off for the sandbox."""
    missing = await proved(docker_runtime, agent_image, tmp_path, uid=UID)

    assert NOT_MAPPED in missing


def volumes_of(engine: TestEngine) -> set[str]:
    with contextlib.closing(docker.APIClient(engine.url)) as client:
        return {volume["Name"] for volume in client.volumes()["Volumes"] or ()}


@pytest.mark.slow
@APART
async def test_an_engine_that_carries_files_and_no_sockets_is_found_and_got_round(
    docker_runtime: DockerRuntime, agent_image: str, tmp_path: Path, engine: TestEngine
):
    """As in a virtual machine: what is written arrives, nobody answers at the socket. A container beside with a volume carries it."""
    before = volumes_of(engine)
    with pytest.raises(NoSocketError, match=r"cannot serve here: in a first container, connect: Connection refused .*docs/engines.md"):
        await proved(docker_runtime, agent_image, tmp_path)

    missing = await proved(docker_runtime, agent_image, tmp_path, is_relayed=True)

    assert "no agent pin" in begins(missing)
    assert volumes_of(engine) == before


ECHO = """
import socket, sys, threading
def say(number):
    talk = socket.socket(socket.AF_UNIX)
    talk.settimeout(30)
    talk.connect("/gw/gateway.sock")
    data = bytes([number]) * 3_000_000
    threading.Thread(target=talk.sendall, args=(data,)).start()
    heard = 0
    while heard < len(data):
        part = talk.recv(1 << 20)
        if not part or set(part) != {number}:
            break
        heard += len(part)
    told.append(heard)
    talk.close()
told = []
threads = [threading.Thread(target=say, args=(number,)) for number in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(told)
try:
    open("/gw/x", "w")
except OSError as error:
    print(error.errno)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["default", "apart"], indirect=True)
async def test_what_is_said_by_the_relay_arrives_whole_for_many_at_once(
    docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder, engine: TestEngine
):
    """Eight connections of three million bytes each way, unmixed; the volume is read-only for the sandbox, and gone at the end."""
    slot, before = a_slot(command=("/opt/andon/bin/python", "-I", "-c", ECHO)), volumes_of(engine)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(echo, slot.gateway / "gateway.sock")
    async with server, relayed(docker_runtime.engine, slot, agent_image) as reachable:
        box = await docker_runtime.stand_by(reachable, agent_image)
        try:
            await asyncio.wait_for(box.wait(), 120)
            log = (await box.log()).decode()
        finally:
            await box.remove()

    assert log.splitlines() == [str([3_000_000] * 8), "30"]  # EROFS
    assert volumes_of(engine) == before


async def test_the_relay_takes_the_slots_user_alone_and_ends_with_the_gateway(
    docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder
):
    """Another user's connection is closed unheard; so is one when nobody listens on the host any more."""
    program = (
        "import socket; talk = socket.socket(socket.AF_UNIX); talk.settimeout(20); talk.connect('/gw/gateway.sock'); print(talk.recv(9))"
    )
    heard: list[str] = []

    async def hear(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append("somebody")
        writer.write(b"hello")
        writer.close()

    async def says(slot: SlotSpec) -> str:
        box = await docker_runtime.stand_by(slot, agent_image)
        try:
            await asyncio.wait_for(box.wait(), 60)
            return (await box.log()).decode().strip()
        finally:
            await box.remove()

    slot = a_slot(command=("/opt/andon/bin/python", "-I", "-c", program))
    server = await asyncio.start_unix_server(hear, slot.gateway / "gateway.sock")
    async with relayed(docker_runtime.engine, slot, agent_image) as reachable:
        async with server:
            assert await says(reachable) == "b'hello'"
            assert await says(reachable.model_copy(update={"uid": slot.uid + 1, "gid": slot.gid + 1})) == "b''"
        assert await says(reachable) == "b''"

    assert heard == ["somebody"]
