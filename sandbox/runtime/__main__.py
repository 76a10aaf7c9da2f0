"""`python -m sandbox.runtime knock|images [DOCKER_HOST [DOCKER_CONTEXT]]`: what the set-up asks about the engine; not a command for people.

Exit codes: 0 the engine answers (and has the images) · 3 nothing is there or nothing answers · 5 it may not be used, or a build failed.
"""

import asyncio
import sys

from sandbox.contract.errors import EngineError
from sandbox.runtime.engine import Endpoint, Engine, NoEngineError, find_endpoint
from sandbox.runtime.images import ensure_agent_image

_ABSENT = 3


async def _run(verb: str, endpoint: Endpoint) -> None:
    engine = await Engine.connect(endpoint)
    try:
        if verb == "images":
            await ensure_agent_image(engine, _say)
    finally:
        engine.close()


def _say(line: str) -> None:
    sys.stderr.write(f"andon: {line}\n")


def _main(arguments: list[str]) -> int:
    verb, docker_host, docker_context = (*arguments, "", "")[:3]
    try:
        endpoint = find_endpoint(docker_host or None, docker_context or None)
        asyncio.run(_run(verb, endpoint))
    except NoEngineError as error:
        _say(str(error))
        # Only the default engine is ours to start: a chosen one that is silent is its owner's.
        return _ABSENT if endpoint.source == "default" else error.exit_code
    except EngineError as error:
        _say(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
