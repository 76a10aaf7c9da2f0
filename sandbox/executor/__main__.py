"""Starts one executor: reads its arguments and environment once, makes every collaborator, works until told to stop."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from sandbox.bus import NatsExecutorLink
from sandbox.contract.credentials import ExecutorCredentials, read_credentials
from sandbox.contract.errors import AndonError, BrokerError, BrokerRefused
from sandbox.contract.wire import ExecutorLink
from sandbox.executor.config import MIRROR_NAME, Host
from sandbox.executor.daemon import Daemon
from sandbox.executor.images_of import ImageResolver
from sandbox.executor.options import Options, config_of, disk_floor_mib, instance_of, read_options, state_of
from sandbox.executor.packages import build_network, source_settings
from sandbox.executor.place import surroundings
from sandbox.executor.protections import Proofs, labels_of, missing_by_default, missing_of_host
from sandbox.executor.said import capture_of
from sandbox.executor.slots import UID_BASE, SlotPool, private_directory
from sandbox.executor.state_lock import held_state
from sandbox.gateway.content import ATTRIBUTE_BYTES_MAX
from sandbox.gateway.registries.source import PackageSource
from sandbox.gateway.upstream import Upstream
from sandbox.log import Log, about, level_of, log_to_stderr, set_level
from sandbox.mirror import Mirror
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.relay import relayed
from sandbox.telemetry import ATTRIBUTE_CHARS_MAX, Spans

log = Log(__name__)

CONNECT_S = 4.0
CONNECT_AGAIN_S = 2.0
_STOPPED = "the executor is stopping"


def main(arguments: list[str], environment: Mapping[str, str] = os.environ) -> int:
    """Run an executor; returns its exit code: 0 drained, 2 refused or wrongly called, 5 its infrastructure is not there."""
    # A sandbox's uid has to reach its socket and its task: modes are what the code says, in a state directory nobody else enters.
    os.umask(0o022)
    try:
        options = read_options(arguments)
        _log(options, environment)
        credentials = read_credentials(options.creds, ExecutorCredentials)
        state = state_of(options, credentials, environment)
        disk_floor_mib(environment)  # what is wrong with it is said before an engine is looked for
        with about(worker_id=credentials.executor), held_state(state):
            asyncio.run(_serve(options, credentials, state, environment))
    except AndonError as error:
        sys.stderr.write(f"andon executor: {' '.join(str(error).split())}\n")
        return error.exit_code
    except asyncio.CancelledError:  # told to stop before it had joined
        return 0
    return 0


def _log(options: Options, environment: Mapping[str, str]) -> None:
    log_to_stderr("andon-exec", environment)
    if not options.is_embedded and level_of(environment) != "debug":
        # A broker that is away is said once, by us, and not with every try of the client.
        set_level("error", "sandbox.bus")


async def _serve(options: Options, credentials: ExecutorCredentials, state: Path, environment: Mapping[str, str]) -> None:
    signals = _Signals(stop_at_once=options.is_embedded)
    async with _host(options, credentials, state, environment) as host:
        await _until_lost(host.link, signals.obeyed_by(Daemon(host)))


class _Signals:
    """SIGTERM and SIGINT: the first drains, the second cancels and salvages at once; before there is a daemon, either ends the process."""

    def __init__(self, *, stop_at_once: bool) -> None:
        self._stop_at_once = stop_at_once
        self._daemon: Daemon | None = None
        self._main = asyncio.current_task()
        self._count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._obey)

    def obeyed_by(self, daemon: Daemon) -> Daemon:
        """Let `daemon` have the signals from now on."""
        self._daemon = daemon
        return daemon

    def _obey(self) -> None:
        self._count += 1
        if self._daemon is None:
            if self._main is not None:
                self._main.cancel()
        elif self._stop_at_once or self._count > 1:
            self._daemon.cancel_all(_STOPPED)
        else:
            self._daemon.drain()


async def _until_lost(link: ExecutorLink, daemon: Daemon) -> None:
    """Work until drained, or until the broker will have nothing more to do with this executor.

    Raises:
        BrokerError: The connection is gone for good, e.g. the key was revoked; results wait on disk.
        UsageError: The supervisor refuses this executor.
    """
    working = asyncio.create_task(daemon.run())
    losing = asyncio.create_task(link.wait_lost())
    try:
        await asyncio.wait({working, losing}, return_when=asyncio.FIRST_COMPLETED)
        if losing.done() and (not working.done() or working.exception() is not None):
            raise BrokerError(f"the connection to the broker is gone for good, was its key revoked? {losing.result()}")
        working.result()
    finally:
        for task in (working, losing):
            task.cancel()
        await asyncio.gather(working, losing, return_exceptions=True)


@asynccontextmanager
async def _host(options: Options, credentials: ExecutorCredentials, state: Path, environment: Mapping[str, str]) -> AsyncIterator[Host]:
    upstream = Upstream.from_environment(environment)
    package_settings = source_settings(state, environment)
    async with AsyncExitStack() as stack:
        runtime = await DockerRuntime.connect(environment.get("DOCKER_HOST"), environment.get("DOCKER_CONTEXT"))
        stack.callback(runtime.close)
        facts = await runtime.facts()
        around = await surroundings(state, runtime.has_container, uid=os.getuid())
        missing = missing_of_host(around, facts)
        config = config_of(options, credentials, state, around, facts, environment, labels_of(missing, facts))
        if not around.is_container:
            private_directory(config.sockets.parent)
        config.sockets.mkdir(mode=0o711, exist_ok=True)
        mirror = await Mirror.open(config.state / "mirrors" / MIRROR_NAME)
        uid_base = facts.users.slots_from(UID_BASE)
        slots = SlotPool.lease(config.slots, state=config.state, sockets=config.sockets, locks=config.uid_locks, uid_base=uid_base)
        stack.callback(slots.close)
        link = await _connected(credentials, stack)
        instance = f"{config.name}-{instance_of(state)}"
        relay = partial(relayed, runtime.engine)
        about = {"host.name": socket.gethostname()}
        packages = await stack.enter_async_context(PackageSource(package_settings, environment))
        capture = await capture_of(environment, upstream, packages)
        yield Host(
            config=config,
            link=link,
            mirror=mirror,
            runtime=runtime,
            upstream=upstream,
            slots=slots,
            image_of=ImageResolver(runtime.engine, mirror, link, config.state, build_network(environment)).of,
            exec_spans=Spans("andon-exec", config.release, {**about, "cicd.worker.id": config.name}),
            gateway_spans=Spans(
                "andon-gw", config.release, about, attribute_chars_max=ATTRIBUTE_BYTES_MAX if capture else ATTRIBUTE_CHARS_MAX
            ),
            agent_spans=Spans("andon-agent", config.release, about),
            user_spans=Spans("andon-user", config.release, about),
            instance=instance,
            missing=missing,
            missing_by_default=missing_by_default(missing, facts),
            shown=Proofs(runtime, facts, instance, config.state / "proven", relay).shown,
            relay=relay,
            tool_environment={"LANG": "C.UTF-8"},
            packages=packages,
            capture=capture,
        )


async def _connected(credentials: ExecutorCredentials, stack: AsyncExitStack) -> NatsExecutorLink:
    """Connect to the broker, as often as it takes; a service must not end because its broker is not up yet.

    Raises:
        BrokerRefused: The broker does not know the key.
    """
    said = ""
    while True:
        try:
            return await stack.enter_async_context(NatsExecutorLink.connect(credentials, connect_s=CONNECT_S))
        except BrokerRefused:
            raise
        except BrokerError as error:
            if said != (said := str(error)):
                log.warning("broker.awaited", f"{error}; trying on")
        await asyncio.sleep(CONNECT_AGAIN_S)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
