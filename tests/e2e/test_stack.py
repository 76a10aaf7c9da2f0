"""The embedded stack and its environment: an idle one follows a person's new environment, a busy one is not pulled from under a run."""

import socket
from pathlib import Path

import pytest

from supervisor.config import StateDirectory
from supervisor.stack import presence
from tests.e2e.line import Line, Provider
from tests.e2e.watching import going, stack_pids
from tests.fakes.scripts.rate_limit import STALLS_ALWAYS

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture
def kept(provider: Provider, tmp_path: Path):
    """A stack of its own that `andon up` keeps, live against the scripted model."""
    line = Line(tmp_path / "home", provider.server.environment())
    line.home.mkdir()
    up = line.andon("up")
    assert up.exit_code == 0, up.stderr
    yield line
    assert line.andon("down").exit_code == 0


def test_an_idle_stack_is_restarted_when_the_key_is_gone(kept: Line):
    """DECISIONS D14: what decides live or replay is the executor's environment, so it has to be the person's own."""
    before = stack_pids(kept)
    without = Line(kept.home, {})

    done = without.run()

    assert done.exit_code == 0, done.stderr
    assert done.result["replay"] is True
    assert "restarting the idle stack" in done.stderr
    assert stack_pids(without)["executor"] != before["executor"]


def test_a_busy_stack_refuses_another_environment_in_one_line(kept: Line, provider: Provider):
    """The run that is going on keeps its key; the other person is told what to do."""
    provider.says(STALLS_ALWAYS)
    before = stack_pids(kept)

    with going(kept, "Add rate limiting to the API: 100 requests/minute per IP, 429 with Retry-After", "--no-baseline") as run:
        run.wait_event("attempt_started")
        refused = Line(kept.home, {}).andon("run")

    assert refused.exit_code == 2
    assert "another environment" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert stack_pids(kept) == before


def test_an_idle_stack_listens_anew_when_it_is_asked_to(kept: Line):
    """`andon up --listen` restarts an idle stack; whoever says nothing of it afterwards leaves it as it is."""
    before = stack_pids(kept)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    listening = kept.andon("up", "--listen", f"0.0.0.0:{port}", "--advertise", "127.0.0.1")
    after = stack_pids(kept)
    again = kept.andon("up")

    assert (listening.exit_code, again.exit_code) == (0, 0), listening.stderr
    assert "restarting the idle stack" in listening.stderr
    assert f"tls://127.0.0.1:{port}" in listening.stdout
    assert before["nats-server"] != after["nats-server"]
    assert stack_pids(kept) == after


def test_a_busy_stack_does_not_listen_anew(kept: Line):
    """A run, or anybody else who uses it, would lose its broker."""
    before = stack_pids(kept)

    with presence(StateDirectory(kept.state)):
        refused = kept.andon("up", "--listen", "0.0.0.0:14299")

    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "another environment (key, engine, exporter, listen) and is busy" in refused.stderr
    assert stack_pids(kept) == before


@pytest.mark.parametrize("listen", ["nonsense", "0.0.0.0:0", "0.0.0.0:99999", ":4222"])
def test_a_wrong_address_is_one_line_and_stops_nothing(kept: Line, listen: str):
    """It is found before the running stack is touched."""
    before = stack_pids(kept)

    refused = kept.andon("up", "--listen", listen)

    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert stack_pids(kept) == before
