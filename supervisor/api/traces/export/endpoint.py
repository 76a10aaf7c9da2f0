"""Where spans are exported to, as OpenTelemetry's standard names say; not how (`collector`)."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from sandbox.contract.errors import ConfigError

TIMEOUT_S: Final = 10.0
TIMEOUT_S_MAX: Final = 20.0
"""Of one request; a longer one would outlive its messages' turn in the buffer (`sandbox.bus.export_buffer`)."""
_PREFIX: Final = "OTEL_EXPORTER_OTLP_"
_DEFAULT: Final = "http://localhost:4318"
_PROTOCOLS: Final = ("http/protobuf", "http/json")
_COMPRESSIONS: Final = ("none", "gzip")


@dataclass(frozen=True)
class Endpoint:
    """A collector's address and how to speak to it."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = TIMEOUT_S
    is_gzip: bool = False
    is_json: bool = False
    certificate: str | None = None
    """File of the authorities to trust; None: this host's."""
    client_certificate: str | None = None
    client_key: str | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Endpoint | None":
        """Return what the standard names ask for; None: nobody wants spans.

        Raises:
            ConfigError: A value cannot be honoured; the message names it.
        """
        url = _url(environment)
        if url is None:
            return None
        if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
            raise ConfigError(f"{_PREFIX}ENDPOINT: {url[:200]!r} is no http:// or https:// address")
        return cls(
            url=url,
            headers=tuple(_headers(_value(environment, "HEADERS"))),
            timeout_s=_timeout_s(_value(environment, "TIMEOUT")),
            is_gzip=_one_of(environment, "COMPRESSION", _COMPRESSIONS) == "gzip",
            is_json=_one_of(environment, "PROTOCOL", _PROTOCOLS) == "http/json",
            certificate=_value(environment, "CERTIFICATE") or None,
            client_certificate=_value(environment, "CLIENT_CERTIFICATE") or None,
            client_key=_value(environment, "CLIENT_KEY") or None,
        )

    def trust(self) -> ssl.SSLContext:
        """Return whom a TLS connection trusts, and who we are on it.

        Raises:
            ConfigError: A file cannot be read.
        """
        try:
            context = ssl.create_default_context(cafile=self.certificate)
            if self.client_certificate:
                context.load_cert_chain(self.client_certificate, self.client_key)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"{_PREFIX}CERTIFICATE, CLIENT_CERTIFICATE or CLIENT_KEY: {error}") from error
        return context


def _url(environment: Mapping[str, str]) -> str | None:
    exporters = {name.strip().lower() for name in environment.get("OTEL_TRACES_EXPORTER", "").split(",")} - {""}
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or (exporters and "otlp" not in exporters):
        return None
    own, general = environment.get(f"{_PREFIX}TRACES_ENDPOINT", "").strip(), environment.get(f"{_PREFIX}ENDPOINT", "").strip()
    if own:
        return own
    if not general and not exporters:
        return None
    return (general or _DEFAULT).rstrip("/") + "/v1/traces"


def _value(environment: Mapping[str, str], name: str) -> str:
    """Return the value for traces, else the one for all signals; empty if there is none."""
    return (environment.get(f"{_PREFIX}TRACES_{name}") or environment.get(f"{_PREFIX}{name}") or "").strip()


def _one_of(environment: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    value = _value(environment, name).lower() or known[0]
    if value not in known:
        raise ConfigError(f"{_PREFIX}{name}: {value[:40]!r} is not spoken here, {' or '.join(known)} is")
    return value


def _headers(text: str) -> list[tuple[str, str]]:
    """Return the pairs of `key1=value1,key2=value2`, whose parts are percent-encoded; what is no pair is left out."""
    pairs = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return [(unquote(key).strip(), unquote(value).strip()) for key, _, value in pairs if key.strip()]


def _timeout_s(text: str) -> float:
    """Return seconds from the milliseconds of the specification, at most `TIMEOUT_S_MAX`."""
    if not text:
        return TIMEOUT_S
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"{_PREFIX}TIMEOUT: {text[:40]!r} is no number of milliseconds above 0")
    return min(int(text) / 1_000, TIMEOUT_S_MAX)
