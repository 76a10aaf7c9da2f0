"""The supervisor's pages over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from supervisor.api import http
from supervisor.api.http import HEAD_BYTES_MAX
from supervisor.api.run_files import files_of
from supervisor.api.run_page import run_pages
from supervisor.config import StateDirectory
from supervisor.pipeline.events import RunAccepted
from tests.fakes.run_events import RUN, failed, happy


@asynccontextmanager
async def pages(text: bytes = b"figures\n", state: StateDirectory | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def figures() -> bytes:
        return text

    serving = asyncio.create_task(http.serve("127.0.0.1", port, figures, *([run_pages(state)] if state else [])))
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            await _until_there(client, serving)
            yield client
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def _until_there(client: httpx2.AsyncClient, serving: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(10):
        while not serving.done():
            try:
                await client.get("/healthz")
            except httpx2.ConnectError:
                await asyncio.sleep(0.02)
            else:
                return
    raise AssertionError("no page is served")


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/metrics", 200, "figures\n"),
        ("HEAD", "/metrics", 200, ""),
        ("GET", "/healthz", 200, "ok\n"),
        ("GET", "/metrics/", 404, "no such page\n"),
        ("GET", "/debug", 404, "no such page\n"),
        ("GET", f"/runs/{RUN}", 404, "no such page\n"),
        ("POST", "/metrics", 405, "only GET\n"),
        ("DELETE", "/", 405, "only GET\n"),
    ],
)
async def test_two_pages_and_nothing_else(method: str, path: str, status: int, body: str) -> None:
    """Read-only, and silent about what serves it."""
    async with pages() as client:
        answer = await client.request(method, path)

    assert (answer.status_code, answer.text) == (status, body)
    assert "server" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"


async def test_the_figures_are_prometheus_text() -> None:
    """By its content type; asked anew each time."""
    async with pages() as client:
        assert (await client.get("/metrics")).headers["content-type"].startswith("text/plain; version=")


async def test_a_head_beyond_its_bound_is_refused() -> None:
    """A client cannot make the supervisor hold what it likes."""
    async with pages() as client:
        try:
            answer = await client.get("/metrics", headers={"x-long": "y" * (40 * HEAD_BYTES_MAX)})
        except httpx2.TransportError:  # it hung up while we were still sending, so that its answer could not be read
            answer = None
        after = await client.get("/metrics")

    assert answer is None or answer.status_code == 400
    assert after.status_code == 200


async def test_an_address_that_is_taken_is_an_error_of_the_system() -> None:
    """Not the end of the process, as the library has it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:

        async def figures() -> bytes:
            return b""

        with pytest.raises(OSError, match="in use"):
            await http.serve("127.0.0.1", taken.getsockname()[1], figures)


async def test_a_run_has_a_page(tmp_path: Path) -> None:
    """What Jaeger's link of a run opens: how it stands and what each stage cost, as text that no browser takes for anything else."""
    state = StateDirectory.open(tmp_path / "state")
    files_of(state, RUN).append(happy())

    async with pages(state=state) as client:
        answer = await client.get(f"/runs/{RUN}")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer.headers["x-content-type-options"] == "nosniff"
    lines = answer.text.splitlines()
    assert lines[0] == "Landed: add-rate-limiting"
    assert {"  state     landed, exit code 0", f"  andon status {RUN}"} <= set(lines)
    assert any(line.split()[:3] == ["implement", "1", "pass"] for line in lines)


async def test_a_page_says_nothing_a_person_a_model_or_a_repository_wrote(tmp_path: Path) -> None:
    """Whoever reaches the port may read it: other people of this host, too. Its files are for their owner."""
    state = StateDirectory.open(tmp_path / "state")
    log = failed()
    assert isinstance(log[0], RunAccepted)
    files_of(state, RUN).append(log)

    async with pages(state=state) as client:
        text = (await client.get(f"/runs/{RUN}")).text

    findings = [finding.message for event in log if event.type == "job_judged" for finding in event.findings]
    assert findings
    assert text.startswith("Failed, nothing landed: ")
    for secret in (log[0].intent.request, log[0].intent.repository, str(state.root), *findings):
        assert secret not in text


@pytest.mark.parametrize("name", ["", "01jd8m9999", RUN[:6], f"{RUN}/", f"{RUN}/events.jsonl", "../runs/x", "%2e%2e%2fetc", "x" * 3_000])
async def test_what_is_no_run_here_has_no_page(tmp_path: Path, name: str) -> None:
    """An id is looked up as it is written, never as a path."""
    state = StateDirectory.open(tmp_path / "state")
    files_of(state, RUN).append(happy())

    async with pages(state=state) as client:
        assert (await client.get(f"/runs/{name}")).status_code == 404
