"""Finished results and their objects on disk until they are stored at the broker: each is delivered once, also after a crash (D2)."""

import asyncio
import hashlib
import os
from pathlib import Path

from pydantic import ValidationError

from sandbox.contract.blob import BlobRef, output_bucket
from sandbox.contract.errors import InfrastructureError
from sandbox.contract.result import AttemptResult
from sandbox.contract.wire import ExecutorLink
from sandbox.git import in_thread
from sandbox.log import Log
from sandbox.workspace.removal import remove_tree

log = Log(__name__)

RESULTS_MAX = 1_000


class Outbox:
    """A directory of results that were not confirmed yet, and for each a directory of the objects it names."""

    def __init__(self, directory: Path, executor: str) -> None:
        """Use `directory`, which is made when it is needed, for what `executor` sends."""
        self._directory = directory
        self._bucket = output_bucket(executor)

    async def put(self, job_id: str, attempt: int, name: str, data: bytes) -> BlobRef:
        """Write an object of a result that is still to be kept; return what will name it at the broker.

        Raises:
            InfrastructureError: The disk refuses.
        """
        ref = BlobRef(bucket=self._bucket, name=name, sha256=await in_thread(_sha256, data), size_bytes=len(data))
        await in_thread(_write, self._objects(job_id, attempt) / ref.sha256, data)
        return ref

    async def keep(self, result: AttemptResult) -> None:
        """Write a result durably before it is published; one of the same attempt is replaced.

        Raises:
            InfrastructureError: The disk refuses.
        """
        await in_thread(_write, self._path(result), result.model_dump_json().encode())

    async def send(self, link: ExecutorLink, result: AttemptResult) -> None:
        """Store a kept result and its objects at the broker, then forget it.

        Raises:
            BrokerError: Not stored now; everything that is not is still here.
        """
        for ref in objects_of(result):
            path = self._objects(result.job_id, result.attempt) / ref.sha256
            data = await asyncio.to_thread(_read, path)
            if data is not None:  # else it was stored before we were killed
                await link.put_blob(ref.name, data)
                await asyncio.to_thread(path.unlink, missing_ok=True)
        await link.publish_result(result)
        await asyncio.to_thread(self._forget, result)

    async def left(self) -> list[AttemptResult]:
        """Return what an earlier process could not deliver, at most 1,000; a file that is no result is put aside and logged."""
        return await asyncio.to_thread(self._read_all)

    def _path(self, result: AttemptResult) -> Path:
        return self._directory / f"{result.job_id}.{result.attempt}.json"

    def _objects(self, job_id: str, attempt: int) -> Path:
        return self._directory / f"{job_id}.{attempt}.objects"

    def _forget(self, result: AttemptResult) -> None:
        self._path(result).unlink(missing_ok=True)
        remove_tree(self._objects(result.job_id, result.attempt))

    def _read_all(self) -> list[AttemptResult]:
        found: list[AttemptResult] = []
        for path in sorted(self._directory.glob("*.json"))[:RESULTS_MAX]:
            try:
                found.append(AttemptResult.model_validate_json(path.read_bytes()))
            except ValidationError:
                log.exception("result.unreadable", "a kept result cannot be read and is put aside", path=path)
                path.rename(path.with_suffix(".unreadable"))
        return found


def objects_of(result: AttemptResult) -> list[BlobRef]:
    """Return every object a result names."""
    alone = (result.git_bundle, result.remains, result.recording, result.log)
    return [ref for ref in (*alone, *(report.report for report in result.reports)) if ref is not None]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, so that it is there after a power cut."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_suffix(".part")
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be written: {error.strerror}") from error


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
