"""Leads from 127.0.0.1 to the gateway's socket, for programs that speak TCP only; it reads nothing of what passes, and decides nothing.

`start_forwarder` runs it as a process of its own, so that the gateway sees another peer than the agent, and answers 403 on the
routes that are the agent's alone (DECISIONS D18). A thread of the agent that calls `forward` lends its identity to whom
`admits` lets in: for the process of a foreign agent (`drivers/route`), never for tools.
"""

import contextlib
import selectors
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

HOST = "127.0.0.1"
CONNECTIONS_MAX = 24
"""At once; more wait to be accepted. Below the gateway's own limit, so that the program inside is still heard."""
BUFFER_BYTES_MAX = 256 << 10
"""Held for a reader that is slow, in each direction of a connection."""
CONNECT_S = 2
"""How long a gateway that is slow to accept is waited for."""
_CHUNK_BYTES = 64 << 10


@contextlib.contextmanager
def forwarding(gateway: Path, port: int) -> Iterator[int]:
    """Forward connections to `127.0.0.1:port` in a process of its own while the context is open; yields the port.

    Args:
        gateway: The gateway's socket.
        port: Where to listen; 0: any free one.

    Raises:
        OSError: The port is taken.
    """
    with listening(port) as listener:
        end = start_forwarder(listener, gateway)
        bound: int = listener.getsockname()[1]
    try:
        yield bound
    finally:
        end()


def start_forwarder(listener: socket.socket, gateway: Path) -> Callable[[], None]:
    """Start the process that forwards what connects to `listener`, of which it has a copy; return what ends it."""
    command = (sys.executable, "-I", "-m", "sandbox.inside.loopback", str(listener.fileno()), str(gateway))
    # It is in its own session: the end of a tool's process group is not its end.
    process = subprocess.Popen(command, env={}, stdin=subprocess.DEVNULL, pass_fds=(listener.fileno(),), start_new_session=True)

    def end() -> None:
        process.kill()
        process.wait()

    return end


def listening(port: int) -> socket.socket:
    """Return a socket that listens at `127.0.0.1:port`; who connects before `forward` runs waits for it."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


def forward(listener: socket.socket, gateway: str, admits: Callable[[socket.socket], bool] = lambda _: True) -> None:
    """Forward every connection that `admits` lets pass to the gateway's socket; one it does not, it closes. Never returns."""
    listener.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        pairs: set[_Pair] = set()
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    pairs |= _accepted(listener, gateway, selector, admits)
                elif key.data in pairs and not key.data.move():
                    pairs.remove(key.data)
            _listen_if(len(pairs) < CONNECTIONS_MAX, listener, selector)


def _accepted(
    listener: socket.socket, gateway: str, selector: selectors.BaseSelector, admits: Callable[[socket.socket], bool]
) -> "set[_Pair]":
    """Return one more connection, none if its client or the gateway is gone, or it may not pass."""
    try:
        client, _ = listener.accept()
        if not admits(client):
            return set()
    except OSError:
        return set()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Not `settimeout`: a socket that does not block fails at once where the gateway is a moment late to accept.
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", CONNECT_S, 0))
    try:
        server.connect(gateway)
    except OSError as error:
        sys.stderr.write(f"andon: the gateway at {gateway} is not there: {error}\n")
        client.close()
        server.close()
        return set()
    return {_Pair(client, server, selector)}


def _listen_if(wanted: bool, listener: socket.socket, selector: selectors.BaseSelector) -> None:
    is_registered = listener in selector.get_map()
    if wanted and not is_registered:
        selector.register(listener, selectors.EVENT_READ)
    elif is_registered and not wanted:
        selector.unregister(listener)


class _Flow:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.held = bytearray()
        self.is_ended = False
        """The source will send no more."""
        self.is_closed = False
        """The target was told so, after everything held had gone."""

    @property
    def reads(self) -> bool:
        return not self.is_ended and len(self.held) < BUFFER_BYTES_MAX

    def move(self) -> None:
        """Take what has come and send what can go.

        Raises:
            OSError: One end is gone.
        """
        if self.reads:
            with contextlib.suppress(BlockingIOError):
                data = self.source.recv(_CHUNK_BYTES)
                self.is_ended = not data
                self.held += data
        if self.held:
            with contextlib.suppress(BlockingIOError):
                del self.held[: self.target.send(self.held)]
        if self.is_ended and not self.held and not self.is_closed:
            self.is_closed = True
            self.target.shutdown(socket.SHUT_WR)


class _Pair:
    """A client's connection and ours to the gateway."""

    def __init__(self, client: socket.socket, server: socket.socket, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._ends = (client, server)
        self._flows = (_Flow(client, server), _Flow(server, client))
        for end in self._ends:
            end.setblocking(False)
        self._wait()

    def move(self) -> bool:
        """Pass on what can be passed on; return whether the connection goes on."""
        try:
            for flow in self._flows:
                flow.move()
        except OSError:
            return self._end()
        if all(flow.is_closed for flow in self._flows):
            return self._end()
        self._wait()
        return True

    def _end(self) -> bool:
        for end in self._ends:
            with contextlib.suppress(KeyError):
                self._selector.unregister(end)
            end.close()
        return False

    def _wait(self) -> None:
        """Wait for exactly what can go on: an end nothing is wanted of would wake us for ever."""
        for end in self._ends:
            events = 0
            for flow in self._flows:
                events |= selectors.EVENT_READ if flow.source is end and flow.reads else 0
                events |= selectors.EVENT_WRITE if flow.target is end and flow.held else 0
            is_registered = end in self._selector.get_map()
            if events and is_registered:
                self._selector.modify(end, events, self)
            elif events:
                self._selector.register(end, events, self)
            elif is_registered:
                self._selector.unregister(end)


if __name__ == "__main__":
    forward(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
