"""Sees that an image is on the engine, building it if not; not what is in it (`images/`) nor what runs (`docker`).

An image is found by a tag that is the hash of everything it is made of, and used by its id (DECISIONS D11, G23). Only the
base and a repository's own image are built with a network.
"""

import asyncio
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from docker.errors import APIError

from sandbox.contract.errors import EngineError, UsageError
from sandbox.runtime.engine import Engine, explain
from sandbox.runtime.image_build import (
    DIRECT,
    LABEL_RECIPE,
    BuildNetwork,
    build,
    declared,
    digest,
    find,
    last_lines,
    pack_directory,
    pack_files,
)

AGENT = "andon/agent"
BASE = "andon/base"
LIBRARIES = "andon/libraries"
REPOSITORY = "andon/repository"
REGISTRY_BASE = ("python", "3.11-slim-bookworm")
DOCKERFILE = ".andon/Dockerfile"
LABEL_STAGE = "andon.stage=build"
PROGRAM_PARTS = ("contract", "inside")
_PYTHON = "3.11"
_GLIBC_MINOR = 36  # bookworm's
_BOOTSTRAP_S = 1800
_DOWNLOAD_S = 900
_CA_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/usr/lib/ssl/cert.pem")
"""Where the distribution's programs and OpenSSL itself look."""
_FROM_AGENT = re.compile(rb"(?im)^(\s*FROM\s+(?:--platform=\S+\s+)?)andon/agent(?::latest)?(?=\s|$)")

Say = Callable[[str], None]


def base_image_key() -> str:
    """Return the hash of the base's recipe."""
    return digest(_recipe("base"))


def libraries_image_key() -> str:
    """Return the hash of the libraries' image: base, recipe, locks."""
    recipe = {name: data for name, data in _recipe("agent").items() if name != "Dockerfile"}
    return digest(recipe | {"base": base_image_key().encode()})


def agent_image_key() -> str:
    """Return the hash of everything the agent image is made of: the libraries, its recipe, our program."""
    return digest(_program() | {"Dockerfile": _recipe("agent")["Dockerfile"], "libraries": libraries_image_key().encode()})


async def ensure_agent_image(engine: Engine, say: Say, network: BuildNetwork = DIRECT) -> str:
    """Return the id of the shipped agent image; builds it, and its base, when this engine has none of this content.

    Args:
        engine: Where it is needed.
        say: Told in one line what takes time.
        network: For the one step with a network, the base.

    Raises:
        EngineError: It cannot be built here; the message says why and what to do.
    """
    _, image = await _ensure_agent(engine, say, network)
    return image


async def ensure_repository_image(engine: Engine, context: Path, dockerfile_sha256: str, say: Say, network: BuildNetwork = DIRECT) -> str:
    """Return the id of a repository's own image, built from `.andon/Dockerfile` below `context`, with a network.

    A Dockerfile that copies nothing is built once per content. One that copies is given to the builder each time, whose
    cache knows whether a copied file changed.

    Args:
        engine: Where it is needed.
        context: An export of the base commit: regular files only are sent.
        dockerfile_sha256: The content a person consented to (DECISIONS D11).
        say: Told in one line what takes time.
        network: How the build reaches the network; its certificates become the image's.

    Raises:
        UsageError: The Dockerfile is another than the one consented to, or asks for what a sandbox cannot give.
        EngineError: The build failed; the message ends with its last lines.
    """
    dockerfile = await asyncio.to_thread((context / DOCKERFILE).read_bytes)
    if hashlib.sha256(dockerfile).hexdigest() != dockerfile_sha256:
        raise UsageError(f"{DOCKERFILE} is not the one that was trusted; look at it and run `andon trust` again")
    agent, _ = await _ensure_agent(engine, say, network)
    agent = await _trusting(engine, agent, network)
    copies = copies_files(dockerfile)
    tag = f"{REPOSITORY}:{digest({'dockerfile': dockerfile, 'agent': agent.encode()})}"
    image = None if copies else await find(engine, tag)
    if image is None:
        say(f"building the image of {DOCKERFILE}")
        # Another version of Andon on this engine may move the tag: the build names this version's image.
        files_ = {DOCKERFILE: declared(_FROM_AGENT.sub(rb"\1" + agent.encode(), dockerfile), network)}
        pack = partial(pack_directory, context, replaced=files_) if copies else partial(pack_files, files_)
        image = await build(engine, tag, pack, buildargs=dict(network.arguments), dockerfile=DOCKERFILE)
    await _refuse_volumes(engine, image)
    return image


def copies_files(dockerfile: bytes) -> bool:
    """Return whether a Dockerfile takes files from its context."""
    text = re.sub(rb"\\\r?\n", b" ", dockerfile)
    return any(
        re.match(rb"\s*(ONBUILD\s+)?(COPY|ADD)\s", line, re.IGNORECASE) and b"--from=" not in line.lower() for line in text.splitlines()
    )


async def _ensure_agent(engine: Engine, say: Say, network: BuildNetwork) -> tuple[str, str]:
    """Return tag and id of the agent image of this version."""
    tag = f"{AGENT}:{agent_image_key()}"
    image = await find(engine, tag)
    if image is None:
        libraries = await _ensure_libraries(engine, say, network)
        say("building the agent image (once for this version)")
        context = _program() | {"Dockerfile": _recipe("agent")["Dockerfile"]}
        image = await build(engine, tag, partial(pack_files, context), buildargs={"LIBRARIES": libraries}, network_mode="none")
    # For people who build on `andon/agent` by hand; our own builds name the version.
    await engine.call(f"cannot tag {AGENT}", lambda: engine.client.tag(image, AGENT, "latest"))
    return tag, image


async def _trusting(engine: Engine, agent: str, network: BuildNetwork) -> str:
    """Return a tag of the agent image that trusts what this host trusts: behind a company's proxy a build could fetch nothing."""
    if network.ca_bundle is None:
        return agent
    try:
        bundle = await asyncio.to_thread(network.ca_bundle.read_bytes)
    except OSError as error:
        raise UsageError(f"certificates {network.ca_bundle} cannot be read: {error.strerror}; see SSL_CERT_FILE") from error
    tag = f"{AGENT}-trusting:{digest({'agent': agent.encode(), 'bundle': bundle})}"
    if await find(engine, tag) is None:
        recipe = f"FROM {agent}\n" + "".join(f"COPY ca.pem {path}\n" for path in _CA_FILES)
        await build(engine, tag, partial(pack_files, {"Dockerfile": recipe.encode(), "ca.pem": bundle}), network_mode="none")
    return tag


async def _ensure_libraries(engine: Engine, say: Say, network: BuildNetwork) -> str:
    tag = f"{LIBRARIES}:{libraries_image_key()}"
    if await find(engine, tag) is not None:
        return tag
    base = await _ensure_base(engine, say, network)
    say("fetching and installing the agent's libraries (once)")
    with tempfile.TemporaryDirectory(prefix="andon-wheels-") as scratch:
        context = Path(scratch)
        await asyncio.to_thread(_libraries_context, context, engine.facts.architecture)
        await build(engine, tag, partial(pack_directory, context), buildargs={"BASE": base}, network_mode="none")
    await engine.call("cannot remove the build stage", lambda: _remove_stage(engine))
    return tag


async def _ensure_base(engine: Engine, say: Say, network: BuildNetwork) -> str:
    key = base_image_key()
    tag = f"{BASE}:{key}"
    if await find(engine, tag) is not None:
        return tag
    refusal = await engine.call("cannot pull the base", lambda: _pull(engine))
    if refusal is None:
        say("building the base image from the registry's Python (once)")
        await build(engine, tag, partial(pack_files, _recipe("base")), buildargs=dict(network.arguments))
        return tag
    say("no registry is reachable: building the base image from Debian packages (once, a minute or two)")
    with tempfile.TemporaryDirectory(prefix="andon-base-", dir="/var/tmp") as scratch:
        rootfs = Path(scratch) / "rootfs.tar"
        await asyncio.to_thread(_bootstrap, rootfs, refusal)
        changes = ["CMD /bin/bash", "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", f"LABEL {LABEL_RECIPE}={key}"]
        await engine.call(
            "cannot import the base image",
            lambda: engine.client.import_image(src=str(rootfs), repository=BASE, tag=key, changes=changes),
        )
    if await find(engine, tag) is None:
        raise EngineError("the engine took the base image but does not have it; see the engine's log")
    return tag


def _pull(engine: Engine) -> str | None:
    """Return None when the registry's image is here, otherwise why not."""
    name, version = REGISTRY_BASE
    if engine.image(f"{name}:{version}") is not None:
        return None
    try:
        for event in engine.client.pull(name, tag=version, stream=True, decode=True):
            if "error" in event:
                return str(event["error"])
    except APIError as error:
        return explain(error)
    return None


def _bootstrap(rootfs: Path, refusal: str) -> None:
    script = _recipes() / "base" / "debootstrap.sh"
    try:
        # The caller's umask would go into what the script makes in the image.
        done = subprocess.run(["/bin/sh", str(script), str(rootfs)], capture_output=True, timeout=_BOOTSTRAP_S, check=False, umask=0o022)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"cannot build the base image: {error}") from error
    if done.returncode != 0:
        raise EngineError(
            f"cannot build the base image: the registry said {refusal!r}, and building it from Debian packages (as root) failed: "
            + last_lines(done.stderr)
        )


def _libraries_context(context: Path, architecture: str) -> None:
    recipe = _recipe("agent")
    (context / "Dockerfile").write_bytes(recipe["libraries.Dockerfile"])
    for lock in ("agent.lock", "world.lock"):
        (context / lock).write_bytes(recipe[lock])
        _download(context / lock, context / "wheels", architecture)


def _download(lock: Path, wheels: Path, architecture: str) -> None:
    """Fetch the wheels of a lock for the image's Python; the host's own may be another."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(architecture, architecture)
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC_MINOR, 4, -1)] + [f"manylinux2014_{machine}"]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps", "--require-hashes"),
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", _PYTHON),
        *(argument for platform in platforms for argument in ("--platform", platform)),
        *("--dest", str(wheels), "--requirement", str(lock)),
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_DOWNLOAD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"cannot fetch the wheels of the agent image: {error}") from error
    if done.returncode != 0:
        raise EngineError(f"cannot fetch the wheels of the agent image; is a package index reachable? {last_lines(done.stderr)}")


async def _refuse_volumes(engine: Engine, image_id: str) -> None:
    image = await engine.call("cannot inspect the image", lambda: engine.image(image_id))
    volumes = image and image["Config"].get("Volumes")
    if volumes:
        raise UsageError(f"{DOCKERFILE} declares VOLUME {', '.join(volumes)}: a sandbox has no disk without a quota; remove it")


def _remove_stage(engine: Engine) -> None:
    """Remove what the first stage of the libraries' build left: as large as the result, and of no more use."""
    stages: list[dict[str, Any]] = engine.client.images(filters={"dangling": True, "label": LABEL_STAGE})
    for stage in stages:
        with suppress(APIError):  # in use by a build of someone else
            engine.client.remove_image(stage["Id"])


def _recipes() -> Path:
    return Path(str(files("images")))


def _recipe(name: str) -> dict[str, bytes]:
    """Return the files of one image's recipe by name."""
    return {path.name: path.read_bytes() for path in (_recipes() / name).iterdir() if path.is_file() and not path.name.startswith(".")}


def _program() -> dict[str, bytes]:
    """Return the sources the container runs, by their path in the build context."""
    package = Path(str(files("sandbox")))
    paths = [package / "__init__.py", *(path for part in PROGRAM_PARTS for path in (package / part).rglob("*"))]
    return {
        f"sandbox/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
