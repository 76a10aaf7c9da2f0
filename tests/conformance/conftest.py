"""Fixtures of the conformance suites: every test runs on the fake and on the real thing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.wires import MemoryWire, NatsWire, Wire


@pytest.fixture(params=["memory", "nats"])
async def wire(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Wire]:
    """Return a broker without jobs, results, events or objects."""
    if request.param == "memory":
        yield MemoryWire()
        return
    async with NatsWire.run(tmp_path / "nats") as real:
        yield real
