"""What people and pages can send us: YAML that makes objects, patterns without end, pages of other sites, ports (rows A)."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import yaml

from sandbox.contract.errors import ConfigError, UnsafePath
from sandbox.contract.scope import WriteScope, matches, offending_paths
from supervisor.api import http
from supervisor.gates.spec import parse_spec
from supervisor.pipeline.load import load_pipeline
from supervisor.stages.agents import parse_agent
from supervisor.store.broker.embedded import EmbeddedBroker
from supervisor.store.broker.listen import Listen
from tests.fakes.gateway import wait_until
from tests.leaks import children

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = (
    "!!python/object/apply:os.system ['touch {canary}']",
    "!!python/object/new:os.system ['touch {canary}']",
    "!!python/object/apply:subprocess.check_call [[touch, '{canary}']]",
)
PARSERS: dict[str, Callable[[str], object]] = {
    "spec": lambda text: parse_spec(f"feature: {text}\n", "spec.yaml"),
    "pipeline": lambda text: load_pipeline(f"pipeline: {{stages: [{{name: spec, allow: {text}}}]}}\n", "pipeline.yaml"),
    "agent": lambda text: parse_agent(f"---\nname: {text}\n---\nYou write.\n", "spec.md"),
}
SLOW_PATTERNS = ("(a+)+$", "*a" * 100, "**/" * 100 + "b", "?*" * 150, "a*" * 100 + "[!a]", "{a,b}" * 60)
LONG_PATH = "/".join(["a" * 200] * 20)


@pytest.mark.abuse("A01")
@pytest.mark.parametrize("text", OBJECTS, ids=["apply", "new", "subprocess"])
@pytest.mark.parametrize("parser", PARSERS)
def test_yaml_makes_no_objects(parser: str, text: str, tmp_path: Path):
    """Whoever writes a specification, a pipeline or an agent gets values of JSON, or a refusal with file and line."""
    canary = tmp_path / "canary"

    with pytest.raises(ConfigError, match=r"line \d+"):
        PARSERS[parser](text.format(canary=canary))

    assert not canary.exists()


@pytest.mark.abuse("A01")
@pytest.mark.parametrize("text", OBJECTS, ids=["apply", "new", "subprocess"])
def test_control_an_unsafe_loader_runs_the_command(text: str, tmp_path: Path):
    """The same text, read as a naive program reads it."""
    canary = tmp_path / "canary"

    yaml.load(text.format(canary=canary), Loader=yaml.UnsafeLoader)

    assert canary.exists()


@pytest.mark.abuse("A07")
@pytest.mark.parametrize("pattern", SLOW_PATTERNS)
def test_no_pattern_is_slow(pattern: str):
    """Scopes are globs of our own matcher, never regular expressions."""
    began = time.thread_time()

    matches(LONG_PATH, pattern)
    matches("a" * 200 + "b", pattern)
    with suppress(UnsafePath, ValueError):  # refused when it is read is as good
        offending_paths([LONG_PATH] * 20, WriteScope(patterns=(pattern,)))

    assert time.thread_time() - began < 1


@pytest.mark.abuse("A07")
def test_control_a_regular_expression_is_slow():
    """Twenty-six letters: twice as long for each further one."""
    began = time.thread_time()

    assert re.match(r"(a+)+$", "a" * 24 + "b") is None

    assert time.thread_time() - began > 0.2


@asynccontextmanager
async def pages(host: str) -> AsyncIterator[int]:
    """Serve the supervisor's pages and yield their port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])

    async def figures() -> bytes:
        return b"figures\n"

    serving = asyncio.create_task(http.serve(host, port, figures))
    try:
        await wait_until(lambda: _listens(port), "the pages are served")
        yield port
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def _listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


async def status(port: int, host: str, method: str = "GET", *, body: str = "") -> int:
    """Return the status a browser gets that believes to talk to `host`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} /metrics HTTP/1.1\r\nhost: {host}\r\norigin: http://evil.example\r\ncontent-type: text/plain\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode())
    try:
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.abuse("A05")
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8950", "127.0.0.1.evil.example", "localhost.evil.example:1", "0.0.0.0", ""])
async def test_a_page_of_another_name_is_not_answered_on_loopback(host: str):
    """Its name was pointed at 127.0.0.1; the browser says so in `Host`."""
    async with pages("127.0.0.1") as port:
        assert await status(port, host) == 421
        assert [await status(port, name) for name in (f"127.0.0.1:{port}", "localhost", f"[::1]:{port}")] == [200] * 3


@pytest.mark.abuse("A05")
async def test_a_form_of_another_site_changes_nothing():
    """A form needs no permission to post; nothing here takes one, and runs are asked for over the broker, with a key."""
    async with pages("127.0.0.1") as port:
        assert [await status(port, f"127.0.0.1:{port}", method, body="a=b") for method in ("POST", "PUT", "DELETE")] == [405] * 3


@pytest.mark.abuse("A05")
async def test_control_without_the_rule_any_name_is_answered():
    """A server that listens for others cannot know its names: there the same request is served."""
    async with pages("0.0.0.0") as port:
        assert await status(port, "evil.example") == 200


@pytest.mark.abuse("A08")
async def test_the_broker_listens_on_loopback_only(tmp_path: Path):
    """All its ports, the one of its health included. The control: the broker of a fleet is heard by everybody, because somebody said so."""
    async with EmbeddedBroker.run(tmp_path / "own"):
        own = _addresses_of_children()
    async with EmbeddedBroker.run(tmp_path / "fleet", listen=Listen(host="0.0.0.0", advertise="localhost")):
        fleet = _addresses_of_children()

    assert own
    assert {address for address, _ in own} == {"127.0.0.1"}
    assert "0.0.0.0" in {address for address, _ in fleet} or "::" in {address for address, _ in fleet}


@pytest.mark.abuse("A08")
@pytest.mark.parametrize("file", ["compose.yaml", "compose.local.yaml"])
def test_compose_publishes_on_loopback_only(file: str):
    """An engine publishes past the host's firewall (the control is the engine's own default, 0.0.0.0); `make smoke` asks it what it did."""
    services = yaml.safe_load((ROOT / file).read_text())["services"]
    published = [port for service in services.values() for port in service.get("ports", ())]

    assert all(isinstance(port, str) and port.startswith("127.0.0.1:") for port in published)
    assert bool(published) == (file == "compose.yaml")


def _addresses_of_children() -> set[tuple[str, int]]:
    """Return (address, port) of every TCP socket on which a child of this process listens."""
    sockets = {str(handle.readlink()) for pid in children() for handle in Path(f"/proc/{pid}/fd").iterdir() if handle.is_symlink()}
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # 0A: it listens
                address, _, port = fields[1].partition(":")
                words = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
                found.add((socket.inet_ntop(family, words), int(port, 16)))
    return found
