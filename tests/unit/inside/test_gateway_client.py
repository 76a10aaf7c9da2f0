"""HTTP over the gateway's socket, by the standard library."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.inside.gateway_client import GatewayError, ask_assignment, post_submission, wait_assignment


@contextmanager
def listening(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """Answer one connection after the other with raw bytes; yields what was asked."""
    asked: list[bytes] = []
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        for answer in answers:
            connection, _ = server.accept()
            with connection:
                asked.append(connection.recv(1 << 20))
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield asked
        thread.join(5)
        assert not thread.is_alive(), "not every answer was asked for"
    finally:
        server.close()


def reply(status: str, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_the_assignment_is_asked_for_and_read(tmp_path: Path) -> None:
    """One connection, closed by the answer."""
    with listening(tmp_path / "s", reply("200 OK", b"{}")) as asked:
        path = str(tmp_path / "s")
        body = wait_assignment(path, ask_assignment(path))

    assert body == b"{}"
    assert asked == [b"GET /andon/assignment HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n"]


def test_a_chunked_answer_is_read_too(tmp_path: Path) -> None:
    """Whatever server the gateway is built with."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    with listening(tmp_path / "s", chunked):
        path = str(tmp_path / "s")
        assert wait_assignment(path, ask_assignment(path)) == b"{}"


def test_a_poll_without_an_assignment_is_repeated(tmp_path: Path) -> None:
    """A bounded long poll ends with 204 when there is no job yet."""
    with listening(tmp_path / "s", reply("204 No Content"), reply("204 No Content"), reply("200 OK", b"{}")) as asked:
        path = str(tmp_path / "s")
        wait_assignment(path, ask_assignment(path))

    assert len(asked) == 3


@pytest.mark.parametrize("answer", [reply("403 Forbidden"), b"", b"not http\r\n\r\n"])
def test_another_answer_ends_the_attempt(tmp_path: Path, answer: bytes) -> None:
    """Asking again would not help."""
    with listening(tmp_path / "s", answer):
        path = str(tmp_path / "s")
        pending = ask_assignment(path)
        with pytest.raises(GatewayError):
            wait_assignment(path, pending)


def test_a_gateway_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    """A restart is survived: the directory is mounted, not the socket."""
    found: list[bytes] = []
    path = str(tmp_path / "s")
    asking = threading.Thread(target=lambda: found.append(wait_assignment(path, ask_assignment(path))))
    asking.start()
    time.sleep(0.1)

    with listening(tmp_path / "s", reply("200 OK", b"{}")):
        asking.join(5)

    assert found == [b"{}"]


def test_a_submission_is_delivered_although_the_gateway_hung_up_once(tmp_path: Path) -> None:
    """Delivered again, since nobody said it was taken."""
    with listening(tmp_path / "s", b"", reply("202 Accepted")) as asked:
        post_submission(str(tmp_path / "s"), b'{"status":"done"}')

    assert asked[1].startswith(b"POST /andon/submit HTTP/1.1\r\n")
    assert asked[1].endswith(b'\r\n\r\n{"status":"done"}')


def test_a_refused_submission_is_an_error(tmp_path: Path) -> None:
    """Not repeated: the gateway has read it."""
    with listening(tmp_path / "s", reply("409 Conflict")), pytest.raises(GatewayError, match="409"):
        post_submission(str(tmp_path / "s"), b"{}")


def test_a_submission_too_large_is_never_sent(tmp_path: Path) -> None:
    """64 KiB is the gateway's limit (DECISIONS G6)."""
    with pytest.raises(GatewayError, match="at most 65536"):
        post_submission(str(tmp_path / "s"), b"x" * 65_537)
