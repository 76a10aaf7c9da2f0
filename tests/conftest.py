"""Fixtures every suite may use: engines, the agent image, a runtime, slots; and the check that a test leaves nothing behind."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from sandbox.runtime.container_spec import LABEL_INSTANCE, SlotSpec
from sandbox.runtime.docker import DockerRuntime
from tests.leaks import SESSION_PROCESSES, children, mounts_below, settled
from tests.servers.engines import EngineName, Engines, NotHereError, TestEngine
from tests.servers.images import agent_image_on

ENGINE_CHOICES: dict[str, list[EngineName]] = {
    "default": ["default"],
    "debian": ["debian"],
    "current": ["current"],
    "both": ["debian", "current"],
}
SLOT_UID_BASE = 231_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
"""Limits of processes are counted by uid: sessions that run side by side have uids of their own."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engine", choices=sorted(ENGINE_CHOICES), default="default", help="container engine of tests that name none")
    parser.addoption("--require-all", action="store_true", help="a test this machine cannot run is an error, not a skip")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    named = any("engine" in str(mark.args[0]).split(",") for mark in metafunc.definition.iter_markers("parametrize"))
    if "engine" in metafunc.fixturenames and not named:
        metafunc.parametrize("engine", ENGINE_CHOICES[metafunc.config.getoption("--engine")], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.geteuid() != 0 and not config.getoption("--require-all"):
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "needs root" in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"not run (needs root): {len(skipped)}")


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    """Return the engines of this session."""
    with contextlib.ExitStack() as stack:
        yield Engines(stack)


@pytest.fixture
def engine(request: pytest.FixtureRequest, engines: Engines) -> TestEngine:
    """Return the engine the test runs on; parametrize it (indirect) to choose."""
    try:
        return engines.get(getattr(request, "param", "default"))
    except NotHereError as error:
        if request.config.getoption("--require-all"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def _agent_images() -> dict[str, str]:
    return {}


@pytest.fixture
def agent_image(engine: TestEngine, engines: Engines, _agent_images: dict[str, str]) -> str:
    """Return the id of the agent image on the test's engine; made once a session."""
    if engine.url not in _agent_images:
        _agent_images[engine.url] = asyncio.run(agent_image_on(engine, engines))
    return _agent_images[engine.url]


@pytest.fixture
async def docker_runtime(engine: TestEngine) -> AsyncIterator[DockerRuntime]:
    """Return a runtime on the test's engine."""
    runtime = await DockerRuntime.connect(engine.url)
    yield runtime
    runtime.close()


@pytest.fixture
def a_slot(tmp_path: Path) -> Callable[..., SlotSpec]:
    """Return a builder of slots with directories of their own; keywords replace fields."""

    def build(number: int = 0, **changes: Any) -> SlotSpec:
        uid = SLOT_UID_BASE + number if os.geteuid() == 0 else os.getuid()
        home = tmp_path / f"slot-{number}"
        for name in ("workspace", "task", "gw", "out"):
            (home / name).mkdir(parents=True, exist_ok=True)
            os.chown(home / name, uid, uid if os.geteuid() == 0 else os.getgid())
        fields: dict[str, Any] = {
            "instance": f"test-{os.getpid()}",
            "slot": number,
            "uid": uid,
            "gid": uid if os.geteuid() == 0 else os.getgid(),
            "workspace": home / "workspace",
            "task": home / "task",
            "gateway": home / "gw",
            "out": home / "out",
            "deadline": 0,
        }
        return SlotSpec(**fields | changes)

    return build


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, engines: Engines) -> Iterator[None]:
    """Fail a test that leaves a process, a mount or a container behind."""
    before = children().keys()
    yield
    ours = tmp_path_factory.getbasetemp()
    left = settled(lambda: [f"process {line}" for pid, line in children().items() if pid not in before | SESSION_PROCESSES])
    left += [f"mount {path}" for path in mounts_below(ours)]
    if request.node.get_closest_marker("docker"):
        left += _containers_below(engines, ours)
    if left:
        pytest.fail("left behind: " + "; ".join(left))


def _containers_below(engines: Engines, directory: Path) -> list[str]:
    """Return containers whose bound directories are this session's: others may run tests on the same engine."""
    found: list[str] = []
    for engine in engines.started():
        with contextlib.closing(docker.APIClient(engine.url, timeout=30)) as client:
            for container in client.containers(all=True, filters={"label": LABEL_INSTANCE}):
                if any(str(mount.get("Source", "")).startswith(str(directory)) for mount in container.get("Mounts") or ()):
                    client.remove_container(container["Id"], force=True)
                    found.append(f"container {container['Names']}")
    return found
