"""Finished results on disk until they are stored at the broker: each is delivered once, also after a crash (DECISIONS D2)."""

import asyncio
import os
from pathlib import Path

from sandbox.contract.result import AttemptResult

RESULTS_MAX = 1_000


class Outbox:
    """A directory of results that were not confirmed yet."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def keep(self, result: AttemptResult) -> None:
        """Write a result durably before it is published."""
        await asyncio.to_thread(self._write, result)

    async def drop(self, result: AttemptResult) -> None:
        """Forget a result that is stored at the broker."""
        await asyncio.to_thread(self._path(result).unlink, missing_ok=True)

    async def left(self) -> list[AttemptResult]:
        """Return what an earlier process could not deliver, at most 1,000."""
        return await asyncio.to_thread(self._read)

    def _path(self, result: AttemptResult) -> Path:
        return self._directory / f"{result.job_id}.{result.attempt}.json"

    def _write(self, result: AttemptResult) -> None:
        path = self._path(result)
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as stream:
            stream.write(result.model_dump_json())
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)

    def _read(self) -> list[AttemptResult]:
        paths = sorted(self._directory.glob("*.json"))[:RESULTS_MAX]
        return [AttemptResult.model_validate_json(path.read_bytes()) for path in paths]
