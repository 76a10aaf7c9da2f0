"""The whole of `andon doctor --prove` on the machine's own engine, as a person types it. The goal is issue 5's."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.figure import Figure
from sandbox.runtime.docker import DockerRuntime
from sandbox.runtime.images import ensure_agent_image

GOAL_S = 60.0


def measure() -> Iterator[Figure]:
    """Yield the seconds of one proof; the image is built before."""
    command = [sys.executable, "-c", "import sys; from supervisor.cli import main; sys.exit(main())", "doctor"]
    with tempfile.TemporaryDirectory(prefix="andon-bench-") as home:
        environment = {**os.environ, "XDG_STATE_HOME": home}
        _ensure_image()
        began = time.perf_counter()
        done = subprocess.run([*command, "--prove", "--json"], env=environment, capture_output=True, text=True, check=False)
        took_s = time.perf_counter() - began
    if done.returncode not in (0, 1):
        raise RuntimeError(f"the proof could not be made: {done.stderr.strip()[-400:]}")
    probes = json.loads(done.stdout)["probes"]
    held, controlled = sum(probe["held"] for probe in probes), sum(probe["control"] for probe in probes)
    load = os.getloadavg()[0]
    yield Figure("doctor --prove", took_s, GOAL_S, "s", f"{held} of {len(probes)} held, {controlled} with a control; load {load:.1f}")


def _ensure_image() -> None:
    async def ensure() -> None:
        runtime = await DockerRuntime.connect(os.environ.get("DOCKER_HOST"))
        try:
            await ensure_agent_image(runtime.engine, lambda _: None)
        finally:
            runtime.close()

    asyncio.run(ensure())
