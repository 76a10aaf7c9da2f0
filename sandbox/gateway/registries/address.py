"""Which addresses a package index may have: global ones, and those the operator permits; not who asks for them (`fetch`).

A name is resolved once and the connection goes to the address that was judged, so that a second answer of the DNS changes
nothing (ABUSE W14).
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

RESOLVE_S = 5.0
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)

# Python 3.11 calls these global, or they lead to an address inside another one (measured).
_NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",
        "2002::/16",  # 6to4
        "2001::/32",  # Teredo
        "::ffff:0:0/96",  # IPv4 in IPv6
        "::/96",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "168.63.129.16/32",  # a cloud's own service, on a public address
        "224.0.0.0/4",
        "ff00::/8",
    )
)


class AddressRefused(Exception):
    """A host may not be connected to; the message says which rule."""


def checked_host(text: str) -> str:
    """Return a host name or address in lower case.

    Raises:
        AddressRefused: It holds anything but the letters of a host name: a NUL, a percent sign, other digits than ours.
    """
    host = text.lower().rstrip(".")
    if _HOST.fullmatch(host) or literal_address(host) is not None:
        return host
    raise AddressRefused(f"{text[:80]!r} is no host name")


async def permitted_address(host: str, port: int, permitted: Sequence[Network]) -> str:
    """Return an address of `host` that may be connected to.

    Args:
        host: As `checked_host` returned it.
        port: Only for the resolver.
        permitted: Networks the operator permits although they are not global.

    Raises:
        AddressRefused: It has none.
        OSError: It cannot be resolved.
    """
    literal = literal_address(host)
    addresses = [literal] if literal is not None else await _resolved(host, port)
    allowed = [address for address in addresses if is_permitted(address, permitted)]
    if not allowed:
        raise AddressRefused(f"{host} is at {', '.join(map(str, addresses[:4]))}: not a global address, and not permitted by the operator")
    return str(allowed[0])


def is_permitted(address: Address, permitted: Sequence[Network]) -> bool:
    """Return whether an address is global, or in a network the operator permits."""
    if any(address in network for network in permitted if network.version == address.version):
        return True
    return address.is_global and not any(address in network for network in _NEVER if network.version == address.version)


def networks_of(text: str) -> tuple[Network, ...]:
    """Parse comma-separated networks, e.g. `10.20.0.0/16, fd00::/8`.

    Raises:
        ValueError: One of them is none.
    """
    return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip())


async def _resolved(host: str, port: int) -> list[Address]:
    if _looks_numeric(host):  # 127.1, 0x7f000001, 2130706433: the C library would take them for addresses
        raise AddressRefused(f"{host!r} is neither a host name nor an address as it is written today")
    async with asyncio.timeout(RESOLVE_S):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def _looks_numeric(host: str) -> bool:
    return re.fullmatch(r"(?:0x[0-9a-f]*|[0-9]+)", host.rpartition(".")[2]) is not None


def literal_address(host: str) -> Address | None:
    """Return the address a host is written as, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
