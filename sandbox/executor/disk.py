"""Watches the room on the file system of the state directory; not what is done when there is too little (`readiness`)."""

import asyncio
import os
from pathlib import Path

from sandbox.executor.readiness import Readiness
from sandbox.log import Log

log = Log(__name__)


def free_mib(directory: Path) -> int:
    """Return how many MiB an ordinary user may still write where `directory` is.

    Raises:
        OSError: It cannot be told.
    """
    facts = os.statvfs(directory)
    return facts.f_bavail * facts.f_frsize >> 20


class DiskWatch:
    """Holds the intake of jobs while there is less room than the floor."""

    def __init__(self, directory: Path, floor_mib: int, ready: Readiness, every_s: float) -> None:
        """Watch the file system of `directory`; a floor of 0 MiB holds nothing."""
        self._directory = directory
        self._floor_mib = floor_mib
        self._ready = ready
        self._every_s = every_s

    def look(self) -> None:
        """Look once."""
        try:
            free = free_mib(self._directory)
        except OSError as error:
            self._say(f"the disk of {self._directory} cannot be read: {error.strerror}")
            return
        if free < self._floor_mib:
            self._say(f"disk below its floor: {free} MiB are free at {self._directory}, {self._floor_mib} are needed")
        elif self._ready.free("disk"):
            log.info("disk.freed", "there is room on the disk again: jobs are taken", free_mib=free)

    async def watch(self) -> None:
        """Look every `every_s` until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(self._every_s)

    def _say(self, reason: str) -> None:
        if self._ready.hold("disk", reason):
            log.warning("disk.full", f"no job is taken: {reason}")
