"""The way from a foreign agent to the model: 127.0.0.1, then our own connection to the gateway; not what is asked there.

The gateway's model route belongs to our process (DECISIONS D18). We lend it to one other, the program that is the agent:
whoever else in the sandbox connects here is told 403, as it is at the gateway's own socket.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from sandbox.inside.drivers.clients import holds
from sandbox.inside.loopback import HOST, forward, listening

STARTED_S = 10.0
"""How long a connection waits until the program it may come from is known."""
REFUSALS_MAX = 8
"""Connections that are told why at the same time; more are just closed."""
_REFUSE_S = 2.0
_READ_MAX = 64
_BODY = b'{"type":"error","error":{"type":"permission_error","message":"this route belongs to another process"}}'
_REFUSAL = (
    b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nx-should-retry: false\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


class Route:
    """Where the model is for the program, and who the program is."""

    def __init__(self, address: tuple[str, int], say: Callable[[str], None], *, is_open: bool) -> None:
        """Lend the route to every process if `is_open`, otherwise to the one that is named."""
        self._address = address
        self._say = say
        self._is_open = is_open
        self._pid = 0
        self._is_named = threading.Event()
        self._refusals = threading.BoundedSemaphore(REFUSALS_MAX)

    @property
    def base_url(self) -> str:
        """Return what the program is told."""
        return f"http://{self._address[0]}:{self._address[1]}"

    def name(self, pid: int) -> None:
        """Lend the route to a process."""
        self._pid = pid
        self._is_named.set()

    def admits(self, client: socket.socket) -> bool:
        """Return whether a connection may go on; one that may not is answered, and closed."""
        if self._is_open:
            return True
        if self._is_named.wait(STARTED_S) and holds(self._pid, client.getpeername(), self._address):
            return True
        self._say("the model route was asked for by another process: refused")
        if self._refusals.acquire(blocking=False):
            threading.Thread(target=self._refuse, args=(client,), name="refusal", daemon=True).start()
        else:
            client.close()
        return False

    def _refuse(self, client: socket.socket) -> None:
        # Read to its end: a close with bytes unread resets the connection, and the answer with it.
        with contextlib.suppress(OSError), client:
            client.settimeout(_REFUSE_S)
            client.sendall(_REFUSAL)
            client.shutdown(socket.SHUT_WR)
            for _ in range(_READ_MAX):
                if not client.recv(65_536):
                    break
        self._refusals.release()


def open_route(gateway: Path, say: Callable[[str], None], *, is_open: bool) -> Route:
    """Lead from a free port of 127.0.0.1 to the gateway, by a thread of this process, until the process ends."""
    listener = listening(0)
    address: tuple[str, int] = (HOST, listener.getsockname()[1])
    route = Route(address, say, is_open=is_open)
    threading.Thread(target=forward, args=(listener, str(gateway), route.admits), name="model-route", daemon=True).start()
    return route
