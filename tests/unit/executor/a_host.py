"""A host for tests of the daemon: a real mirror, slots and state, a link of the test's choice, an engine without containers."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sandbox.contract.job import JobSpec
from sandbox.contract.wire import ExecutorLink
from sandbox.executor.config import ExecutorConfig, Host, Pace
from sandbox.executor.slots import SlotPool
from sandbox.mirror import Mirror
from sandbox.runtime.container_spec import EngineFacts, FoundContainer, OnStep, Runtime, Sandbox, SlotSpec, unheard
from sandbox.telemetry import Spans

HASTY = Pace(beat_s=0.02, look_s=0.02, join_s=0.02, post_s=0.01, stop_s=0.05, spans_s=0.02)


class BareEngine:
    """Starts nothing; lists the containers a test planted and notes which are discarded."""

    def __init__(self) -> None:
        self.planted: list[FoundContainer] = []
        self.discarded: list[str] = []
        self.error: Exception | None = None

    async def facts(self) -> EngineFacts:
        raise NotImplementedError

    async def stand_by(self, slot: SlotSpec, image_id: str, on_step: OnStep = unheard) -> Sandbox:
        raise NotImplementedError

    async def containers(self) -> list[FoundContainer]:
        if self.error is not None:
            raise self.error
        return [each for each in self.planted if each.container_id not in self.discarded]

    async def discard(self, container_id: str) -> None:
        self.discarded.append(container_id)


async def no_image(_job: JobSpec) -> str:
    raise NotImplementedError


@asynccontextmanager
async def a_host(state: Path, link: ExecutorLink, engine: Runtime | None = None, **settings: Any) -> AsyncIterator[Host]:
    """Make a host named ex1 in a state directory."""
    sockets = Path("/tmp") / f"andon-t-{state.parent.name[-8:]}{state.name[-4:]}"
    sockets.mkdir(exist_ok=True)
    config = ExecutorConfig(
        **(
            {"name": "ex1", "state": state, "sockets": sockets, "uid_locks": None, "slots": 1, "disk_floor_mib": 0, "pace": HASTY}
            | settings
        )
    )
    slots = SlotPool.lease(config.slots, state=state, sockets=sockets, locks=None)
    try:
        yield Host(
            config=config,
            link=link,
            mirror=await Mirror.open(state / "mirror.git"),
            runtime=engine or BareEngine(),
            upstream=None,
            slots=slots,
            image_of=no_image,
            exec_spans=Spans("andon-exec", "test"),
            gateway_spans=Spans("andon-gw", "test"),
            agent_spans=Spans("andon-agent", "test"),
            user_spans=Spans("andon-user", "test"),
            instance="ex1-test",
            missing=(),
            tool_environment={},
        )
    finally:
        slots.close()
        with contextlib.suppress(OSError):
            sockets.rmdir()
