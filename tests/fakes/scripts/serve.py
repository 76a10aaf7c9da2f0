"""Serves a variant of the scripted feature by hand: `python -m tests.fakes.scripts.serve [VARIANT [ADDRESS]]` says what to export."""

import asyncio
import contextlib
import shlex
import sys

from tests.fakes.scripted_model import ScriptedModel
from tests.fakes.scripts.rate_limit import VARIANTS


async def serve(variant: str, address: str) -> None:
    """Serve until interrupted."""
    async with ScriptedModel(VARIANTS[variant], host=address) as server:
        for name, value in server.environment().items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else "happy"
    if wanted not in VARIANTS:
        sys.exit(f"there is no variant {wanted!r}: {', '.join(VARIANTS)}")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(wanted, sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"))
