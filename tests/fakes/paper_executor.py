"""An executor process over the process runtime: the real daemon, link, mirror, slots, gateway and seal; only the engine is not one.

Usage: `python -m tests.fakes.paper_executor --creds FILE --state DIR --slots N [--label K=V]…`, with the provider's variables set.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

from sandbox.bus import NatsExecutorLink
from sandbox.contract.credentials import ExecutorCredentials, read_credentials
from sandbox.contract.job import JobSpec
from sandbox.contract.release import RELEASE
from sandbox.executor.config import MIRROR_NAME, ExecutorConfig, Host
from sandbox.executor.daemon import Daemon
from sandbox.executor.slots import SlotPool, private_directory
from sandbox.gateway.upstream import Upstream
from sandbox.log import log_to_stderr
from sandbox.mirror import Mirror
from sandbox.telemetry import Spans
from tests.fakes.process_runtime import IMAGE_ID, NO_WALLS, ProcessRuntime

UID_LOCKS = Path("/run/lock/andon")


async def _image_of(_job: JobSpec) -> str:
    return IMAGE_ID


@asynccontextmanager
async def paper_host(config: ExecutorConfig, credentials: ExecutorCredentials, upstream: Upstream | None) -> AsyncIterator[Host]:
    """Make an executor's collaborators."""
    config.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    private_directory(config.sockets.parent).joinpath(config.sockets.name).mkdir(mode=0o711, exist_ok=True)
    mirror = await Mirror.open(config.state / "mirrors" / MIRROR_NAME)
    about = {"host.name": socket.gethostname(), "cicd.worker.id": config.name}
    async with NatsExecutorLink.connect(credentials) as link:
        slots = SlotPool.lease(config.slots, state=config.state, sockets=config.sockets, locks=config.uid_locks)
        try:
            yield Host(
                config=config,
                link=link,
                mirror=mirror,
                runtime=ProcessRuntime(),
                upstream=upstream,
                slots=slots,
                image_of=_image_of,
                exec_spans=Spans("andon-exec", config.release, about),
                gateway_spans=Spans("andon-gw", config.release, about),
                agent_spans=Spans("andon-agent", config.release, about),
                user_spans=Spans("andon-user", config.release, about),
                instance=f"{config.name}-{config.sockets.name}",
                missing=(NO_WALLS,),
                tool_environment={"LANG": "C.UTF-8"},
            )
        finally:
            slots.close()


def paper_config(credentials: ExecutorCredentials, state: Path, slots: int, labels: dict[str, str]) -> ExecutorConfig:
    """Return the settings of an executor with its state and its sockets apart from others'."""
    instance = sha256(os.fsencode(state)).hexdigest()[:8]
    return ExecutorConfig(
        name=credentials.executor,
        state=state,
        sockets=Path("/tmp") / f"andon-{os.getuid()}" / instance,
        uid_locks=UID_LOCKS if os.getuid() == 0 else None,
        pools=credentials.pools,
        labels=labels,
        slots=slots,
        release=RELEASE,
    )


async def _serve(options: argparse.Namespace) -> None:
    credentials = read_credentials(options.creds, ExecutorCredentials)
    labels = dict(each.split("=", 1) for each in options.label)
    config = paper_config(credentials, options.state.resolve(), options.slots, labels)
    async with paper_host(config, credentials, Upstream.from_environment(os.environ)) as host:
        daemon = Daemon(host)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, daemon.cancel_all, "the executor is stopping")
        await daemon.run()


def main(arguments: list[str]) -> int:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.paper_executor")
    parser.add_argument("--creds", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--label", action="append", default=[])
    log_to_stderr("andon-paper", os.environ)
    os.umask(0o022)
    asyncio.run(_serve(parser.parse_args(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
