"""Carries connections of a unix socket over this program's own input and output; for engines where sockets of the host do not arrive.

`python -I -m sandbox.inside.relay UID` listens on `/gw/gateway.sock`, in a container beside the sandbox whose `/gw` is a volume of both.
It has no network, judges nothing and keeps nothing; what comes is the gateway's to judge, as ever. The host's end is `runtime/relay`.
"""

import socket
import struct
import sys
import threading
from pathlib import Path
from typing import BinaryIO

SOCKET = Path("/gw/gateway.sock")
FRAME = struct.Struct("!cII")
"""Kind, connection, how many bytes follow."""
READY, OPEN, DATA, END = b"r", b"o", b"d", b"e"
CHUNK_BYTES_MAX = 64 << 10
CONNECTIONS_MAX = 48
"""More than the gateway takes at once; one beyond is closed."""
SEND_S = 30
_CREDENTIALS = struct.Struct("3i")


class Relay:
    """The connections of one listener."""

    def __init__(self, listener: socket.socket, uid: int, wire_in: BinaryIO, wire_out: BinaryIO) -> None:
        """Take connections of user `uid` alone."""
        self._listener = listener
        self._uid = uid
        self._in = wire_in
        self._out = wire_out
        self._connections: dict[int, socket.socket] = {}
        self._count = 0
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Carry until the host's end is gone."""
        threading.Thread(target=self._accept, daemon=True).start()
        self._send(READY, 0)
        while True:
            header = self._in.read(FRAME.size)
            if len(header) < FRAME.size:
                return
            kind, number, length = FRAME.unpack(header)
            data = self._in.read(length)
            connection = self._connections.get(number)
            if connection is None:
                continue
            try:
                if kind == DATA:
                    connection.sendall(data)
                else:
                    connection.shutdown(socket.SHUT_RDWR)  # its reader sees the end and forgets it
            except OSError:
                continue

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid != self._uid or len(self._connections) >= CONNECTIONS_MAX:
                connection.close()
                continue
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_S, 0))
            self._count += 1
            self._connections[self._count] = connection
            self._send(OPEN, self._count)
            threading.Thread(target=self._read, args=(self._count, connection), daemon=True).start()

    def _read(self, number: int, connection: socket.socket) -> None:
        try:
            while data := connection.recv(CHUNK_BYTES_MAX):
                self._send(DATA, number, data)
        except OSError:
            pass
        self._send(END, number)
        if self._connections.pop(number, None) is not None:
            connection.close()

    def _send(self, kind: bytes, number: int, data: bytes = b"") -> None:
        with self._sending:
            self._out.write(FRAME.pack(kind, number, len(data)) + data)
            self._out.flush()


def main(arguments: list[str]) -> int:
    """Listen and carry."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(SOCKET))
        SOCKET.chmod(0o666)
        listener.listen(CONNECTIONS_MAX)
        Relay(listener, int(arguments[0]), sys.stdin.buffer, sys.stdout.buffer).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
