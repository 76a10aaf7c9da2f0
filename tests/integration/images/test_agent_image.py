"""The agent image on real engines: what is in it, how fast it is found, and what a repository may build on it."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import certifi
import docker
import pytest

from sandbox.contract.errors import EngineError, UsageError
from sandbox.runtime.container_spec import SlotSpec
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.image_build import BuildNetwork
from sandbox.runtime.images import DOCKERFILE, REPOSITORY, ensure_agent_image, ensure_repository_image
from tests.servers.engines import TestEngine

pytestmark = pytest.mark.docker

LOOK = """
import importlib.util, json, os, shutil, stat, subprocess, sys
site = "/opt/andon/lib/python3.11/site-packages"
def compiled(path):
    try:
        with open(importlib.util.cache_from_source(path), "rb") as file:
            head = file.read(8)
    except OSError:
        return False
    return head[:4] == importlib.util.MAGIC_NUMBER and int.from_bytes(head[4:], "little") == 1
files = [os.path.join(top, name) for top, _, names in os.walk("/opt") for name in names]
print(json.dumps({
    "not compiled": [path for path in files if path.startswith(site) and path.endswith(".py") and not compiled(path)],
    "not root's": [path for path in files if os.lstat(path).st_uid or os.lstat(path).st_gid],
    "writable": [path for path in files if not os.path.islink(path) and os.lstat(path).st_mode & 0o022],
    "unreadable": [path for path in files if not os.access(path, os.R_OK)],
    "programs": {name: os.path.realpath(os.path.dirname(shutil.which(name) or "")) for name in ("python", "pip", "pytest", "git", "rg")},
    "python": subprocess.run(["python", "--version"], capture_output=True, text=True).stdout.strip(),
    "user's modules": subprocess.run(["python", "-c", "import sandbox"], capture_output=True, text=True).returncode,
    "ours": [name for name in sorted(os.listdir(site + "/sandbox")) if not name.startswith("_")],
    "sdk": bool(importlib.util.find_spec("anthropic")),
    "setuid": subprocess.run("find / -xdev -type f -perm /6000 2>/dev/null", shell=True, capture_output=True, text=True).stdout,
}))
"""


async def _run(runtime: DockerRuntime, slot: SlotSpec, image: str) -> str:
    box = await runtime.stand_by(slot, image)
    try:
        await asyncio.wait_for(box.wait(), 60)
        return (await box.log()).decode()
    finally:
        await box.remove()


@pytest.mark.parametrize("engine", ["debian", "current"], indirect=True)
async def test_the_image_holds_two_worlds_apart(docker_runtime: DockerRuntime, agent_image: str, a_slot: Callable[..., SlotSpec]):
    """Our program is compiled, root's, and invisible to the user's Python (DECISIONS G23)."""
    slot = a_slot(command=("/opt/andon/bin/python", "-I", "-c", LOOK))

    seen = json.loads(await _run(docker_runtime, slot, agent_image))

    assert seen == {
        "not compiled": [],
        "not root's": [],
        "writable": [],
        "unreadable": [],
        "programs": {"python": "/opt/venv/bin", "pip": "/opt/venv/bin", "pytest": "/opt/venv/bin", "git": "/usr/bin", "rg": "/usr/bin"},
        "python": seen["python"],
        "user's modules": 1,
        "ours": ["contract", "inside"],
        "sdk": True,
        "setuid": "",
    }
    assert seen["python"].startswith("Python 3.11.")


async def test_everyday_programs_work_behind_the_walls(docker_runtime: DockerRuntime, agent_image: str, a_slot: Callable[..., SlotSpec]):
    """Tests, a data base, locks between processes, an event loop, git: what a repository's checks use."""
    program = """
import asyncio, multiprocessing, socket, sqlite3, subprocess, threading
open("test_x.py", "w").write("def test_x(tmp_path): assert tmp_path.exists()")
assert subprocess.run(["pytest", "-q"], stdout=subprocess.DEVNULL).returncode == 0
sqlite3.connect("data.db").execute("create table t (x)")
with multiprocessing.Lock(), multiprocessing.Pool(2) as pool: assert pool.map(abs, [-1, 2]) == [1, 2]
async def serve():
    server = await asyncio.start_server(lambda r, w: w.close(), "localhost", 0)
    reader, writer = await asyncio.open_connection("localhost", server.sockets[0].getsockname()[1])
    assert await reader.read() == b""
    writer.close(); server.close()
asyncio.run(serve())
threads = [threading.Thread(target=int) for _ in range(20)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm x", "log --oneline"):
    assert subprocess.run(["git", *command.split()], stdout=subprocess.DEVNULL).returncode == 0, command
print("all work")
"""

    assert await _run(docker_runtime, a_slot(command=("python", "-c", program)), agent_image) == "all work\n"


async def test_an_image_that_is_there_costs_nothing(docker_runtime: DockerRuntime, agent_image: str):
    """It is found by the hash of its content, in milliseconds and without a word."""
    said: list[str] = []
    began = time.monotonic()

    found = await ensure_agent_image(docker_runtime.engine, said.append)

    assert (found, said) == (agent_image, [])
    assert time.monotonic() - began < 1


async def test_the_image_keeps_nothing_of_its_build(engine: TestEngine, agent_image: str):
    """Neither a stage nor build arguments nor a network: what is on the engine afterwards is the image."""
    with contextlib.closing(docker.APIClient(engine.url)) as client:
        history = json.dumps(client.history(agent_image))  # type: ignore[no-untyped-call]
        stages = client.images(filters={"dangling": True, "label": "andon.stage=build"})

    assert "/build/wheels" not in history
    assert stages == []


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """Return an export of a base commit."""
    (tmp_path / "base" / ".andon").mkdir(parents=True)
    return tmp_path / "base"


def _write(context: Path, text: str) -> str:
    (context / DOCKERFILE).write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


CONFLICT = 409


def _forget(engine: TestEngine, image: str) -> None:
    with contextlib.closing(docker.APIClient(engine.url)) as client:
        try:
            client.remove_image(image, force=True)
        except docker.errors.APIError as error:
            if error.status_code != CONFLICT:  # another test of this session still builds on it
                raise


@pytest.mark.parametrize("engine", ["debian", "current"], indirect=True)
async def test_a_repository_builds_on_the_agent_image(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, a_slot: Callable[..., SlotSpec], context: Path
):
    """`FROM andon/agent`, files of the base commit included; the second time it is found."""
    (context / "answer.txt").write_text("42")
    digest = _write(context, "FROM andon/agent\nCOPY answer.txt /opt/answer\nENV ANSWER=yes\n")
    said: list[str] = []

    image = await ensure_repository_image(docker_runtime.engine, context, digest, said.append)
    again = await ensure_repository_image(docker_runtime.engine, context, digest, said.append)
    try:
        seen = await _run(docker_runtime, a_slot(command=("sh", "-c", "cat /opt/answer; echo $ANSWER; which pytest")), image)
    finally:
        _forget(engine, image)

    assert again == image != agent_image
    assert seen == "42yes\n/opt/venv/bin/pytest\n"
    assert said == [f"building the image of {DOCKERFILE}"] * 2


async def test_a_dockerfile_that_copies_nothing_is_built_once(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, context: Path
):
    """Its content is its name."""
    digest = _write(context, f"FROM andon/agent\nENV WHEN={time.time()}\n")
    said: list[str] = []

    image = await ensure_repository_image(docker_runtime.engine, context, digest, said.append)
    try:
        assert await ensure_repository_image(docker_runtime.engine, context, digest, said.append) == image
    finally:
        _forget(engine, image)

    assert len(said) == 1
    assert agent_image.startswith("sha256:")


async def test_a_build_trusts_and_uses_what_the_host_does(
    docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, a_slot: Callable[..., SlotSpec], context: Path, tmp_path: Path
):
    """Behind a company's proxy a build needs its address and its certificate; the address stays in no layer (DECISIONS D10)."""
    end = "-----END CERTIFICATE-----\n"
    (tmp_path / "ca.pem").write_text(Path(certifi.where()).read_text().partition(end)[0] + end)
    network = BuildNetwork.from_environment({"HTTPS_PROXY": "http://user:canary@proxy:1", "SSL_CERT_FILE": str(tmp_path / "ca.pem")})
    count = "import ssl; print(ssl.create_default_context().cert_store_stats()['x509_ca'])"
    digest = _write(
        context, f'FROM andon/agent:latest\nRUN python -c "{count}" > /opt/count; env | grep -c ^HTTPS_PROXY=http >> /opt/count\n'
    )

    image = await ensure_repository_image(docker_runtime.engine, context, digest, lambda _: None, network)
    try:
        seen = await _run(docker_runtime, a_slot(command=("sh", "-c", "cat /opt/count; env")), image)
        with contextlib.closing(docker.APIClient(engine.url)) as client:
            history = json.dumps([client.history(image), client.inspect_image(image)])  # type: ignore[no-untyped-call]
            trusting = client.images("andon/agent-trusting", quiet=True)
    finally:
        _forget(engine, image)
    for left in trusting:
        _forget(engine, left)

    assert seen.startswith("1\n1\n")
    assert "canary" not in seen + history
    assert agent_image


async def test_another_dockerfile_than_the_trusted_one_is_not_built(docker_runtime: DockerRuntime, agent_image: str, context: Path):
    """Consent is for content (DECISIONS D11)."""
    _write(context, "FROM andon/agent\nRUN echo other\n")

    with pytest.raises(UsageError, match="andon trust"):
        await ensure_repository_image(docker_runtime.engine, context, "0" * 64, lambda _: None)
    assert agent_image


async def test_a_volume_would_be_a_disk_without_a_quota(docker_runtime: DockerRuntime, engine: TestEngine, agent_image: str, context: Path):
    """The engine would make it writable and unbounded; the message says what to remove."""
    digest = _write(context, f"FROM andon/agent\nENV WHEN={time.time()}\nVOLUME /data\n")

    with pytest.raises(UsageError, match="VOLUME /data"):
        await ensure_repository_image(docker_runtime.engine, context, digest, lambda _: None)
    with pytest.raises(UsageError, match="VOLUME /data"):
        await ensure_repository_image(docker_runtime.engine, context, digest, lambda _: None)

    with contextlib.closing(docker.APIClient(engine.url)) as client:
        newest = client.images(REPOSITORY)[0]
    _forget(engine, newest["Id"])
    assert agent_image


async def test_a_build_that_fails_says_why(docker_runtime: DockerRuntime, agent_image: str, context: Path):
    """The last lines of the build are in the message."""
    digest = _write(context, "FROM andon/agent\nRUN echo the reason && exit 3\n")

    with pytest.raises(EngineError, match=r"(?s)returned a non-zero code: 3.*the reason"):
        await ensure_repository_image(docker_runtime.engine, context, digest, lambda _: None)
    assert agent_image
