"""A real Jaeger for a test session, with Badger in a folder of its own, and its query API as tests ask it; not what a trace has to hold."""

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.traces import SeenTrace
from tests.leaks import SESSION_PROCESSES
from tests.servers.engines import NotHereError

RECIPE = Path(__file__).parent / "jaeger" / "build.sh"
CONFIGURATION = Path(__file__).parents[2] / "images" / "jaeger"
_WITH_US = ("setpriv", "--pdeathsig", "TERM")
"""It ends with the session, also with one that is killed."""
_BUILD_S = 1_800
_READY_S = 60
_STOP_S = 20
_ANSWER_S = 20


@dataclass(frozen=True)
class Jaeger:
    """A running server."""

    query: str
    """http://host:port of its API and page."""
    otlp: str
    """http://host:port that takes OTLP."""

    def services(self) -> set[str]:
        """Return who has sent spans."""
        return set(self._get("/api/v3/services", {})["services"])

    def trace(self, trace_id: str) -> SeenTrace:
        """Return a trace as it is stored; without spans if it is not there."""
        try:
            found = self._get(f"/api/v3/traces/{trace_id}", {})
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return SeenTrace([])
        return SeenTrace.of_documents([found["result"]])

    def warnings(self, trace_id: str) -> list[tuple[str, str]]:
        """Return span and text of each warning its page puts beside a trace's spans."""
        (trace,) = self._get(f"/api/traces/{trace_id}", {})["data"]
        return [(span["operationName"], text) for span in trace["spans"] for text in span.get("warnings") or ()]

    def find(self, service: str, attributes: dict[str, str], minutes: int = 60) -> set[str]:
        """Return the ids of the traces with one span of this service that has all these attributes."""
        now = time.time()
        begin, end = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) for at in (now - 60 * minutes, now + 60))
        # Up to 2.13 the parameters are written with underscores, later ones otherwise: whichever is understood.
        for style in (_underscored, _camel):
            names = ("service_name", "attributes", "start_time_min", "start_time_max", "search_depth")
            values = (service, json.dumps(attributes), begin, end, "100")
            try:
                found = self._get("/api/v3/traces", {f"query.{style(name)}": value for name, value in zip(names, values, strict=True)})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return set()
                if style is _camel:
                    raise
                continue
            # 2.13 does not look at the attributes: whoever has them is chosen here, by one span that has all.
            spans = SeenTrace.of_documents([found["result"]]).spans
            return {span.trace_id for span in spans if span.service == service and attributes.items() <= span.attributes.items()}
        return set()

    def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        url = f"{self.query}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:
            document: dict[str, Any] = json.load(answer)
        return document


@contextlib.contextmanager
def jaeger(otlp_port: int | None = None, directory: Path | None = None) -> Iterator[Jaeger]:
    """Run a server with the configuration we ship for as long as the context lasts.

    Args:
        otlp_port: Where it takes OTLP; None: at a free port.
        directory: Where it keeps its traces, which stay; None: it is new and empty, and leaves nothing.

    Raises:
        NotHereError: It cannot be built here.
    """
    program = _program()
    kept, directory = directory, directory or Path(tempfile.mkdtemp(prefix="andon-jaeger-"))
    try:
        ports = _free_ports(3)
        ports[1] = otlp_port or ports[1]
        configuration = directory / "config.yaml"
        configuration.write_text(yaml.safe_dump(_configuration(directory, *ports)))
        with (
            (directory / "log").open("wb") as log,
            subprocess.Popen([*_WITH_US, program, "--config", configuration], stdout=log, stderr=log, cwd=directory, env={}) as process,
        ):
            SESSION_PROCESSES.add(process.pid)
            try:
                running = Jaeger(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
                _wait_ready(process, running, directory / "log")
                yield running
            finally:
                process.terminate()
                try:
                    process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
    finally:
        if kept is None:
            shutil.rmtree(directory, ignore_errors=True)


def _program() -> Path:
    done = subprocess.run(["/bin/sh", str(RECIPE)], capture_output=True, text=True, timeout=_BUILD_S, check=False)
    if done.returncode != 0:
        raise NotHereError(f"Jaeger cannot be had here: {done.stderr.strip().splitlines()[-1:]}")
    return Path(done.stdout.strip()) / "jaeger"


def _configuration(directory: Path, query: int, otlp: int, health: int) -> dict[str, Any]:
    """Return the shipped configuration with ports and folders of its own."""
    document: dict[str, Any] = yaml.safe_load((CONFIGURATION / "config.yaml").read_text())
    extensions = document["extensions"]
    extensions["healthcheckv2"]["http"]["endpoint"] = f"127.0.0.1:{health}"
    extensions["jaeger_query"]["http"] = {"endpoint": f"127.0.0.1:{query}"}
    extensions["jaeger_query"]["grpc"] = {"endpoint": "127.0.0.1:0"}
    extensions["jaeger_query"]["ui"] = {"config_file": str(CONFIGURATION / "ui.json")}
    badger = extensions["jaeger_storage"]["backends"]["badger"]["badger"]
    badger["directories"] = {"keys": str(directory / "keys"), "values": str(directory / "values")}
    document["receivers"]["otlp"]["protocols"]["http"]["endpoint"] = f"127.0.0.1:{otlp}"
    document["processors"]["batch"]["timeout"] = "200ms"
    return document


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in taken]


def _wait_ready(process: subprocess.Popen[bytes], running: Jaeger, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            running.services()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NotHereError("Jaeger did not start: " + " | ".join(log.read_text().splitlines()[-3:])) from None
            time.sleep(0.1)
        else:
            return


def _underscored(name: str) -> str:
    return name


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
