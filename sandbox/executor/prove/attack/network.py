"""Attempts to send something out by IP: to this host, a name server, the cloud's metadata. Sent is a success, answered or not."""

import errno
import socket

from .attempts import Stopped, attempt, named

METADATA = "169.254.169.254"
_ANSWER_S = 1.0
_QUERY = b"\x13\x37\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05andon\x07invalid\x00\x00\x01\x00\x01"
"""A question of RFC 1035 for the address of andon.invalid."""
_LEFT = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH}
"""What can only be known after a packet left."""


def run(host: str, tcp_port: int, udp_port: int) -> None:
    """Try every way out.

    Args:
        host: An address of the engine's default network, on which the proof listens; empty if there is none.
        tcp_port: Where it accepts connections.
        udp_port: Where it answers a name server's questions.
    """
    attempt("network.tcp", lambda: _connect(_known(host), tcp_port))
    attempt("dns.query", lambda: _ask(_known(host), udp_port))
    attempt("network.route", lambda: _route(socket.AF_INET, "192.0.2.1"))
    attempt("network.ipv6", lambda: _route(socket.AF_INET6, "2001:db8::1"))
    attempt("metadata.route", lambda: _route(socket.AF_INET, METADATA))
    attempt("metadata.tcp", lambda: _connect(METADATA, 80))


def _known(host: str) -> str:
    if not host:
        raise Stopped("the engine has no default network")
    return host


def _connect(host: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as going:
        going.settimeout(_ANSWER_S)
        try:
            going.connect((host, port))
        except TimeoutError:
            return f"a connection to {host} was begun, nobody answered"
        except OSError as error:
            if error.errno in _LEFT:
                return f"{host} was asked: {named(error)}"
            raise
        return f"connected to {host}"


def _ask(host: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(_ANSWER_S)
        asking.sendto(_QUERY, (host, port))
        try:
            answer = asking.recv(512)
        except TimeoutError:
            return f"a question went to {host}, nobody answered"
        if not answer.startswith(_QUERY[:2]):
            raise Stopped("something else than a name server answered")
        return f"{host} answered a question for a name"


def _route(family: int, host: str) -> str:
    with socket.socket(family, socket.SOCK_DGRAM) as going:
        going.connect((host, 53))  # sends nothing: it asks the kernel for a way
        return f"there is a route to {host}"
