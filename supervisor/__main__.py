"""Starts a supervisor process: `python -m supervisor`; the embedded stack does so, a platform team may."""

import asyncio
import contextlib
import os
import signal
import sys

from sandbox.contract.errors import AndonError
from sandbox.log import log_to_stderr
from supervisor.bootstrap.supervise import supervise
from supervisor.config import Config, load


async def _serve(config: Config, *, embedded: bool) -> None:
    serving = asyncio.create_task(supervise(config, embedded=embedded))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM; `--embedded` also delivers into repositories of this host."""
    try:
        config = load()
        log_to_stderr("andon-sup", os.environ, config.log_level)
        asyncio.run(_serve(config, embedded="--embedded" in arguments))
    except AndonError as error:
        sys.stderr.write(f"andon supervisor: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
