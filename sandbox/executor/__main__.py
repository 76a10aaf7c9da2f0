"""Starts one executor: reads its arguments and environment once, makes every collaborator, works until told to stop."""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

from sandbox.bus import NatsExecutorLink
from sandbox.contract.credentials import ExecutorCredentials, read_credentials
from sandbox.contract.errors import AndonError, BrokerError
from sandbox.contract.release import RELEASE
from sandbox.contract.wire import ExecutorLink
from sandbox.executor.config import MIRROR_NAME, ExecutorConfig, Host
from sandbox.executor.daemon import Daemon
from sandbox.executor.images_of import ImageResolver
from sandbox.executor.slots import NO_UID_OF_ITS_OWN, SlotPool, private_directory
from sandbox.gateway.upstream import Upstream
from sandbox.log import log_to_stderr
from sandbox.mirror import Mirror
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.image_build import BuildNetwork
from sandbox.telemetry import Spans

UID_LOCKS = Path("/run/lock/andon")


def main(arguments: list[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run an executor; returns its exit code."""
    options = _options(arguments)
    log_to_stderr("andon-exec")
    # A sandbox's uid has to reach its socket and its task: modes are what the code says, in a state directory nobody else enters.
    os.umask(0o022)
    try:
        credentials = read_credentials(options.creds, ExecutorCredentials)
        asyncio.run(_serve(_config(options, credentials, environment), credentials, environment, stop_at_once=options.embedded))
    except AndonError as error:
        sys.stderr.write(f"andon executor: {error}\n")
        return error.exit_code
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="andon executor", description="Join a fleet and run its jobs.")
    parser.add_argument("--creds", type=Path, required=True, help="the NAME.andon.json that `andon fleet add` wrote")
    parser.add_argument("--state", type=Path, required=True, help="directory of this executor's mirrors, slots and results")
    parser.add_argument("--slots", type=int, default=2, help="attempts at once")
    parser.add_argument("--label", action="append", default=[], metavar="K=V", help="what jobs may ask for")
    parser.add_argument("--embedded", action="store_true", help="SIGTERM ends running attempts at once instead of draining")
    return parser.parse_args(arguments)


def _config(options: argparse.Namespace, credentials: ExecutorCredentials, environment: Mapping[str, str]) -> ExecutorConfig:
    state = options.state.resolve()
    as_root = os.getuid() == 0
    instance = sha256(os.fsencode(state)).hexdigest()[:8]
    return ExecutorConfig(
        name=credentials.executor,
        state=state,
        sockets=Path("/tmp") / f"andon-{os.getuid()}" / instance,  # noqa: S108 - short on purpose; owner and mode are checked
        uid_locks=UID_LOCKS if as_root else None,
        pools=credentials.pools,
        labels=dict(each.split("=", 1) for each in options.label if "=" in each),
        slots=options.slots,
        docker_host=environment.get("DOCKER_HOST"),
        release=RELEASE,
    )


async def _serve(config: ExecutorConfig, credentials: ExecutorCredentials, environment: Mapping[str, str], *, stop_at_once: bool) -> None:
    async with _host(config, credentials, environment) as host:
        daemon = Daemon(host)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            if stop_at_once:
                loop.add_signal_handler(number, daemon.cancel_all, "the executor is stopping")
            else:
                loop.add_signal_handler(number, daemon.drain)
        await _until_lost(host.link, daemon)


async def _until_lost(link: ExecutorLink, daemon: Daemon) -> None:
    """Work until drained, or until the broker will have nothing more to do with this executor.

    Raises:
        BrokerError: The connection is gone for good, e.g. the key was revoked; results wait on disk.
    """
    working = asyncio.create_task(daemon.run())
    losing = asyncio.create_task(link.wait_lost())
    try:
        await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise BrokerError(f"the connection to the broker is gone for good: {losing.result()}")
        working.result()
    finally:
        for task in (working, losing):
            task.cancel()
        await asyncio.gather(working, losing, return_exceptions=True)


@asynccontextmanager
async def _host(config: ExecutorConfig, credentials: ExecutorCredentials, environment: Mapping[str, str]) -> AsyncIterator[Host]:
    config.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    private_directory(config.sockets.parent).joinpath(config.sockets.name).mkdir(mode=0o711, exist_ok=True)
    runtime = await DockerRuntime.connect(config.docker_host, environment.get("DOCKER_CONTEXT"))
    try:
        mirror = await Mirror.open(config.state / "mirrors" / MIRROR_NAME)
        facts = await runtime.facts()
        async with NatsExecutorLink.connect(credentials) as link:
            slots = SlotPool.lease(config.slots, state=config.state, sockets=config.sockets, locks=config.uid_locks)
            try:
                yield Host(
                    config=config,
                    link=link,
                    mirror=mirror,
                    runtime=runtime,
                    upstream=Upstream.from_environment(environment),
                    slots=slots,
                    image_of=ImageResolver(runtime.engine, mirror, link, config.state, BuildNetwork.from_environment(environment)).of,
                    exec_spans=Spans("andon-exec", config.release, {"host.name": socket.gethostname(), "cicd.worker.id": config.name}),
                    gateway_spans=Spans("andon-gw", config.release, {"host.name": socket.gethostname()}),
                    agent_spans=Spans("andon-agent", config.release, {"host.name": socket.gethostname()}),
                    instance=f"{config.name}-{config.sockets.name}",
                    missing=(*facts.missing, *(() if config.uid_locks else (NO_UID_OF_ITS_OWN,))),
                    tool_environment={"LANG": "C.UTF-8"},
                )
            finally:
                slots.close()
    finally:
        runtime.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
