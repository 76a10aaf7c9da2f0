"""How the operator's own environment reaches the network: proxies and certificates (DECISIONS D10); not what is asked for there."""

import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import httpx2

from sandbox.contract.errors import ConfigError


def proxy_for(parts: SplitResult, env: Mapping[str, str]) -> str | None:
    """Return the proxy an environment names for an address, None for a direct way.

    Raises:
        ConfigError: It is of a kind we do not speak to.
    """

    def value(name: str) -> str:
        return env.get(name.lower()) or env.get(name) or ""

    if _bypasses(parts, value("NO_PROXY")):
        return None
    proxy = value("HTTPS_PROXY" if parts.scheme == "https" else "HTTP_PROXY") or value("ALL_PROXY")
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if urlsplit(proxy).scheme not in {"http", "https"}:
        raise ConfigError("HTTPS_PROXY must be an http:// or https:// address; other kinds of proxies are not supported")
    return proxy


def _bypasses(parts: SplitResult, no_proxy: str) -> bool:
    """Return whether a comma-separated NO_PROXY names the host: itself, a parent domain, an address range, or `*`."""
    host = (parts.hostname or "").lower()
    for entry in no_proxy.lower().split(","):
        name = entry.strip().lstrip(".")
        if name and (name in {"*", host, f"{host}:{parts.port}"} or host.endswith(f".{name}") or _is_within(host, name)):
            return True
    return False


def _is_within(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def trust_of(env: Mapping[str, str]) -> ssl.SSLContext:
    """Return the certificates an environment trusts: SSL_CERT_FILE, SSL_CERT_DIR, else the usual ones.

    Raises:
        ConfigError: What it names does not exist, or holds none.
    """
    file, directory = env.get("SSL_CERT_FILE") or None, env.get("SSL_CERT_DIR") or None
    if not file and not directory:
        return httpx2.create_ssl_context(trust_env=False)
    for name, path in (("SSL_CERT_FILE", file), ("SSL_CERT_DIR", directory)):
        if path and not Path(path).exists():
            raise ConfigError(f"{name}: {path} does not exist")
    try:
        return ssl.create_default_context(cafile=file, capath=directory)
    except ssl.SSLError as error:
        raise ConfigError(f"SSL_CERT_FILE: {file} holds no certificates in PEM form") from error
