"""Messages between the process of the tests and that of the product: length, then JSON, on one socket; not what they mean."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

MESSAGE_BYTES_MAX = 16 << 20

_LENGTH = struct.Struct(">I")


class Broken(Exception):
    """The other end is gone, or what it says is no message."""


class Channel:
    """One end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            Broken: The other end is gone, or the message is larger than 16 MiB.
        """
        data = json.dumps(message).encode("utf-8", "surrogatepass")
        if len(data) > MESSAGE_BYTES_MAX:
            raise Broken(f"a message has {len(data)} bytes; at most {MESSAGE_BYTES_MAX}")
        try:
            self._end.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise Broken(f"the other process is gone: {error}") from error

    def receive(self) -> dict[str, Any]:
        """Wait for one message; the caller's own deadline is the bound.

        Raises:
            Broken: The other end is gone, or it sent no message of ours.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > MESSAGE_BYTES_MAX:
            raise Broken(f"a message has {length} bytes; at most {MESSAGE_BYTES_MAX}")
        try:
            message = json.loads(self._exactly(length).decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError) as error:
            raise Broken(f"a message is not JSON: {error}") from error
        if type(message) is not dict:
            raise Broken("a message is no JSON object")
        return message

    def close(self) -> None:
        """Hang up."""
        self._end.close()

    def _exactly(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            try:
                part = self._end.recv(min(count, 1 << 20))
            except OSError as error:
                raise Broken(f"the other process is gone: {error}") from error
            if not part:
                raise Broken("the other process is gone")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)
