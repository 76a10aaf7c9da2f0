"""Sees that an image is on the engine, building it if not; not what is in it (`images/`) nor what runs (`docker`).

An image is found by a tag that is the hash of everything it is made of, and used by its id (DECISIONS D11, G23). Only the
base and a repository's own image are built with a network.
"""

import asyncio
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from docker.errors import APIError

from sandbox.contract.errors import EngineError, UsageError
from sandbox.runtime.engine import Engine, explain

AGENT = "andon/agent"
BASE = "andon/base"
LIBRARIES = "andon/libraries"
REPOSITORY = "andon/repository"
REGISTRY_BASE = ("python", "3.11-slim-bookworm")
DOCKERFILE = ".andon/Dockerfile"
CONTEXT_BYTES_MAX = 1 << 30
LABEL_RECIPE = "andon.recipe"
LABEL_STAGE = "andon.stage=build"
PROGRAM_PARTS = ("contract", "inside")
_PYTHON = "3.11"
_GLIBC_MINOR = 36  # bookworm's
_BOOTSTRAP_S = 1800
_DOWNLOAD_S = 900
_ERROR_LINES = 15

Say = Callable[[str], None]


def base_image_key() -> str:
    """Return the hash of the base's recipe."""
    return _digest(_recipe("base"))


def libraries_image_key() -> str:
    """Return the hash of the libraries' image: base, recipe, locks."""
    recipe = {name: data for name, data in _recipe("agent").items() if name != "Dockerfile"}
    return _digest(recipe | {"base": base_image_key().encode()})


def agent_image_key() -> str:
    """Return the hash of everything the agent image is made of: the libraries, its recipe, our program."""
    return _digest(_program() | {"Dockerfile": _recipe("agent")["Dockerfile"], "libraries": libraries_image_key().encode()})


async def ensure_agent_image(engine: Engine, say: Say, build_args: Mapping[str, str] | None = None) -> str:
    """Return the id of the shipped agent image; builds it, and its base, when this engine has none of this content.

    Args:
        engine: Where it is needed.
        say: Told in one line what takes time.
        build_args: Proxies (`HTTP_PROXY`, …) for the one step with a network, the base; never left in a layer.

    Raises:
        EngineError: It cannot be built here; the message says why and what to do.
    """
    tag = f"{AGENT}:{agent_image_key()}"
    image = await _find(engine, tag)
    if image is None:
        libraries = await _ensure_libraries(engine, say, build_args or {})
        say("building the agent image (once for this version)")
        context = _program() | {"Dockerfile": _recipe("agent")["Dockerfile"]}
        image = await _build(engine, tag, partial(_pack, context), buildargs={"LIBRARIES": libraries}, network_mode="none")
    # `FROM andon/agent` of a repository's Dockerfile means the image of this version.
    await engine.call(f"cannot tag {AGENT}", lambda: engine.client.tag(image, AGENT, "latest"))
    return image


async def ensure_repository_image(
    engine: Engine, context: Path, dockerfile_sha256: str, say: Say, build_args: Mapping[str, str] | None = None
) -> str:
    """Return the id of a repository's own image, built from `.andon/Dockerfile` below `context`, with a network.

    A Dockerfile that copies nothing is built once per content. One that copies is given to the builder each time, whose
    cache knows whether a copied file changed.

    Args:
        engine: Where it is needed.
        context: An export of the base commit: regular files only are sent.
        dockerfile_sha256: The content a person consented to (DECISIONS D11).
        say: Told in one line what takes time.
        build_args: Proxies and mirrors.

    Raises:
        UsageError: The Dockerfile is another than the one consented to, or asks for what a sandbox cannot give.
        EngineError: The build failed; the message ends with its last lines.
    """
    dockerfile = await asyncio.to_thread((context / DOCKERFILE).read_bytes)
    if hashlib.sha256(dockerfile).hexdigest() != dockerfile_sha256:
        raise UsageError(f"{DOCKERFILE} is not the one that was trusted; look at it and run `andon trust` again")
    agent = await ensure_agent_image(engine, say, build_args)
    copies = copies_files(dockerfile)
    tag = f"{REPOSITORY}:{_digest({'dockerfile': dockerfile, 'agent': agent.encode()})}"
    image = None if copies else await _find(engine, tag)
    if image is None:
        say(f"building the image of {DOCKERFILE}")
        pack = partial(_pack_directory, context) if copies else partial(_pack, {DOCKERFILE: dockerfile})
        image = await _build(engine, tag, pack, buildargs=dict(build_args or {}), dockerfile=DOCKERFILE)
    await _refuse_volumes(engine, image)
    return image


def copies_files(dockerfile: bytes) -> bool:
    """Return whether a Dockerfile takes files from its context."""
    text = re.sub(rb"\\\r?\n", b" ", dockerfile)
    return any(
        re.match(rb"\s*(ONBUILD\s+)?(COPY|ADD)\s", line, re.IGNORECASE) and b"--from=" not in line.lower() for line in text.splitlines()
    )


async def _ensure_libraries(engine: Engine, say: Say, build_args: Mapping[str, str]) -> str:
    tag = f"{LIBRARIES}:{libraries_image_key()}"
    if await _find(engine, tag) is not None:
        return tag
    base = await _ensure_base(engine, say, build_args)
    say("fetching and installing the agent's libraries (once)")
    with tempfile.TemporaryDirectory(prefix="andon-wheels-") as scratch:
        context = Path(scratch)
        await asyncio.to_thread(_libraries_context, context, engine.facts.architecture)
        await _build(engine, tag, partial(_pack_directory, context), buildargs={"BASE": base}, network_mode="none")
    await engine.call("cannot remove the build stage", lambda: _remove_stage(engine))
    return tag


async def _ensure_base(engine: Engine, say: Say, build_args: Mapping[str, str]) -> str:
    key = base_image_key()
    tag = f"{BASE}:{key}"
    if await _find(engine, tag) is not None:
        return tag
    refusal = await engine.call("cannot pull the base", lambda: _pull(engine))
    if refusal is None:
        say("building the base image from the registry's Python (once)")
        await _build(engine, tag, partial(_pack, _recipe("base")), buildargs=dict(build_args))
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
    if await _find(engine, tag) is None:
        raise EngineError("the engine took the base image but does not have it; see the engine's log")
    return tag


async def _find(engine: Engine, tag: str) -> str | None:
    image = await engine.call(f"cannot look for image {tag}", lambda: engine.image(tag))
    if image is None or (image["Config"].get("Labels") or {}).get(LABEL_RECIPE) != _key(tag):
        return None
    return str(image["Id"])


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
        done = subprocess.run(["/bin/sh", str(script), str(rootfs)], capture_output=True, timeout=_BOOTSTRAP_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"cannot build the base image: {error}") from error
    if done.returncode != 0:
        raise EngineError(
            f"cannot build the base image: the registry said {refusal!r}, and building it from Debian packages (as root) failed: "
            + _last_lines(done.stderr)
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
        raise EngineError(f"cannot fetch the wheels of the agent image; is a package index reachable? {_last_lines(done.stderr)}")


async def _build(engine: Engine, tag: str, pack: Callable[[IO[bytes]], None], **options: Any) -> str:
    """Build with the classic builder's words, which every engine still knows; return the image's id."""

    def build() -> None:
        lines: list[str] = []
        with tempfile.TemporaryFile() as packed:
            pack(packed)
            packed.seek(0)
            options.update(fileobj=packed, custom_context=True, tag=tag, labels={LABEL_RECIPE: _key(tag)})
            for event in engine.client.build(rm=True, forcerm=True, decode=True, **options):
                lines = [*lines, str(event.get("stream") or "").rstrip()][-_ERROR_LINES:]
                if "error" in event:
                    raise EngineError(f"building {tag} failed: {event['error']}\n" + "\n".join(line for line in lines if line))

    await engine.call(f"building {tag} failed", build)
    image = await _find(engine, tag)
    if image is None:
        raise EngineError(f"the engine built {tag} but does not have it; see the engine's log")
    return image


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


def _key(tag: str) -> str:
    return tag.rpartition(":")[2]


def _digest(content: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name in sorted(content):
        total.update(f"{name}\0{hashlib.sha256(content[name]).hexdigest()}\n".encode())
    return total.hexdigest()[:24]


def _pack(content: Mapping[str, bytes], into: IO[bytes]) -> None:
    """Write a build context of ours, with neutral owners and times: equal content has equal bytes, and the builder's cache holds."""
    with tarfile.open(fileobj=into, mode="w") as archive:
        for name in sorted(content):
            entry = tarfile.TarInfo(name)
            entry.size = len(content[name])
            archive.addfile(entry, io.BytesIO(content[name]))


def _pack_directory(top: Path, into: IO[bytes]) -> None:
    """Write the regular files below `top` as a build context; links and special files are not sent."""
    size = 0
    with tarfile.open(fileobj=into, mode="w") as archive:
        for path in sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink()):
            entry = tarfile.TarInfo(path.relative_to(top).as_posix())
            entry.size = path.stat().st_size
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            size += entry.size
            if size > CONTEXT_BYTES_MAX:
                raise UsageError(f"the build context is larger than {CONTEXT_BYTES_MAX >> 20} MiB")
            with path.open("rb") as file:
                archive.addfile(entry, file)


def _last_lines(data: bytes) -> str:
    lines = data.decode(errors="replace").strip().splitlines()
    return "\n".join(lines[-_ERROR_LINES:])
