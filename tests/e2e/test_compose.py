"""`make up` and `make down`: the fleet of compose.yaml on this machine, with three executors, until a run is in the user's repository."""

import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.line import Line, Provider
from tests.e2e.watching import wait_until
from tests.leaks import mounts_below

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
FEATURE = "Add rate limiting to the API: 100 requests/minute per IP, 429 with Retry-After"
EXECUTORS = {"ex1", "ex2", "ex3"}
BUILD_S = 1200
UP_S = 900
DOWN_S = 180
JOIN_S = 60
TRACE_S = 60


@pytest.fixture(scope="session")
def compose() -> str:
    """Return the program; a machine without the plugin builds it."""
    built = subprocess.run([ROOT / "tests/servers/compose/build.sh"], capture_output=True, text=True, timeout=BUILD_S, check=True)
    return f"{built.stdout.strip()}/docker-compose"


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    """The scripted model where containers reach it: on the engine's own bridge, which no other host does."""
    with Provider(_docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").strip()) as running:
        yield running


class Stack:
    """The fleet of compose.yaml under a name, ports and a state directory of its own."""

    def __init__(self, compose: str, state: Path, home: Path, provider: Provider) -> None:
        self.project = state.name
        self.state = state
        self.home = home
        self.jaeger = _free_port()
        self.pages = _free_port()
        self._nats = _free_port()
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
            "ANDON_COMPOSE": compose,
            "COMPOSE_PROJECT_NAME": self.project,
            "ANDON_EXECUTOR_STATE": str(state),
            "ANDON_NATS_PORT": str(self._nats),
            "ANDON_JAEGER_PORT": str(self.jaeger),
            "ANDON_HTTP_PORT": str(self.pages),
            **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "DOCKER_", "GO"))},
            **provider.server.environment(),
        }

    def up(self) -> Line:
        """Do what `make up` does, with three executors; return the command line of a person outside, as it was told to use it."""
        done = self._fleet("up", "--scale", "executor=3", timeout_s=UP_S)
        told = dict(word.split("=", 1) for word in done.stdout.removeprefix("export ").split())
        return Line(self.home, told)

    def down(self, *, forget: bool = True) -> None:
        """Do what `make down` does, with ARGS=--volumes if everything is to be forgotten."""
        self._fleet("down", *(["--volumes"] if forget else []), timeout_s=DOWN_S)

    def compose(self, *arguments: str) -> str:
        """Return what `docker compose` says of it."""
        return self._run([self._environment["ANDON_COMPOSE"], *arguments], 60).stdout

    def _fleet(self, *arguments: str, timeout_s: float) -> "subprocess.CompletedProcess[str]":
        return self._run([str(ROOT / "images/fleet.sh"), *arguments], timeout_s)

    def _run(self, command: list[str], timeout_s: float) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stderr[-4000:]}"
        return done


@contextmanager
def running(compose: str, home: Path, provider: Provider) -> Iterator[tuple[Stack, Line]]:
    """Have the fleet up; what went wrong in between is shown with its logs."""
    # Short: the paths of its sockets are bounded.
    stack = Stack(compose, Path(f"/tmp/andon-smoke-{os.getpid()}"), home, provider)
    try:
        yield stack, stack.up()
    except BaseException:
        print(stack.compose("ps", "--all"), stack.compose("logs", "--tail", "60"))
        raise
    finally:
        stack.down()


def test_the_compose_files_are_clean(compose: str):
    """Alone and with the override for hosts without a registry; public images are named by their content."""
    for files in (["compose.yaml"], ["compose.yaml", "compose.local.yaml"]):
        options = [word for file in files for word in ("--file", file)]
        clean = subprocess.run([compose, *options, "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert (clean.returncode, clean.stderr) == (0, "")

    config = json.loads(_output(compose, "--file", "compose.yaml", "config", "--format", "json"))
    for name, service in config["services"].items():
        assert "@sha256:" in service["image"] or service["image"].startswith("andon/"), name


def test_three_executors_in_containers_land_a_run_in_the_users_repository(compose: str, provider: Provider, tmp_path: Path):
    """As a newcomer does it: up, look at the fleet, run, look at the trace, down and up (it is still there), down; nothing is left."""
    with running(compose, tmp_path, provider) as (stack, line):
        ports = _published(stack)
        wait_until(lambda: _ready(line) == EXECUTORS, "three executors have joined", JOIN_S)

        done = line.run(FEATURE, timeout_s=300)

        assert done.exit_code == 0, done.stderr
        assert done.result["state"] == "landed"
        branch = _output("git", "-C", done.result["repo"], "rev-parse", f"refs/heads/{done.result['branch']}")
        assert branch.strip() == done.result["commit"]
        assert {attempt["executor"] for job in done.result["stages"] for attempt in job["attempts"]} <= EXECUTORS
        assert len(provider.server.calls()) > 0
        assert 'cicd_pipeline_run_duration_seconds_count{cicd_pipeline_name="feature"' in _get(stack.pages, "/metrics")
        trace = done.result["trace_id"]
        assert done.result["trace_url"] == f"http://127.0.0.1:{stack.jaeger}/trace/{trace}"
        wait_until(lambda: _is_whole(stack.jaeger, trace), "the trace is in Jaeger", TRACE_S)
        assert "Landed: " in _get(stack.pages, f"/runs/{done.result['run_id']}")
        before = _spans(stack.jaeger, trace)

        stack.down(forget=False)
        again = stack.up()

        assert _spans(stack.jaeger, trace) == before
        assert again.andon("status", done.result["run_id"], "--json").result["state"] == "landed"

    assert ports
    assert set(ports) == {"127.0.0.1"}
    assert _left(stack) == []


def _published(stack: Stack) -> list[str]:
    """Return the addresses of the host on which the services can be reached."""
    services = [json.loads(line) for line in stack.compose("ps", "--format", "json").splitlines()]
    return [port["URL"] for service in services for port in service["Publishers"] or () if port["PublishedPort"]]


def _ready(line: Line) -> set[str]:
    """Return the executors that take jobs, each with a quota for its workspaces."""
    listed = line.andon("fleet", "--json")
    rows: list[dict[str, Any]] = json.loads(listed.stdout) if listed.exit_code == 0 else []
    return {row["executor"] for row in rows if row["standing"] == "ready" and not any("quota" in each for each in row["missing"])}


def _get(port: int, path: str) -> str:
    """Return a page of the supervisor's: its metrics, or a run's."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def _is_whole(port: int, trace_id: str) -> bool:
    """Return whether Jaeger has the root and nothing whose parent it has not."""
    spans = _spans(port, trace_id)
    known = {span_id for span_id, _, _ in spans}
    return {name for _, parent, name in spans if parent not in known} == {"RUN feature"}


def _spans(port: int, trace_id: str) -> set[tuple[str, str, str]]:
    """Return id, parent and name of a trace's spans, as Jaeger's query API tells them."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v3/traces/{trace_id}", timeout=10) as answer:
            resources = json.load(answer)["result"]["resourceSpans"]
    except urllib.error.HTTPError:  # not there yet
        return set()
    spans = [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]
    return {(span["spanId"], span.get("parentSpanId", ""), span["name"]) for span in spans}


def _left(stack: Stack) -> list[str]:
    """Return what is still on the machine; images stay."""
    ours = f"label=com.docker.compose.project={stack.project}"
    left = [
        *_docker("ps", "--all", "--quiet", "--filter", ours).split(),
        *_docker("volume", "ls", "--quiet", "--filter", ours).split(),
        *_docker("network", "ls", "--quiet", "--filter", ours).split(),
        *_docker("ps", "--all", "--quiet", "--filter", f"volume={stack.state}").split(),
        *mounts_below(stack.state),
    ]
    return [*left, str(stack.state)] if stack.state.exists() else left


def _docker(*arguments: str) -> str:
    return _output("docker", *arguments)


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
