"""Which package indexes this host uses, in the words of its own pip and npm: their configuration files and environment.

What a person set for pip and npm on the executor's host is the whole allow-list of places (ABUSE W15). Credentials in it
stay here; a repository's own `.npmrc` or `pip.conf` is never read. Not: what is asked for there (`proxy`).
"""

import base64
import configparser
import netrc
import os
import re
import ssl
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from sandbox.contract.errors import ConfigError
from sandbox.contract.packages import Ecosystem
from sandbox.gateway.operator_network import proxy_for, trust_of
from sandbox.gateway.registries.address import AddressRefused, checked_host

FILE_BYTES_MAX = 256 << 10
INDEXES_MAX = 8
"""Of pip: the first and the extra ones."""
_PIP_SECTIONS = ("global", "install", ":env:")


@dataclass(frozen=True)
class Index:
    """One package index; the credential is not in its `repr`."""

    ecosystem: Ecosystem
    url: str
    """http(s)://host[:port][/path] without a user, without a slash at its end."""
    authorization: str = field(default="", repr=False)
    """Header for requests to this very origin; empty: none."""
    proxy: str | None = field(default=None, repr=False)
    trust: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Return scheme, host and port."""
        return origin_of(urlsplit(self.url))


@dataclass(frozen=True)
class Indexes:
    """Everything the host's configuration allows."""

    pip: tuple[Index, ...] = ()
    npm: Index | None = None
    npm_scopes: Mapping[str, Index] = field(default_factory=dict)
    """Registry of a scope, by `@scope`."""

    @property
    def secrets(self) -> set[str]:
        """Return the credentials, as they are sent and as they were written down."""
        sent = {each.authorization for each in (*self.pip, self.npm, *self.npm_scopes.values()) if each is not None and each.authorization}
        return {part for header in sent for part in (*header.split(" ")[1:], *_plain(header))}

    def npm_of(self, name: str) -> Index | None:
        """Return the registry of a package."""
        return self.npm_scopes.get(name.partition("/")[0], self.npm)


@dataclass(frozen=True)
class Places:
    """Where the configuration is; another root only in tests."""

    home: Path
    root: Path = Path("/")
    site: Path = Path(sys.prefix)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Places":
        """Return the places of whoever runs the executor."""
        return cls(Path(environment.get("HOME") or Path.home()))


def read_indexes(environment: Mapping[str, str], places: Places, *, pip_default: str = "", npm_default: str = "") -> Indexes:
    """Read pip's and npm's configuration.

    Args:
        environment: Of the executor.
        places: Where files are.
        pip_default: pip's own index, for a host that configures none.
        npm_default: npm's own registry.

    Raises:
        ConfigError: A file or a value makes no sense; a credential is never quoted.
    """
    npm = _npm_settings(environment, places)
    scopes = {key.removesuffix(":registry"): value for key, value in npm.items() if key.startswith("@") and key.endswith(":registry")}
    registry = npm.get("registry") or npm_default
    return Indexes(
        pip=_pip_indexes(environment, places, pip_default),
        npm=_npm_index(registry, npm, environment) if registry else None,
        npm_scopes={scope: _npm_index(url, npm, environment) for scope, url in scopes.items()},
    )


def origin_of(parts: SplitResult) -> tuple[str, str, int]:
    """Return scheme, host and port of an address."""
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _pip_indexes(environment: Mapping[str, str], places: Places, default: str) -> tuple[Index, ...]:
    settings = _pip_settings(environment, places)
    if settings.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        return ()
    urls = [settings.get("index-url") or default, *settings.get("extra-index-url", "").split()]
    if len(urls) > INDEXES_MAX:
        raise ConfigError(f"pip's configuration names {len(urls)} indexes; at most {INDEXES_MAX}")
    network = _network(environment, settings.get("cert") or environment.get("REQUESTS_CA_BUNDLE"), settings.get("proxy"))
    return tuple(_index("pip", url, network, _from_netrc(url, environment, places)) for url in dict.fromkeys(urls) if url)


def _pip_settings(environment: Mapping[str, str], places: Places) -> dict[str, str]:
    """Return pip's settings by key as its `install` command sees them: files in pip's order, then the environment."""
    found: dict[str, dict[str, str]] = {section: {} for section in _PIP_SECTIONS}
    for path in _pip_files(environment, places):
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(_text(path))
        except configparser.Error as error:
            raise ConfigError(f"{path} is not in pip's format: {type(error).__name__}") from error
        for section in ("global", "install"):
            if parser.has_section(section):
                found[section] |= {_pip_key(key): value.strip() for key, value in parser.items(section)}
    # As pip does, only upper case, and an empty value counts as none.
    found[":env:"] = {_pip_key(name[4:]): value for name, value in environment.items() if name.startswith("PIP_") and value}
    return {key: value for section in _PIP_SECTIONS for key, value in found[section].items()}


def _pip_files(environment: Mapping[str, str], places: Places) -> Iterator[Path]:
    named = environment.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return
    config = environment.get("XDG_CONFIG_HOME") or str(places.home / ".config")
    paths = [
        places.root / "etc/xdg/pip/pip.conf",
        places.root / "etc/pip.conf",
        places.home / ".pip/pip.conf",
        Path(config) / "pip/pip.conf",
        places.site / "pip.conf",
        *([Path(named)] if named else []),
    ]
    yield from (path for path in paths if path.is_file())


def _pip_key(key: str) -> str:
    return key.lower().replace("_", "-").removeprefix("--")


def _npm_settings(environment: Mapping[str, str], places: Places) -> dict[str, str]:
    """Return npm's settings: global file, the person's, the environment; the last one wins."""
    own = {name.lower(): value for name, value in environment.items() if name.lower().startswith("npm_config_") and value}
    shared = [places.root / "etc/npmrc", places.root / "usr/etc/npmrc", places.root / "usr/local/etc/npmrc"]
    if "npm_config_globalconfig" in own:
        shared = [Path(own["npm_config_globalconfig"])]
    settings: dict[str, str] = {}
    for path in (*shared, Path(own.get("npm_config_userconfig") or places.home / ".npmrc")):
        if path.is_file():
            settings |= dict(_npm_lines(_text(path), environment))
    return settings | {name.removeprefix("npm_config_").replace("_", "-"): value for name, value in own.items()}


def _npm_lines(text: str, environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith((";", "#")):
            plain = value.strip().strip("\"'")
            # An unset variable stays as it is written, as with npm.
            yield key.strip(), re.sub(r"\$\{(\w+)\}", lambda match: environment.get(match[1], match[0]), plain)


def _npm_index(url: str, settings: Mapping[str, str], environment: Mapping[str, str]) -> Index:
    proxy = settings.get("https-proxy") or settings.get("proxy")
    # npm's `cafile` replaces the usual certificates, NODE_EXTRA_CA_CERTS adds to them.
    cafile = settings.get("cafile") or environment.get("NODE_EXTRA_CA_CERTS")
    given = proxy if proxy not in {None, "null", "false"} else None
    return _index("npm", url, _network(environment, cafile if cafile != "null" else None, given), _npm_authorization(url, settings))


def _npm_authorization(url: str, settings: Mapping[str, str]) -> str:
    """Return the header npm would send: the setting of the longest `//host/path/` the registry is below."""
    parts = urlsplit(url)
    path = f"//{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/"
    while path != "//":
        if token := settings.get(f"{path}:_authToken"):
            return f"Bearer {token}"
        if basic := settings.get(f"{path}:_auth"):
            return f"Basic {basic}"
        user, password = settings.get(f"{path}:username"), settings.get(f"{path}:_password")
        if user and password:
            return _basic(user, base64.b64decode(password, validate=False).decode("utf-8", errors="replace"))
        path = path.rstrip("/").rpartition("/")[0] + "/"
    return ""


def _network(environment: Mapping[str, str], certificates: str | None, proxy: str | None) -> dict[str, str]:
    """Return the environment that reaches an index: the tool's own settings before the general ones."""
    ours = dict(environment)
    if certificates:
        ours["SSL_CERT_FILE"] = certificates
        ours.pop("SSL_CERT_DIR", None)
    if proxy:
        ours |= dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), proxy)
    return ours


def _index(ecosystem: Ecosystem, url: str, network: Mapping[str, str], authorization: str) -> Index:
    parts = urlsplit(url.strip())
    try:
        host, port = checked_host(parts.hostname or ""), parts.port
    except (AddressRefused, ValueError) as error:
        raise ConfigError(f"{ecosystem}'s configuration names an index whose host or port makes no sense") from error
    if parts.scheme not in {"http", "https"} or parts.query or parts.fragment:
        raise ConfigError(f"{ecosystem}'s configuration names an index on {host} that is not http(s)://host[:port][/path]")
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    plain = urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
    if parts.username:
        authorization = _basic(unquote(parts.username), unquote(parts.password or ""))
    if not re.fullmatch(r"[ -~]{0,8192}", authorization):
        raise ConfigError(f"{ecosystem}'s credential for {host} holds characters that no header has")
    return Index(
        ecosystem, plain, authorization, proxy_for(urlsplit(plain), network), trust_of(network) if parts.scheme == "https" else None
    )


def _from_netrc(url: str, environment: Mapping[str, str], places: Places) -> str:
    path = Path(environment.get("NETRC") or places.home / ".netrc")
    if not path.is_file():
        return ""
    try:
        found = netrc.netrc(str(path)).hosts.get(urlsplit(url).hostname or "")
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
        return ""  # pip goes on without it too
    return _basic(found[0], found[2]) if found else ""


def _plain(header: str) -> tuple[str, ...]:
    kind, _, value = header.partition(" ")
    if kind != "Basic":
        return ()
    pair = base64.b64decode(value).decode("utf-8", errors="replace")
    return pair, pair.partition(":")[2]


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {FILE_BYTES_MAX >> 10} KiB")
    return data.decode("utf-8", errors="replace")


__all__ = ["Index", "Indexes", "Places", "origin_of", "read_indexes"]
