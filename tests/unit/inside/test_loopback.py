"""The way from 127.0.0.1 to the gateway's socket."""

import os
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sandbox.inside.loopback import BUFFER_BYTES_MAX, CONNECTIONS_MAX, forwarding, listening

WAIT_S = 10.0


class Echo(socketserver.BaseRequestHandler):
    """Says who connected, then sends back what it gets until the client has nothing more to say."""

    def handle(self) -> None:
        """Serve one connection."""
        pid, _, _ = struct.unpack("3i", self.request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.request.sendall(struct.pack("i", pid))
        while data := self.request.recv(65_536):
            self.request.sendall(data)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Stands where the gateway does."""

    daemon_threads = True


@contextmanager
def an_echo(path: Path) -> Iterator[Path]:
    with Server(str(path), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield path
        finally:
            server.shutdown()
            thread.join(WAIT_S)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A forwarder to an echo."""
    with an_echo(tmp_path / "s") as gateway, forwarding(gateway, 0) as bound:
        yield bound


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)


def received(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (piece := connection.recv(count - len(data))):
        data += piece
    return bytes(data)


def test_what_is_sent_arrives_and_is_answered(port: int) -> None:
    """Both directions carry bytes as they are."""
    with connected(port) as client:
        received(client, 4)
        client.sendall(b"\0\xff line\r\n")

        assert received(client, 8) == b"\0\xff line\r"


def test_the_gateway_sees_another_process_than_the_one_that_connects_or_starts_it(port: int) -> None:
    """So a tool that comes this way is not taken for the agent (D18)."""
    with connected(port) as client:
        (pid,) = struct.unpack("i", received(client, 4))

    assert pid not in {os.getpid(), os.getppid()}
    assert Path(f"/proc/{pid}").exists()


def test_more_than_is_held_passes_without_loss_when_the_reader_is_slow(port: int) -> None:
    """The sender waits instead: nothing is dropped, and nothing beyond the bound is held."""
    data = os.urandom(8 * BUFFER_BYTES_MAX)
    with connected(port) as client:
        received(client, 4)
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()

        assert received(client, len(data)) == data
        sender.join(WAIT_S)


def test_the_end_of_one_direction_is_passed_on_and_the_other_goes_on(port: int) -> None:
    """A client that has said all still hears the rest."""
    with connected(port) as client:
        received(client, 4)
        client.sendall(b"last")
        client.shutdown(socket.SHUT_WR)

        assert received(client, 100) == b"last"


def test_one_connection_too_many_waits_until_another_has_ended(port: int) -> None:
    """At the bound the last one is served, beyond it nobody is turned away."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(port)) for _ in range(CONNECTIONS_MAX)]
        assert all(len(received(client, 4)) == 4 for client in clients)
        late = stack.enter_context(connected(port))
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.recv(4)

        clients[0].close()

        late.settimeout(WAIT_S)
        assert len(received(late, 4)) == 4


def test_a_client_is_dropped_while_there_is_no_gateway_and_served_as_soon_as_there_is(tmp_path: Path) -> None:
    """The forwarder outlives what it cannot reach."""
    with forwarding(tmp_path / "s", 0) as port:
        with connected(port) as client:
            assert client.recv(1) == b""

        with an_echo(tmp_path / "s"), connected(port) as client:
            assert len(received(client, 4)) == 4


def test_a_taken_port_is_said_at_once() -> None:
    """Nobody waits for a forwarder that could not start."""
    with listening(0) as taken, pytest.raises(OSError, match="in use"), forwarding(Path("/nowhere"), taken.getsockname()[1]):
        pass


def test_nothing_listens_after_its_end(tmp_path: Path) -> None:
    """Its process is gone, not only told to go."""
    with an_echo(tmp_path / "s") as gateway:
        with forwarding(gateway, 0) as port:
            pass

        with pytest.raises(ConnectionRefusedError):
            connected(port)
