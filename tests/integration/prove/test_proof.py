"""`andon doctor --prove` on a real engine: walls hold, controls show the attacks, and nothing stays, also of a proof that is killed."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import docker
import pytest

from sandbox.contract.errors import AndonError
from sandbox.executor.place import UID_LOCKS, Surroundings
from sandbox.executor.prove.catalogue import PROBES
from sandbox.executor.prove.proof import prove
from sandbox.executor.prove.report import Guest, Proof, judged
from sandbox.executor.prove.sandboxes import attack_limits
from sandbox.executor.prove.scene import staged
from sandbox.executor.prove.sweeper import INSTANCE_FILE, sweep_others
from sandbox.executor.state_lock import LOCK_NAME, held_state
from sandbox.runtime.container_spec import LABEL_INSTANCE
from sandbox.runtime.control import default_gateway
from sandbox.runtime.docker import DockerRuntime
from supervisor.bootstrap.prove import LedgerOfOne
from tests.fakes.wire_data import wait_until
from tests.leaks import mounts_below
from tests.servers.engines import TestEngine

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(400)]

NEEDS_A_NETWORK = {"network", "dns", "metadata", "cross-job-network"}
"""Probes whose control needs the engine's default network, which the tests' private engines do not have."""
_PROOFS: dict[str, dict[str, Proof]] = {}
"""By the engine's address: one proof serves every test of the session."""


@pytest.fixture
async def proofs(docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, tmp_path: Path) -> dict[str, Proof]:
    """Return what every probe came to on the test's engine."""
    if engine.url not in _PROOFS:
        made = await prove(
            docker_runtime, agent_image, state=tmp_path, oci_runtime="runc", link_for=LedgerOfOne, uid=os.getuid(), say=lambda _: None
        )
        _PROOFS[engine.url] = {proof.id: proof for proof in made}
        assert left_in(tmp_path) == []
    return _PROOFS[engine.url]


def left_in(state: Path) -> list[str]:
    """Return what a proof left in its state directory."""
    return [*mounts_below(state), *(str(path) for path in (state / "prove").iterdir())]


@pytest.mark.parametrize(
    "probe",
    [
        *("network", "dns", "metadata", "key-search", "key-search-tool", "read-only-root", "agent-pin", "agent-process"),
        pytest.param("vsock", marks=pytest.mark.abuse("D07")),
        pytest.param("io_uring", marks=pytest.mark.abuse("D17")),
        pytest.param("ptrace", marks=pytest.mark.abuse("D17")),
        pytest.param("kernel-surface", marks=pytest.mark.abuse("D17")),
        pytest.param("ipc", marks=pytest.mark.abuse("D24")),
        pytest.param("setuid", marks=pytest.mark.abuse("D02")),
        pytest.param("devices", marks=pytest.mark.abuse("D03")),
        pytest.param("engine-socket", marks=pytest.mark.abuse("D01")),
        pytest.param("host-settings", marks=pytest.mark.abuse("D06")),
        pytest.param("host-facts", marks=pytest.mark.abuse("D22")),
        pytest.param("fork-bomb", marks=pytest.mark.abuse("D08")),
        pytest.param("memory-bomb", marks=pytest.mark.abuse("D09")),
        pytest.param("disk-bomb", marks=pytest.mark.abuse("D10")),
        pytest.param("inode-bomb", marks=pytest.mark.abuse("D11")),
        pytest.param("log-bomb", marks=pytest.mark.abuse("D12")),
        pytest.param("descriptor-bomb", marks=pytest.mark.abuse("D21")),
        pytest.param("git-config", marks=pytest.mark.abuse("G01", "G03", "G04")),
        pytest.param("symlink-output", marks=pytest.mark.abuse("I01")),
        pytest.param("fifo-output", marks=pytest.mark.abuse("I05")),
        pytest.param("socket-replacement", marks=pytest.mark.abuse("W19")),
        pytest.param("budget-race", marks=pytest.mark.abuse("W05")),
        pytest.param("forged-spans", marks=pytest.mark.abuse("P03")),
        pytest.param("cross-job-limits", marks=pytest.mark.abuse("D13")),
        pytest.param("cross-job-network", marks=pytest.mark.abuse("W19")),
        pytest.param("cross-job-files", marks=pytest.mark.abuse("W19")),
    ],
)
async def test_a_wall_holds(proofs: dict[str, Proof], docker_runtime: DockerRuntime, probe: str):
    """Inside a sandbox the attack fails. The control: the same attack succeeds where the wall is absent."""
    proof = proofs[probe]

    assert proof.held, proof.detail
    assert not proof.detail.startswith("differs"), "runc shares the host's kernel"
    if probe in NEEDS_A_NETWORK and not await default_gateway(docker_runtime):
        assert not proof.control
        assert "without a control here" in proof.detail
    else:
        assert proof.control, proof.detail


async def test_every_probe_is_seen(proofs: dict[str, Proof]):
    """In the catalogue's order."""
    assert list(proofs) == [probe.id for probe in PROBES]


def plain_workspaces() -> Surroundings:
    """Return surroundings in which nothing can be mounted, as in an executor's container without a shared mount."""
    return Surroundings(False, lambda instance: Path(f"/tmp/andon-{os.getuid()}") / instance, UID_LOCKS, no_quota="no quota mount: a test")


@pytest.mark.abuse("D10", "D11")
async def test_a_wall_that_is_missing_is_seen(docker_runtime: DockerRuntime, agent_image: str, tmp_path: Path):
    """Without quota mounts the very attack succeeds in a sandbox, and the probe says so: it is the control of the proof itself."""
    async with staged(
        docker_runtime,
        agent_image,
        state=tmp_path,
        oci_runtime="runc",
        link_for=LedgerOfOne,
        uid=os.getuid(),
        around=plain_workspaces(),
    ) as scene:
        inside = await attack_limits(scene, scene.slots[0])

    held = {probe.id: judged(probe, inside, {}, Guest()).held for probe in PROBES}
    bombs = {name: held[name] for name in ("disk-bomb", "inode-bomb", "fork-bomb", "memory-bomb", "descriptor-bomb", "log-bomb")}
    assert bombs == dict.fromkeys(bombs, True) | {"disk-bomb": False, "inode-bomb": False}


async def test_a_killed_proof_leaves_nothing(engine: TestEngine, tmp_path: Path):
    """SIGKILL in the middle: containers, mounts and directories are gone a moment later."""
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "DOCKER_HOST": engine.url}
    state = tmp_path / "state" / "andon"
    with contextlib.closing(docker.APIClient(engine.url)) as client:

        def instance() -> str:
            return next((path.name for path in (state / "prove").glob("prove-*")), "")

        def containers() -> list[str]:
            return [each["Id"] for each in client.containers(all=True, filters={"label": f"{LABEL_INSTANCE}={instance() or 'none'}"})]

        def names() -> list[str]:
            return [name for each in client.containers(all=True) for name in each["Names"]]

        command = [sys.executable, "-c", "import sys; from supervisor.cli import main; sys.exit(main())", "doctor", "--prove"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as proof:
            try:
                await wait_until(_later(lambda: len(containers()) >= 2), "the proof has containers", within_s=60)
                ours = instance()
                assert mounts_below(state) != []
            finally:
                proof.send_signal(signal.SIGKILL)
        await wait_until(_later(lambda: left_in(state) == []), "directories and mounts are gone", within_s=60)
        await wait_until(_later(lambda: not any(ours in name for name in names())), "containers are gone", within_s=60)
        sockets = Path(f"/tmp/andon-{os.getuid()}") / ours  # they go last
        await wait_until(_later(lambda: not sockets.exists()), "the sockets are gone", within_s=60)


def _later(is_so: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def asked() -> bool:
        return is_so()

    return asked


async def test_what_nobody_swept_is_swept_by_the_next_proof(docker_runtime: DockerRuntime, tmp_path: Path):
    """A proof whose process and sweeper are both gone; one that goes on is left alone."""
    gone, going = tmp_path / "prove-gone", tmp_path / "prove-going"
    sockets = {home: tmp_path / "sockets" / home.name for home in (gone, going)}
    for home, directory in sockets.items():
        directory.mkdir(parents=True)
        home.mkdir()
        (home / LOCK_NAME).touch()
        (home / INSTANCE_FILE).write_text(f"{directory}\n{home.name}")

    with held_state(going):
        await sweep_others(docker_runtime, tmp_path)

    assert [home.exists() for home in (gone, going)] == [False, True]
    assert [directory.exists() for directory in sockets.values()] == [False, True]


async def test_a_runtime_the_engine_has_not_is_refused(docker_runtime: DockerRuntime, agent_image: str, tmp_path: Path):
    """In the engine's own words, and nothing stays."""
    with pytest.raises(AndonError, match="nope"):
        await prove(
            docker_runtime, agent_image, state=tmp_path, oci_runtime="nope", link_for=LedgerOfOne, uid=os.getuid(), say=lambda _: None
        )

    assert left_in(tmp_path) == []
