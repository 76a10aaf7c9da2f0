"""The agent image on a test engine: copied from the machine's own engine as far as it is there, built otherwise."""

import contextlib

from sandbox.runtime.engine import Endpoint, Engine
from sandbox.runtime.images import BASE, LIBRARIES, base_image_key, ensure_agent_image, libraries_image_key
from tests.servers.engines import Engines, NotHereError, TestEngine, copy_images


async def agent_image_on(engine: TestEngine, engines: Engines) -> str:
    """Return the id of the agent image; its base takes a minute to build and seconds to copy."""
    with contextlib.suppress(NotHereError):
        default = engines.get("default")
        if default.url != engine.url:
            copy_images(default.url, engine.url, [f"{LIBRARIES}:{libraries_image_key()}", f"{BASE}:{base_image_key()}"])
    connection = await Engine.connect(Endpoint(engine.url, "test"))
    try:
        return await ensure_agent_image(connection, lambda _: None)
    finally:
        connection.close()
