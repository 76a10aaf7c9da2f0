"""What this host needs before a run, and the embedded stack by hand; a thin front of `sandbox.runtime` and `stack`."""

import os

from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.images import ensure_agent_image
from supervisor import stack
from supervisor.config import Config, StateDirectory
from supervisor.stack import Say


async def ensure_host(config: Config, say: Say) -> None:
    """See to the container engine and the agent image; a fleet's hosts see to their own.

    Raises:
        EngineError: There is no engine this user may use, or the image cannot be built.
    """
    if config.nats_url:
        return
    runtime = await DockerRuntime.connect(config.docker_host)
    try:
        await ensure_agent_image(runtime.engine, say)
    finally:
        runtime.close()


async def up(config: Config, say: Say) -> str:
    """Start the embedded stack and keep it."""
    state = StateDirectory.open(config.state_directory)
    running = await stack.keep_up(config, state, dict(os.environ), say)
    return f"the stack is up: pid {running.pid}, broker at {running.nats_url}; `andon down` stops it"


async def down(config: Config, say: Say) -> str:
    """Stop the embedded stack."""
    say("stopping the stack")
    stopped = await stack.shut_down(StateDirectory.open(config.state_directory))
    return "the stack is stopped" if stopped else "no stack was running"
