"""The way to the model belongs to one process besides ours."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox.inside.drivers.clients import holds
from sandbox.inside.drivers.route import REFUSALS_MAX, Route, open_route

ASK = """
import socket, sys
host, port = sys.argv[1].removeprefix("http://").split(":")
sys.stdin.read(1)
with socket.create_connection((host, int(port)), timeout=10) as asking:
    asking.sendall(b"x" * 70_000)
    asking.shutdown(socket.SHUT_WR)
    answer = b""
    while data := asking.recv(65_536): answer += data
sys.stdout.write(answer[:40].decode())
"""


@contextmanager
def a_gateway(path: Path) -> Iterator[list[bytes]]:
    """Stand where the gateway does: take one connection's bytes, then answer."""
    taken: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    data = b""
                    while piece := client.recv(65_536):
                        data += piece
                    taken.append(data)
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield taken
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def asking(route: Route) -> "subprocess.Popen[str]":
    """Start a process that asks once it is let go."""
    return subprocess.Popen([sys.executable, "-I", "-c", ASK, route.base_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer_of(process: "subprocess.Popen[str]") -> str:
    out, _ = process.communicate("\n", timeout=20)
    return out.partition("\n")[0]


def test_another_process_of_the_sandbox_is_refused(tmp_path: Path):
    """The program that was named is led to the gateway; one beside it, of the same uid, gets 403, and the gateway hears nothing of it."""
    said: list[str] = []
    with a_gateway(tmp_path / "s") as taken:
        route = open_route(tmp_path / "s", said.append, is_open=False)
        agent, tool = asking(route), asking(route)
        route.name(agent.pid)

        assert answer_of(tool) == "HTTP/1.1 403 Forbidden"
        assert taken == []
        assert said == ["the model route was asked for by another process: refused"]
        assert answer_of(agent) == "HTTP/1.1 200 OK"
        assert [len(data) for data in taken] == [70_000]


def test_control_a_route_that_is_open_serves_every_process(tmp_path: Path):
    """What `clients: sandbox` means, and what the wall is for."""
    with a_gateway(tmp_path / "s") as taken:
        route = open_route(tmp_path / "s", lambda _: None, is_open=True)

        assert answer_of(asking(route)) == "HTTP/1.1 200 OK"
        assert len(taken) == 1


def test_a_flood_of_refusals_holds_no_more_than_a_few_threads(tmp_path: Path):
    """Beyond the bound a connection is just closed."""
    with a_gateway(tmp_path / "s") as taken:
        route = open_route(tmp_path / "s", lambda _: None, is_open=False)
        route.name(1)
        host, _, port = route.base_url.removeprefix("http://").partition(":")
        clients = [socket.create_connection((host, int(port)), timeout=10) for _ in range(REFUSALS_MAX + 4)]
        first = [client.recv(12) for client in clients]
        refusing = [thread for thread in threading.enumerate() if thread.name == "refusal"]
        for client in clients:
            client.close()

        assert len(refusing) <= REFUSALS_MAX
        assert first.count(b"HTTP/1.1 403") >= REFUSALS_MAX
        assert first.count(b"") >= 1
        assert taken == []


def test_a_connection_nobody_can_tell_is_nobodys(tmp_path: Path):
    """No table, no such process, or no such connection: no."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        ends = (client.getsockname(), server.getsockname())
        mine = int(Path("/proc/self").resolve().name)

        assert holds(mine, *ends)
        assert not holds(1, *ends) or mine == 1
        assert not holds(2**22 + 1, *ends)
        assert not holds(mine, ("127.0.0.1", 1), ends[1])
        assert not holds(mine, *ends, table=str(tmp_path / "none"))
