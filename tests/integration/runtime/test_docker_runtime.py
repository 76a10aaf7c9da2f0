"""Sandboxes of a real engine: how they start, stand still, end, and what they leave."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import docker
import pytest

from sandbox.contract.errors import EngineError
from sandbox.contract.job import Limits
from sandbox.runtime.container_spec import LOG_BYTES_MAX, SlotSpec
from sandbox.runtime.docker import DockerRuntime, DockerSandbox
from sandbox.runtime.engine import Engine
from tests.servers.engines import TestEngine

pytestmark = pytest.mark.docker

SlotBuilder = Callable[..., SlotSpec]
ON_BOTH = pytest.mark.parametrize("engine", ["debian", "current"], indirect=True)


def python(program: str) -> tuple[str, ...]:
    return ("/opt/andon/bin/python", "-I", "-c", program)


@contextlib.asynccontextmanager
async def started(runtime: DockerRuntime, slot: SlotSpec, image: str) -> AsyncIterator[DockerSandbox]:
    box = await runtime.stand_by(slot, image)
    try:
        yield box
    finally:
        await box.remove()


async def output_of(runtime: DockerRuntime, slot: SlotSpec, image: str) -> str:
    async with started(runtime, slot, image) as box:
        await box.wait()
        return (await box.log()).decode()


async def wait_until(predicate: Callable[[], bool], description: str, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {within_s} s: {description}"
        await asyncio.sleep(0.01)


def processes_of(uid: int) -> list[str]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"Uid:\t{uid}\t" in status.read_text():
                found.append(status.parent.name)
    return found


def containers_of(engine: TestEngine, instance: str) -> list[str]:
    with contextlib.closing(docker.APIClient(engine.url)) as client:
        return [found["Id"] for found in client.containers(all=True, filters={"label": f"andon.instance={instance}"})]


@ON_BOTH
async def test_a_sandbox_runs_its_program_and_tells_how_it_ended(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """Output, exit code and the bound directories work on every engine we promise."""
    slot = a_slot(command=python("open('/workspace/made', 'w').write('x'); print('hello'); raise SystemExit(7)"))

    async with started(docker_runtime, slot, agent_image) as box:
        ended = await asyncio.wait_for(box.wait(), 20)
        log = await box.log()

    assert (ended.code, ended.oom_killed) == (7, False)
    assert log == b"hello\n"
    made = (slot.workspace / "made").stat()
    assert (made.st_uid, made.st_gid) == (slot.uid, slot.gid)


@ON_BOTH
async def test_a_program_reaches_the_gateway_socket_as_its_slots_user(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """The socket directory is bound read-only, and still one can connect; the host sees the slot's uid."""
    program = (
        "import os, socket; s = socket.socket(socket.AF_UNIX); s.connect('/gw/gateway.sock'); print(s.recv(9).decode())\n"
        "try: os.rename('/gw/gateway.sock', '/gw/other')\nexcept OSError as error: print(error.errno)"
    )
    slot = a_slot(command=python(program))
    peers: list[int] = []

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock: socket.socket = writer.get_extra_info("socket")
        peers.append(int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8], "little"))
        writer.write(b"good day")
        writer.close()

    server = await asyncio.start_unix_server(greet, slot.gateway / "gateway.sock")
    (slot.gateway / "gateway.sock").chmod(0o666)
    async with server:
        said = await output_of(docker_runtime, slot, agent_image)

    assert said.split("\n")[:2] == ["good day", "30"]  # EROFS
    assert peers == [slot.uid]


async def test_the_host_may_fill_the_slot_after_the_start(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """What makes standby sandboxes possible: a file put into a bound directory appears inside."""
    program = "import os, time\nwhile not os.path.exists('/task/go'): time.sleep(0.01)\nprint(open('/task/go').read())"
    slot = a_slot(command=python(program))

    async with started(docker_runtime, slot, agent_image) as box:
        (slot.task / "go").write_text("now")
        await asyncio.wait_for(box.wait(), 20)

        assert await box.log() == b"now\n"


@ON_BOTH
async def test_a_container_beyond_its_memory_is_killed_and_says_so(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """Exhausting memory ends only that container, and is not mistaken for a kill."""
    slot = a_slot(command=python("b = bytearray(); \nwhile True: b += bytes(8 << 20)"), limits=Limits(memory_mib=64, workspace_mib=16))

    async with started(docker_runtime, slot, agent_image) as box:
        ended = await asyncio.wait_for(box.wait(), 30)

    assert ended.oom_killed
    assert ended.code == 137


async def test_forks_end_at_the_pids_limit(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """The limit is the container's own, init and threads counted."""
    program = (
        "import os, time\ncount = 1\n"
        "try:\n while count < 500:\n  if os.fork() == 0: time.sleep(60)\n  count += 1\n"
        "except BlockingIOError: print(count)"
    )
    slot = a_slot(command=python(program), limits=Limits(pids_max=40))

    async with started(docker_runtime, slot, agent_image) as box:
        ended = asyncio.ensure_future(box.wait())
        await wait_until(lambda: bool(box._output.kept.value()), "the count")
        counted = int(await box.log())
        await box.kill()
        await ended

    assert 30 <= counted <= 40


async def test_temporary_directories_are_bounded(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """/tmp takes its size and not more; a tmpfs without a size would take half of the machine's memory."""
    program = (
        "import os\n"
        "def fill(path):\n"
        " size = 0\n"
        " try:\n"
        "  for part in range(64):\n"
        "   with open(f'{path}/{part}', 'wb', buffering=0) as file:\n"
        "    for _ in range(8): size += file.write(bytes(1 << 20))\n"
        " except OSError as error: return size >> 20, error.errno\n"
        " return size >> 20, 0\n"
        "print(fill('/tmp'), fill('/home/agent'), fill('/dev/shm'), fill('/'))"
    )

    said = await output_of(docker_runtime, a_slot(command=python(program)), agent_image)

    assert said == "(128, 28) (16, 28) (64, 28) (0, 30)\n"


@ON_BOTH
async def test_a_paused_container_stands_still_and_can_be_killed(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """Pause and unpause say the same twice; kill works on a frozen container and returns when it is dead."""
    slot = a_slot(
        command=python("import time, itertools\nfor n in itertools.count(): open('/out/n', 'w').write(str(n)); time.sleep(0.005)")
    )
    counter = slot.out / "n"

    async with started(docker_runtime, slot, agent_image) as box:
        await wait_until(counter.exists, "the first count")
        await box.pause()
        await box.pause()
        stood = counter.read_text()
        await asyncio.sleep(0.1)
        assert counter.read_text() == stood
        await box.unpause()
        await box.unpause()
        await wait_until(lambda: counter.read_text() not in (stood, ""), "the next count")
        await box.pause()

        await box.kill()

        assert (await asyncio.wait_for(box.wait(), 1)).code == 137
        assert processes_of(slot.uid) == [] or os.geteuid() != 0


@pytest.mark.root
@pytest.mark.abuse("D14")
async def test_kill_leaves_no_process_of_a_stubborn_tree(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """Double forks that ignore every signal they may ignore die with the container."""
    program = (
        "import os, signal, time\n"
        "for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)\n"
        "for _ in range(3):\n"
        " if os.fork() == 0:\n"
        "  os.setsid()\n"
        "  if os.fork(): os._exit(0)\n"
        "  time.sleep(600)\n"
        "print('up', flush=True); time.sleep(600)"
    )
    slot = a_slot(7, command=python(program))

    async with started(docker_runtime, slot, agent_image) as box:
        await wait_until(lambda: len(processes_of(slot.uid)) >= 4, "the tree")
        began = time.monotonic()
        await box.kill()
        took_s = time.monotonic() - began

        assert processes_of(slot.uid) == []
        assert took_s < 2


@ON_BOTH
async def test_the_first_and_the_last_of_a_flood_are_kept(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """Output is bounded, its drop counted, and nothing of the beginning or the end is missed."""
    program = "import sys\nsys.stdout.write('first\\n')\nfor n in range(400_000): sys.stdout.write(f'line {n:>30}\\n')\nprint('last')"

    async with started(docker_runtime, a_slot(command=python(program)), agent_image) as box:
        await asyncio.wait_for(box.wait(), 60)
        log = await box.log()

    assert log.startswith(b"first\nline")
    assert log.endswith(b"399999\nlast\n")
    assert len(log) <= LOG_BYTES_MAX + 100
    assert b"bytes of output dropped here" in log


async def test_limits_of_a_running_container_change_with_the_job(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, a_slot: SlotBuilder
):
    """A standby is started before its job's limits are known."""
    async with started(docker_runtime, a_slot(command=python("import time; time.sleep(60)")), agent_image) as box:
        await box.assign(Limits(memory_mib=300, workspace_mib=100, cpus=0.5, pids_max=33))

        with contextlib.closing(docker.APIClient(engine.url)) as client:
            host: dict[str, Any] = client.inspect_container(box.container_id)["HostConfig"]

    assert (host["Memory"], host["MemorySwap"]) == (400 << 20, 400 << 20)
    assert (host["CpuQuota"], host["CpuPeriod"], host["PidsLimit"]) == (50_000, 100_000, 33)


@ON_BOTH
async def test_a_start_that_fails_leaves_no_container(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, a_slot: SlotBuilder, tmp_path: Path
):
    """An image or a directory that is not there costs no container, and no directory is made by the engine."""
    with pytest.raises(EngineError, match="cannot create a sandbox"):
        await docker_runtime.stand_by(a_slot(instance="failing"), "sha256:" + 64 * "0")
    with pytest.raises(EngineError, match="absent"):
        await docker_runtime.stand_by(a_slot(instance="failing", out=tmp_path / "absent"), agent_image)

    assert containers_of(engine, "failing") == []
    assert not (tmp_path / "absent").exists()


async def test_an_unknown_runtime_is_refused_before_anything_is_made(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """The message names the runtimes there are."""
    with pytest.raises(EngineError, match=r"no runtime 'runsc', only .*runc"):
        await docker_runtime.stand_by(a_slot(runtime="runsc"), agent_image)


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.08, 0.15])
async def test_a_cancelled_start_leaves_no_container(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, a_slot: SlotBuilder, after_s: float
):
    """Wherever the cancellation falls between create and start, the container is gone when it is heard of."""
    starting = asyncio.ensure_future(docker_runtime.stand_by(a_slot(instance="cancelled"), agent_image))
    await asyncio.sleep(after_s)
    starting.cancel()

    with contextlib.suppress(asyncio.CancelledError):
        await (await starting).remove()

    assert containers_of(engine, "cancelled") == []


async def test_a_discarded_container_is_gone_and_the_others_are_found(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, a_slot: SlotBuilder
):
    """Every Andon container is found with its labels, and only the one that is named is removed (ABUSE.md D23)."""
    sleep = python("import time; time.sleep(60)")
    ours = [await docker_runtime.stand_by(a_slot(n, instance="sweep-a", command=sleep), agent_image) for n in range(2)]
    other = await docker_runtime.stand_by(a_slot(2, instance="sweep-a2", command=sleep), agent_image)
    try:
        before = {each.container_id: each for each in await docker_runtime.containers()}

        await docker_runtime.discard(ours[1].container_id)
        await docker_runtime.discard(ours[1].container_id)

        assert {(before[box.container_id].instance, before[box.container_id].slot) for box in (*ours, other)} == {
            ("sweep-a", 0),
            ("sweep-a", 1),
            ("sweep-a2", 2),
        }
        assert before[other.container_id].workspace == a_slot(2).workspace
        assert containers_of(engine, "sweep-a") == [ours[0].container_id]
        assert containers_of(engine, "sweep-a2") == [other.container_id]
        assert (await ours[1].wait()).code == 137
    finally:
        for box in (*ours, other):
            await box.remove()


async def test_nothing_of_a_sandbox_blocks_the_event_loop(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """The loop that keeps leases is never held longer than 50 ms (DECISIONS G18), a flood of output included."""
    longest_s = 0.0

    async def tick() -> None:
        nonlocal longest_s
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.monotonic() - began)

    ticking = asyncio.ensure_future(tick())
    async with started(docker_runtime, a_slot(command=python("while True: print('x' * 8000)")), agent_image) as box:
        await asyncio.sleep(0.5)
        await box.kill()
    ticking.cancel()

    assert longest_s < 0.05


async def test_sandboxes_leave_no_descriptor_open(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """An executor lives for months: each attempt gives back every socket."""
    slot = a_slot(command=python("print('x')"))
    for number in range(30):  # the SDK keeps 25 idle connections, one an address: fill them first
        docker_runtime.engine.image(f"andon/none:{number}")
    before = len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(3):
        await output_of(docker_runtime, slot, agent_image)

    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest.mark.root
async def test_two_slots_share_no_per_user_limit(docker_runtime: DockerRuntime, agent_image: str, a_slot: SlotBuilder):
    """One job that takes every inotify instance of its user leaves the other's alone (SANDBOX.md §0.5)."""
    hog = "import ctypes, time\nlibc = ctypes.CDLL(None)\nwhile libc.inotify_init() >= 0: pass\nprint('full', flush=True); time.sleep(60)"
    one = "import ctypes\nprint(ctypes.CDLL(None).inotify_init() >= 0)"

    async with started(docker_runtime, a_slot(0, command=python(hog)), agent_image) as hogging:
        await wait_until(lambda: hogging._output.kept.value() == b"full\n", "the hog to be full")

        assert await output_of(docker_runtime, a_slot(1, command=python(one)), agent_image) == "True\n"


async def test_a_missing_engine_is_told_from_a_silent_one(tmp_path: Path):
    """Nothing there, and something that does not answer, have different remedies."""
    with pytest.raises(EngineError, match="no container engine at"):
        await DockerRuntime.connect(f"unix://{tmp_path}/none.sock")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        with pytest.raises(EngineError, match="is there, but nothing answers"):
            await DockerRuntime.connect(f"unix://{tmp_path}/silent.sock")


@pytest.mark.root
def test_permission_denied_is_not_called_no_engine(tmp_path: Path):
    """A user outside the docker group is told about the group (DECISIONS G15)."""
    tmp_path.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind(str(tmp_path / "closed.sock"))
        closed.listen()
        (tmp_path / "closed.sock").chmod(0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(EngineError, match=r"permission denied .* group"):
                asyncio.run(_connect_and_close(f"unix://{tmp_path}/closed.sock"))
        finally:
            os.seteuid(0)


async def _connect_and_close(url: str) -> None:
    (await DockerRuntime.connect(url)).close()


async def test_facts_name_the_engine_and_what_it_lacks(docker_runtime: DockerRuntime, engine: TestEngine):
    """What doctor and the job record print."""
    facts = await docker_runtime.facts()

    assert facts.version == engine.version
    assert "runc" in facts.runtimes
    assert facts.cpus >= 1
    assert isinstance(docker_runtime.engine, Engine)
