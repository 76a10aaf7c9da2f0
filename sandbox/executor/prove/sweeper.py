"""Takes away what a proof made, when it is over or was killed: a process of its own that waits for the end of the one it cleans up after.

`python -m sandbox.executor.prove.sweeper HOME SOCKETS INSTANCE ENDPOINT` waits for the end of its standard input. It removes
containers with that instance's label, mounts and directories below HOME, and SOCKETS; nothing else, and it is harmless twice.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sandbox.contract.errors import AndonError
from sandbox.executor.inputs import MARKER
from sandbox.executor.state_lock import is_state_free
from sandbox.runtime.docker import DockerRuntime
from sandbox.workspace.quota import release_filesystem
from sandbox.workspace.removal import remove_tree

SWEPT_S = 30.0
"""How long a proof waits for its sweeper at its end."""
INSTANCE_FILE = "instance"
LATE_S = 2.0
"""How much later an engine may still make the container that a killed process had asked for."""
_OVER = b"over"


@asynccontextmanager
async def swept(runtime: DockerRuntime, home: Path, sockets: Path, instance: str) -> AsyncIterator[None]:
    """See that nothing stays of a proof, whatever becomes of this process."""
    command = (sys.executable, "-m", "sandbox.executor.prove.sweeper", str(home), str(sockets), instance, runtime.engine.facts.endpoint)
    # A session of its own: the signals of a terminal end the proof, not what cleans up after it.
    sweeper = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        start_new_session=True,
    )
    try:
        yield
    finally:
        if sweeper.stdin is not None:
            with contextlib.suppress(OSError):  # it is gone
                sweeper.stdin.write(_OVER)
            sweeper.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(sweeper.wait()), SWEPT_S)
        if sweeper.returncode != 0:  # it was killed, or could not do it
            await sweep(runtime, home, sockets, instance)


async def sweep(runtime: DockerRuntime, home: Path, sockets: Path, instance: str) -> None:
    """Remove everything of one proof.

    Raises:
        AndonError: Something could not be removed.
    """
    for container in await runtime.containers():
        if container.instance == instance:
            await runtime.discard(container.container_id)
    await asyncio.to_thread(_remove_directories, home, sockets)


async def sweep_others(runtime: DockerRuntime, proofs: Path) -> None:
    """Remove what proofs left whose process and sweeper are both gone, e.g. by a power cut."""
    for home in await asyncio.to_thread(_abandoned, proofs):
        sockets, _, instance = (home / INSTANCE_FILE).read_text().partition("\n")
        with contextlib.suppress(AndonError, OSError):
            await sweep(runtime, home, Path(sockets), instance)


def _abandoned(proofs: Path) -> list[Path]:
    if not proofs.is_dir():
        return []
    return [home for home in sorted(proofs.iterdir()) if (home / INSTANCE_FILE).is_file() and is_state_free(home)]


def _remove_directories(home: Path, sockets: Path) -> None:
    slots = home / "slots"
    for slot in sorted(slots.iterdir()) if slots.is_dir() else ():
        # Only where a slot of ours is: the marker is made before anything is mounted.
        if (slot / MARKER).is_file():
            for directory in (slot / "workspace", slot / "out"):
                release_filesystem(directory)
    for directory in (home, sockets):
        if directory.is_dir() and not directory.is_symlink():
            remove_tree(directory)


def main(arguments: list[str]) -> int:
    """Wait for the end of the proof, then sweep; 0 if nothing is left."""
    home, sockets, instance, endpoint = arguments
    was_killed = sys.stdin.buffer.read() != _OVER
    try:
        asyncio.run(_sweep_alone(Path(home), Path(sockets), instance, endpoint, again=was_killed))
    except (AndonError, OSError) as error:
        os.write(2, f"andon: what the proof left cannot be removed: {error}\n".encode())
        return 5
    return 0


async def _sweep_alone(home: Path, sockets: Path, instance: str, endpoint: str, *, again: bool) -> None:
    runtime = await DockerRuntime.connect(endpoint)
    try:
        await sweep(runtime, home, sockets, instance)
        if again:
            await asyncio.sleep(LATE_S)
            await sweep(runtime, home, sockets, instance)
    finally:
        runtime.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
