"""Images on a test engine: copied from the machine's own engine as far as they are there, built otherwise."""

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from sandbox.runtime.engine import Endpoint, Engine
from sandbox.runtime.image_build import BuildNetwork
from sandbox.runtime.images import (
    BASE,
    DOCKERFILE,
    LIBRARIES,
    REPOSITORY,
    base_image_key,
    ensure_agent_image,
    ensure_repository_image,
    libraries_image_key,
)
from tests.servers.engines import Engines, NotHereError, TestEngine, copy_images


async def agent_image_on(engine: TestEngine, engines: Engines) -> str:
    """Return the id of the agent image; its base takes a minute to build and seconds to copy."""
    with contextlib.suppress(NotHereError):
        default = engines.get("default")
        if default.url != engine.url:
            copy_images(default.url, engine.url, [f"{LIBRARIES}:{libraries_image_key()}", f"{BASE}:{base_image_key()}"])
    async with _connected(engine) as connection:
        return await ensure_agent_image(connection, lambda _: None)


async def repository_image_on(engine: TestEngine, engines: Engines, context: Path) -> str:
    """Return the id of the image of `.andon/Dockerfile` below `context`: a private engine has no network, so another builds it.

    Raises:
        NotHereError: There is no engine with a network.
    """
    dockerfile_sha256 = hashlib.sha256((context / DOCKERFILE).read_bytes()).hexdigest()
    network = BuildNetwork.from_environment(os.environ)
    default = engines.get("default")
    async with _connected(default) as connection:
        built = await ensure_repository_image(connection, context, dockerfile_sha256, lambda _: None, network)
        tags = (connection.image(built) or {})["RepoTags"]
    if default.url == engine.url:
        return built
    copy_images(default.url, engine.url, [tag for tag in tags if tag.startswith(f"{REPOSITORY}:")])
    async with _connected(engine) as connection:
        return await ensure_repository_image(connection, context, dockerfile_sha256, lambda _: None, network)


@contextlib.asynccontextmanager
async def _connected(engine: TestEngine) -> AsyncIterator[Engine]:
    connection = await Engine.connect(Endpoint(engine.url, "test"))
    try:
        yield connection
    finally:
        connection.close()
