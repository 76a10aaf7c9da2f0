"""Where a broker listens and by what name others reach it; not its configuration (`config`)."""

import ipaddress
import re
import socket
from typing import Final, Self

from pydantic import Field, model_validator

from sandbox.contract.errors import UsageError
from sandbox.contract.model import Frozen

LOOPBACK: Final = "127.0.0.1"
ANY_PORT: Final = -1
"""The system chooses; a broker keeps what it was given."""
_HOST: Final = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?"
_ADDRESS: Final = re.compile(rf"({_HOST}|\[[0-9A-Fa-f:.]{{2,45}}\])(?::([0-9]{{1,5}}))?")


class Listen(Frozen):
    """Where a broker listens. Beyond loopback it speaks TLS, to everybody."""

    host: str = LOOPBACK
    """A name or an address, IPv6 without brackets; `0.0.0.0` and `::` are all of this host's."""
    port: int = Field(ANY_PORT, ge=ANY_PORT, le=65_535)
    advertise: str = ""
    """By what others reach it, `HOST` or `HOST:PORT`; empty: `host`, or this host's own name if that is all addresses."""

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        if self.port == 0:
            raise ValueError("port 0 is none; -1 lets the system choose")
        for address in (bracketed(self.host), self.advertise or LOOPBACK):
            _split(address)
        return self

    @classmethod
    def parse(cls, address: str, advertise: str | None = None) -> "Listen":
        """Return what a person wrote, `HOST:PORT` and `HOST` or `HOST:PORT`.

        Raises:
            UsageError: It is not that.
        """
        told = f"cannot listen on {address!r}" + (f" as {advertise!r}" if advertise else "")
        try:
            host, port = _split(address)
            listen = cls(host=host, port=port or ANY_PORT, advertise=advertise or "")
        except ValueError:
            raise UsageError(f"{told}: give HOST:PORT, e.g. 0.0.0.0:4222, and HOST or HOST:PORT by which others reach it") from None
        if port is None:
            raise UsageError(f"{told}: give a port, e.g. {address}:4222")
        return listen

    @property
    def is_loopback(self) -> bool:
        """Return whether only this host can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def scheme(self) -> str:
        """Return how a URL of it begins."""
        return "nats" if self.is_loopback else "tls"

    def url(self, port: int) -> str:
        """Return what others connect to, given the port it really got."""
        host, other_port = _split(self.advertise) if self.advertise else (self._own_name, None)
        return f"{self.scheme}://{bracketed(host)}:{other_port or port}"

    def local_url(self, port: int) -> str:
        """Return what processes of this host connect to."""
        return f"{self.scheme}://{bracketed(self._local)}:{port}"

    @property
    def names(self) -> tuple[str, ...]:
        """Return every name and address a certificate has to hold, sorted."""
        advertised = [_split(self.advertise)[0]] if self.advertise else []
        return tuple(sorted({*advertised, self._own_name, self._local, "localhost", LOOPBACK, "::1"}))

    @property
    def _is_everywhere(self) -> bool:
        return self.host in {"0.0.0.0", "::"}  # noqa: S104  (compared, not bound)

    @property
    def _own_name(self) -> str:
        return socket.gethostname() if self._is_everywhere else self.host

    @property
    def _local(self) -> str:
        return LOOPBACK if self._is_everywhere else self.host


def bracketed(host: str) -> str:
    """Return a host as it stands before `:port`."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _split(address: str) -> tuple[str, int | None]:
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f"{address!r} is no host")
    port = int(match[2]) if match[2] else None
    if port is not None and not 1 <= port <= 65_535:
        raise ValueError(f"port {port} is none")
    return match[1].strip("[]"), port
