"""Listens on this host's address in the engine's default network, so that what gets out of a container is heard; it decides nothing."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

UNHEARD_PORT = 9
"""Tried where nobody can listen: the engine's network is in another namespace than we are. That a packet left counts all the same."""
_HEADER_BYTES = 12
"""Of a question (RFC 1035)."""


@dataclass(frozen=True)
class Ear:
    """Where it listens; an empty host: the engine has no default network."""

    host: str
    tcp_port: int
    udp_port: int


@asynccontextmanager
async def ear(host: str) -> AsyncIterator[Ear]:
    """Accept connections and answer a name server's questions at `host` while the context is open."""
    if not host or not _is_ours(host):
        yield Ear(host, UNHEARD_PORT, UNHEARD_PORT)
        return
    server = await asyncio.start_server(_hang_up, host, 0)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_NameServer, local_addr=(host, 0))
    try:
        yield Ear(host, server.sockets[0].getsockname()[1], transport.get_extra_info("sockname")[1])
    finally:
        transport.close()
        server.close()


def _is_ours(host: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trying:
        trying.bind((host, 0))
        return True
    return False


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


class _NameServer(asyncio.DatagramProtocol):
    """Answers that there is no such name."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own is none by its class (Python 3.11).
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if len(data) >= _HEADER_BYTES:
            self._transport.sendto(data[:2] + b"\x81\x83" + data[4:], address)
