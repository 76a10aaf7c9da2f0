"""Which image a job runs in: the shipped one, or the repository's own from the `.andon/Dockerfile` of its base commit (DECISIONS D11)."""

import asyncio
import os
import tempfile
from pathlib import Path

from sandbox.contract.job import JobSpec
from sandbox.contract.wire import ExecutorLink
from sandbox.log import Log
from sandbox.mirror import Mirror
from sandbox.runtime.engine import Engine
from sandbox.runtime.image_build import BuildNetwork
from sandbox.runtime.images import ensure_agent_image, ensure_repository_image
from sandbox.workspace.provision import provision

log = Log(__name__)


class ImageResolver:
    """Resolves images to ids, each built once however many jobs ask at the same time."""

    def __init__(self, engine: Engine, mirror: Mirror, link: ExecutorLink, scratch: Path, network: BuildNetwork) -> None:
        """Build with `engine`, reaching the network as `network` says; exports of base commits are made below `scratch`."""
        self._network = network
        self._engine = engine
        self._mirror = mirror
        self._link = link
        self._scratch = scratch
        self._building = asyncio.Lock()
        self._shipped: str | None = None

    async def of(self, job: JobSpec) -> str:
        """Return the image id a job runs in, building the image if it is missing.

        Raises:
            EngineError: It cannot be built.
            UsageError: The Dockerfile is not the one a person agreed to.
        """
        async with self._building:
            if job.dockerfile_sha256 is None:
                self._shipped = self._shipped or await ensure_agent_image(self._engine, _say, self._network)
                return self._shipped
            await self._mirror.import_base(job.base_commit, await self._link.get_blob(job.input_pack))
            with tempfile.TemporaryDirectory(dir=self._scratch) as context:
                export = Path(context) / "export"
                export.mkdir()
                await provision(self._mirror, job.base_commit, export, uid=os.getuid(), gid=os.getgid())
                return await ensure_repository_image(self._engine, export, job.dockerfile_sha256, _say, self._network)


def _say(line: str) -> None:
    log.info("image.building", line)
