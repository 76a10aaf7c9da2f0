"""Work that outlives one call but not its owner: clean-up that survives cancellation, tasks owned by a context; no domain."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from sandbox.log import Log

logger = Log(__name__)

STOP_S = 5.0
"""How long cancelled tasks get to finish their clean-up."""


class Tasks:
    """Background tasks of one owner; one that fails is logged with its trace, all are cancelled at the owner's end."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["Tasks"]:
        """Own tasks for as long as the context lasts."""
        tasks = cls()
        try:
            yield tasks
        finally:
            await completed(tasks._stop(), STOP_S + 1)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside the caller."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def wait(self, wait_s: float) -> None:
        """Wait until none runs, at most `wait_s`."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=wait_s)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.exception("task.failed", "a background task failed", error=error)

    async def _stop(self) -> None:
        running = set(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=STOP_S)


async def completed(work: Coroutine[Any, Any, None], seconds: float) -> None:
    """Run clean-up to its end, at most `seconds`, even if the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=seconds)
        raise
    finally:
        task.cancel()
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("cleanup.failed", "clean-up failed", error=error)
