"""Speaks HTTP over the gateway's unix socket with the standard library; not the model calls, which the SDK makes.

`ask_assignment` is the first thing a container does, so this module imports nothing that is slow to import: the parser
of replies comes after the request is on its way.
"""

import select
import socket
import time

ASSIGNMENT_BYTES_MAX = 4 << 20
SUBMISSION_BYTES_MAX = 64 << 10
CONNECT_S = 10.0
POLL_S = 300.0
POLLS_MAX = 2_000

_ASK = b"GET /andon/assignment HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n"
_ALIVE = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n"
_NOT_YET = frozenset({204, 408, 503})


class GatewayError(Exception):
    """The gateway is not there, or did not answer as agreed; this attempt is over."""


def ask_assignment(path: str) -> socket.socket:
    """Send the request for the assignment and return the socket its answer will come on."""
    connection = _connect(path)
    try:
        connection.sendall(_ASK)
    except OSError as error:
        connection.close()
        raise GatewayError(f"the gateway at {path} hung up: {error}") from error
    return connection


def has_answered(pending: socket.socket) -> bool:
    """Return whether an answer has begun to arrive."""
    return bool(select.select([pending], [], [], 0)[0])


def wait_assignment(path: str, pending: socket.socket) -> bytes:
    """Return the assignment's JSON, asking again as often as a bounded poll ends without one.

    Raises:
        GatewayError: Another answer than an assignment, or none in `POLLS_MAX` polls.
    """
    for _ in range(POLLS_MAX):
        status, body = _read_reply(pending, POLL_S, ASSIGNMENT_BYTES_MAX)
        if status == 200:
            return body
        if status not in _NOT_YET:
            raise GatewayError(f"the gateway answered {status} to the request for an assignment")
        time.sleep(0.05)  # a gateway that answers "not yet" at once must not be polled in a tight loop
        pending = ask_assignment(path)
    raise GatewayError(f"no assignment in {POLLS_MAX} polls")


def post_submission(path: str, body: bytes, attempts_max: int = 3) -> None:
    """Deliver the last word of this program, at most 64 KiB of JSON.

    Raises:
        GatewayError: It was not accepted.
    """
    if len(body) > SUBMISSION_BYTES_MAX:
        raise GatewayError(f"a submission of {len(body)} bytes; at most {SUBMISSION_BYTES_MAX}")
    head = (
        "POST /andon/submit HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    problem = ""
    for attempt in range(attempts_max):
        try:
            connection = _connect(path)
            with connection:
                connection.sendall(head.encode() + body)
                status, _ = _read_reply(connection, CONNECT_S, ASSIGNMENT_BYTES_MAX)
        except (OSError, GatewayError) as error:
            problem = str(error)
            time.sleep(0.2 * (attempt + 1))
            continue
        if 200 <= status < 300:
            return
        raise GatewayError(f"the gateway answered {status} to the submission")
    raise GatewayError(f"the submission was not delivered in {attempts_max} attempts: {problem}")


def say_alive(path: str) -> None:
    """Let the gateway hear that this program works; one that is not there is not waited for."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_S)
        try:
            connection.connect(path)
            connection.sendall(_ALIVE)
            connection.recv(1)
        except OSError:
            return


def _connect(path: str) -> socket.socket:
    """Connect, waiting for a gateway that is just being restarted (its directory is mounted, not the socket)."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            if time.monotonic() >= deadline:
                raise GatewayError(f"no gateway at {path} for {CONNECT_S:.0f} s: {error}") from error
            time.sleep(0.02)
        except OSError as error:
            connection.close()
            raise GatewayError(f"cannot connect to the gateway at {path}: {error}") from error
        else:
            return connection


def _read_reply(connection: socket.socket, timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
    import http.client  # 80 ms to import: after the first request is on its way

    connection.settimeout(timeout_s)
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        body = response.read(bytes_max + 1)
    except TimeoutError:
        return 408, b""
    except (OSError, http.client.HTTPException) as error:
        raise GatewayError(f"the gateway's answer broke off: {error!r}") from error
    finally:
        response.close()
        connection.close()
    if len(body) > bytes_max:
        raise GatewayError(f"the gateway answered more than {bytes_max} bytes")
    return response.status, body
