"""What this host needs before a run, and the embedded stack by hand; a thin front of `sandbox.runtime` and `stack`."""

import hashlib
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from sandbox.executor.slots import UID_BASE, private_directory
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.image_build import BuildNetwork
from sandbox.runtime.images import ensure_agent_image
from sandbox.runtime.proof import NoSocketError, Place, prove_engine
from sandbox.runtime.relay import RELAYED, relayed
from supervisor import stack
from supervisor.config import Config, StateDirectory
from supervisor.stack import Say
from supervisor.store.broker.listen import Listen


async def ensure_host(config: Config, say: Say) -> None:
    """See to the container engine and the agent image; a fleet's hosts see to their own.

    Raises:
        EngineError: There is no engine this user may use, the image cannot be built, or a container cannot reach its directories.
    """
    if config.is_remote:
        return
    runtime = await DockerRuntime.connect(config.docker_host, os.environ.get("DOCKER_CONTEXT"))
    try:
        image = await ensure_agent_image(runtime.engine, say, BuildNetwork.from_environment(os.environ))
        await _prove_once(runtime, image, StateDirectory.open(config.state_directory), say)
    finally:
        runtime.close()


async def _prove_once(runtime: DockerRuntime, image: str, state: StateDirectory, say: Say) -> None:
    """Start one container like a job's, once for each engine and image (DECISIONS G15)."""
    facts = await runtime.facts()
    key = hashlib.sha256(f"{facts.endpoint} {facts.version} {facts.security_options} {image}".encode()).hexdigest()[:16]
    proven = state.root / "proven" / key
    if proven.exists():
        return
    say(f"trying container engine {facts.version} with one container")
    proven.parent.mkdir(mode=0o700, exist_ok=True)
    sockets = private_directory(Path("/tmp") / f"andon-{os.getuid()}")  # noqa: S108 - short on purpose; owner and mode are checked
    first = facts.users.slots_from(UID_BASE)
    uid, gid = (first, first) if os.getuid() == 0 else (os.getuid(), os.getgid())
    # Directories of this process alone: two first runs may begin at once, of one state directory or of two.
    with TemporaryDirectory(dir=proven.parent) as slot, TemporaryDirectory(dir=sockets, prefix="p") as socket:
        place = Place(f"proof-{os.getpid()}", Path(slot), Path(socket), uid, gid)
        try:
            await prove_engine(runtime, image, place)
        except NoSocketError:
            await prove_engine(runtime, image, place, relay=partial(relayed, runtime.engine))
            say(RELAYED)
    proven.touch(mode=0o600)


async def up(config: Config, say: Say) -> str:
    """Start the embedded stack and keep it."""
    state = StateDirectory.open(config.state_directory)
    running = await stack.keep_up(config, state, dict(os.environ), say)
    return f"the stack is up: pid {running.pid}, broker at {running.nats_url}; `andon down` stops it{_exposed(running)}"


def _exposed(running: stack.StackFile) -> str:
    """Return what other hosts can reach, for a person to read before they go away; empty if they reach nothing."""
    if not running.listen:
        return ""
    if Listen.parse(running.listen).is_loopback:
        return f"\n\n{running.listen} is this host alone; 0.0.0.0:PORT serves other hosts too"
    return (
        f"\n\nOther hosts reach one port: the broker, {running.others_url},"
        f"\nlistening on {running.listen}, with TLS. Nobody gets in without a file of:"
        "\nandon fleet add NAME. An executor's file shows the code and the tasks of its"
        "\npools' jobs; a client's file may spend this fleet's budget. Keys of the"
        "\nprovider stay with each executor."
    )


async def down(config: Config, say: Say) -> str:
    """Stop the embedded stack."""
    say("stopping the stack")
    stopped = await stack.shut_down(StateDirectory.open(config.state_directory))
    return "the stack is stopped" if stopped else "no stack was running"
