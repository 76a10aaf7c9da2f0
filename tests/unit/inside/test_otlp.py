"""The way of a user's spans: an address from the start, a process from the first connection, and a context for each tool call and check."""

import os
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sandbox.contract.ids import check_span_id, span_id, trace_id
from sandbox.inside.otlp import below, below_check, taking_spans
from tests.unit.inside.test_loopback import WAIT_S, an_echo, connected, received

TRACE, PROGRAM = trace_id("01jd8m6w2x"), span_id("01jd8m6w2x/implement/1/1#program")
GIVEN = f"00-{TRACE}-{PROGRAM}-01"


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text().split()) | {
        child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
    }


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def work_of_children() -> int:
    """Return what grows with every child that ended, however short its life was: pages it touched."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt


def port_of(variables: dict[str, str]) -> int:
    return int(variables["OTEL_EXPORTER_OTLP_ENDPOINT"].removeprefix("http://127.0.0.1:"))


def test_who_does_not_trace_starts_no_process(tmp_path: Path) -> None:
    """There are the variables, and a listener; the end leaves neither thread nor file."""
    before, files, threads, ran = children(), open_files(), threading.active_count(), work_of_children()

    with taking_spans(tmp_path / "s") as variables:
        assert children() == before
        assert {name: value for name, value in variables.items() if name != "OTEL_EXPORTER_OTLP_ENDPOINT"} == {
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        }

    assert (open_files(), threading.active_count(), work_of_children()) == (files, threads, ran)


def test_the_first_connection_starts_the_forwarder_and_is_served_by_it(tmp_path: Path) -> None:
    """By another process than ours, so that the gateway tells them apart; it ends with the context."""
    before = children()
    with an_echo(tmp_path / "s") as gateway, taking_spans(gateway) as variables:
        for word in (b"one", b"two"):
            with connected(port_of(variables)) as client:
                pid = int.from_bytes(received(client, 4), sys.byteorder)
                client.sendall(word)
                assert received(client, 3) == word

        assert {str(pid)} == children() - before
        assert pid != os.getpid()

    assert children() == before


def test_a_port_is_gone_with_the_context(tmp_path: Path) -> None:
    """Nobody listens there any more, whether it was used or not."""
    with an_echo(tmp_path / "s") as gateway:
        for is_used in (False, True):
            with taking_spans(gateway) as variables:
                if is_used:
                    with connected(port_of(variables)) as client:
                        received(client, 4)
            with socket.socket() as late:
                late.settimeout(WAIT_S)
                assert late.connect_ex(("127.0.0.1", port_of(variables))) != 0


def test_a_context_keeps_trace_and_flags() -> None:
    """Of a run that is not sampled, a user's own code makes no spans either."""
    assert below(GIVEN, "a" * 16) == f"00-{TRACE}-{'a' * 16}-01"
    assert below(GIVEN[:-2] + "00", "a" * 16) == f"00-{TRACE}-{'a' * 16}-00"
    assert below("", "a" * 16) == below("garbage", "a" * 16) == ""


def test_a_checks_context_is_that_of_the_span_the_host_makes() -> None:
    """Both derive it from the program's span and the check's name."""
    assert below_check(GIVEN, "tests") == f"00-{TRACE}-{check_span_id(PROGRAM, 'tests')}-01"
    assert below_check(GIVEN, "tests") != below_check(GIVEN, "more")
    assert below_check("", "tests") == ""


_CANNOT_LISTEN = """
import os, resource, sys
from pathlib import Path
from sandbox.inside.otlp import taking_spans
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
with taking_spans(Path("/nowhere")) as variables:
    print(sorted(variables))
"""


@pytest.mark.parametrize(("files_max", "said"), [(3, "[]\n"), (64, "['OTEL_EXPORTER_OTLP_ENDPOINT',")])
def test_where_nothing_can_listen_an_attempt_goes_on_without(files_max: int, said: str) -> None:
    """A sandbox whose loopback is down, or that is out of files; the control has enough."""
    done = subprocess.run(
        [sys.executable, "-c", _CANNOT_LISTEN, str(files_max)], capture_output=True, text=True, timeout=60, check=False, cwd=Path.cwd()
    )

    assert done.stdout.startswith(said), done.stderr


_CANNOT_FORWARD = """
import resource, socket
from pathlib import Path
from sandbox.inside.otlp import taking_spans
with taking_spans(Path("/nowhere")) as variables, socket.socket() as client:
    client.settimeout(20)
    resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1,) * 2)
    client.connect(("127.0.0.1", int(variables["OTEL_EXPORTER_OTLP_ENDPOINT"].rpartition(":")[2])))
    try:
        print(client.recv(1))
    except ConnectionResetError:
        print("reset")
"""


def test_who_connects_where_no_process_can_be_started_is_turned_away() -> None:
    """At once, not when an SDK's patience ends; and nothing is said in the container's log."""
    done = subprocess.run([sys.executable, "-c", _CANNOT_FORWARD], capture_output=True, text=True, timeout=60, check=False, cwd=Path.cwd())

    assert (done.stdout, done.stderr) == ("reset\n", "")
