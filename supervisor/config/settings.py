"""What a process is configured with, read once; not what a run is asked for (`pipeline/submit.py`).

A value comes from a flag, else the environment, else the person's own file, else the default, and `origins` says which.
The file is the person's (`$XDG_CONFIG_HOME/andon/config.yaml`), never the repository's: a repository we have never seen
must not choose where a key is sent or what is spent (SECURITY.md).
"""

import hashlib
import json
import os
import pwd
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from sandbox.contract.model import Frozen
from sandbox.log import LEVEL, Level
from supervisor.errors import ConfigError, UsageError

CONFIG_FILE_BYTES_MAX = 64 << 10

_NANO = 10**9
_USD_MAX = Decimal(1_000_000)

ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "budget_usd": ("ANDON_BUDGET_USD",),
    "warn_usd": ("ANDON_WARN_USD",),
    "mode": ("ANDON_MODE",),
    "baseline": ("ANDON_BASELINE",),
    "slots": ("ANDON_SLOTS",),
    "models": ("ANDON_MODELS",),
    "state_directory": ("ANDON_STATE_DIRECTORY",),
    "nats_url": ("NATS_URL",),
    "nats_creds": ("NATS_CREDS",),
    "listen": ("ANDON_LISTEN",),
    "advertise": ("ANDON_ADVERTISE",),
    "broker_directory": ("ANDON_BROKER_DIRECTORY",),
    "http": ("ANDON_HTTP",),
    "priority": ("ANDON_PRIORITY",),
    "strict": ("ANDON_STRICT",),
    "database_url": ("ANDON_DATABASE_URL",),
    "disk_floor_mib": ("ANDON_DISK_FLOOR_MIB",),
    "log_level": (LEVEL,),
    "docker_host": ("DOCKER_HOST",),
    "otlp_endpoint": ("OTEL_EXPORTER_OTLP_ENDPOINT",),
    "jaeger_ui": ("ANDON_JAEGER_UI",),
    "traceparent": ("TRACEPARENT",),
    "no_color": ("NO_COLOR",),
    "ci": ("CI",),
}
"""The environment's name of each key; standard names are honoured, not reinvented."""

ENVIRONMENT_ONLY = frozenset({"traceparent", "no_color", "ci", "provider", "telemetry"})
"""Keys that describe this one process, so that a file may not set them."""

PROVIDER_ENVIRONMENT = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
)
"""What the gateway's upstream is made from (DECISIONS D10, D14); the values never leave this host."""

_OTLP = ("HEADERS", "TIMEOUT", "COMPRESSION", "PROTOCOL", "CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
TELEMETRY_ENVIRONMENT = (
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    *(f"OTEL_EXPORTER_OTLP_{name}" for name in _OTLP),
    *(f"OTEL_EXPORTER_OTLP_TRACES_{name}" for name in _OTLP),
)
"""OpenTelemetry's own names that decide which runs are traced and where their spans go; the headers may hold a key."""


def parse_usd(value: object) -> Decimal:
    """Return an amount of US dollars.

    Raises:
        ValueError: Not a decimal above 0 and at most 1,000,000 with at most 9 places.
    """
    try:
        amount = Decimal(str(value).strip())
    except InvalidOperation:
        raise ValueError(f"{value!r} is not an amount in US dollars, e.g. 2.50") from None
    if not amount.is_finite() or not 0 < amount <= _USD_MAX or amount * _NANO != int(amount * _NANO):
        raise ValueError(f"{value!r} is not an amount in US dollars above 0, at most {_USD_MAX:,}, with at most 9 decimals")
    return amount


def nano_usd(amount: Decimal) -> int:
    """Return an amount in integer nano-USD (DECISIONS D13)."""
    return int(amount * _NANO)


Usd = Annotated[Decimal, BeforeValidator(parse_usd)]


class Config(Frozen):
    """Everything a process reads from outside itself, checked. Every key is documented in `docs/cli.md`."""

    budget_usd: Usd = Decimal(50)
    """A run stops, its work kept, before it would spend more."""
    warn_usd: Usd = Decimal(10)
    """A run says once that it has spent this much."""
    mode: Literal["parallel", "sequential"] = "parallel"
    """Whether stages that do not depend on each other run at the same time."""
    baseline: bool = True
    """Whether the checks run on the base commit before the first model call (DECISIONS G14)."""
    slots: int = Field(2, ge=1, le=64)
    """Attempts the embedded executor runs at once; 2, because implement and test are a pair."""
    models: dict[str, str] = Field(default_factory=dict, max_length=64)
    """A model's name in a pipeline file to the one that is called, for pipelines written for other models."""
    state_directory: Path = Path("/nonexistent")
    """Where runs, mirrors and the embedded broker's store lie (DECISIONS G10)."""
    nats_url: str | None = None
    """A fleet's broker; None: the embedded stack."""
    nats_creds: Path | None = None
    """Credentials for that broker; a `NAME.andon.json` also says where it is."""
    listen: str | None = None
    """HOST:PORT on which the embedded broker serves other hosts too; None: this host alone."""
    advertise: str | None = Field(None, pattern=r"^[A-Za-z0-9_.:-]{1,253}$")
    """The name or address by which other hosts reach that broker; None: the host of `listen`, or this host's name."""
    broker_directory: Path | None = None
    """Where the broker's keys and configuration lie that `andon fleet` changes; None: the embedded broker's."""
    http: str | None = None
    """HOST:PORT of the supervisor's `/metrics`, `/healthz` and `/runs/ID`, e.g. 127.0.0.1:8950; None: it serves no pages."""
    priority: int = Field(5, ge=1, le=10)
    """Of a run's jobs; 10 is the most urgent."""
    strict: bool = False
    """Runs are refused where a sandbox would do without any protection; a pipeline's stages may say so for themselves."""
    database_url: str | None = Field(None, pattern=r"^postgres(?:ql)?(?:\+psycopg)?://", repr=False)
    """A PostgreSQL server that keeps the history; None: a file in the state directory. May hold a password: never printed."""
    disk_floor_mib: int = Field(1024, ge=0)
    """A supervisor whose state directory has less room takes no new runs, an executor no new jobs, until it has more; 0: always."""
    log_level: Level = "info"
    """From which level on the stack, its supervisor and its executor log."""
    docker_host: str | None = None
    """The engine's address; None: the current context, else the default socket (DECISIONS G15)."""
    otlp_endpoint: str | None = None
    """Where traces are exported by OTLP/HTTP; None: only to the run's file."""
    jaeger_ui: str | None = Field(None, pattern=r"^(none|https?://[^\s?#]{1,500})$")
    """Address of the Jaeger page that shows what is exported; `none`: there is none; None: port 16686 of the collector's host."""
    traceparent: str | None = None
    """W3C context of the caller: a run's trace links to it."""
    no_color: bool = False
    ci: bool = False
    """No live display: plain lines, also on a terminal."""
    provider: dict[str, str] = Field(default_factory=dict, repr=False, exclude=True)
    """The names of `PROVIDER_ENVIRONMENT` that are set; never printed, logged or stored."""
    telemetry: dict[str, str] = Field(default_factory=dict, repr=False, exclude=True)
    """The names of `TELEMETRY_ENVIRONMENT` that are set, the endpoint also from the file; never logged or stored."""
    origins: dict[str, str] = Field(default_factory=dict, repr=False, exclude=True)
    """Where each value came from, e.g. `environment NATS_URL`."""

    @property
    def is_remote(self) -> bool:
        """Return whether the fleet is elsewhere; otherwise it is this host's embedded stack."""
        return self.nats_url is not None or self.nats_creds is not None

    @property
    def has_provider_key(self) -> bool:
        """Return whether this process can ask the model (DECISIONS D14)."""
        return bool(self.provider.get("ANTHROPIC_API_KEY") or self.provider.get("ANTHROPIC_AUTH_TOKEN"))

    @property
    def provider_fingerprint(self) -> str:
        """Return a digest that differs when the provider's environment does; it does not reveal the key."""
        return hashlib.sha256(b"andon.provider\0" + json.dumps(self.provider, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def telemetry_fingerprint(self) -> str:
        """Return a digest that differs when what is traced, or where to, does; it does not reveal a header."""
        return hashlib.sha256(b"andon.telemetry\0" + json.dumps(self.telemetry, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def budget_nano_usd(self) -> int:
        """Return the budget in integer nano-USD."""
        return nano_usd(self.budget_usd)

    @property
    def warn_nano_usd(self) -> int:
        """Return the warning threshold in integer nano-USD, never above the budget."""
        return min(nano_usd(self.warn_usd), self.budget_nano_usd)

    def rows(self) -> list[tuple[str, str, str]]:
        """Return key, shown value and origin of each setting, in the order of the documentation."""
        shown = [(key, _shown_of(key, getattr(self, key)), self.origins.get(key, "default")) for key in ENVIRONMENT]
        for name in PROVIDER_ENVIRONMENT:
            if name in self.provider:
                secret = name in {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"}
                shown.append((name, "set" if secret else _without_userinfo(self.provider[name]), f"environment {name}"))
        for name in TELEMETRY_ENVIRONMENT:
            if name in self.telemetry and name not in ENVIRONMENT["otlp_endpoint"]:
                value = "set" if name.endswith("_HEADERS") else _without_userinfo(self.telemetry[name])
                shown.append((name, value, f"environment {name}"))
        return shown


def load(flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Read the configuration once.

    Args:
        flags: Values given on the command line, by key; None means not given.
        environ: The environment; None: this process's own.

    Raises:
        ConfigError: The file is not YAML, has an unknown key, or a value is wrong; the message names file or variable.
        UsageError: A flag's value is wrong.
    """
    environ = os.environ if environ is None else environ
    path = _config_file(environ)
    values: dict[str, Any] = {"state_directory": _default_state_directory(environ)}
    origins = {"state_directory": "environment XDG_STATE_HOME" if _absolute(environ, "XDG_STATE_HOME") else "default"}
    for key, value in _file_values(path).items():
        values[key], origins[key] = value, f"file {path}"
    for key, names in ENVIRONMENT.items():
        for name in names:
            if environ.get(name):
                values[key], origins[key] = _from_text(key, environ[name]), f"environment {name}"
    for key, value in (flags or {}).items():
        if value is not None:
            values[key], origins[key] = value, f"flag --{key.removesuffix('_usd').replace('_', '-')}"
    provider = {name: environ[name] for name in PROVIDER_ENVIRONMENT if environ.get(name)}
    telemetry = {name: environ[name] for name in TELEMETRY_ENVIRONMENT if environ.get(name)}
    if values.get("otlp_endpoint"):
        telemetry["OTEL_EXPORTER_OTLP_ENDPOINT"] = str(values["otlp_endpoint"])
    try:
        config = Config(**{**values, "provider": provider, "telemetry": telemetry, "origins": origins})
    except ValidationError as error:
        raise _explained(error, origins) from None
    if not config.state_directory.is_absolute():
        raise ConfigError(f"state_directory ({origins['state_directory']}): {config.state_directory} is not an absolute path")
    return config


def process_environment() -> Mapping[str, str]:
    """Return this process's environment, for the programs that are handed one; the only other reading of it is `load`."""
    return os.environ


def _explained(error: ValidationError, origins: Mapping[str, str]) -> UsageError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    key = str(first["loc"][0]) if first["loc"] else "configuration"
    origin = origins.get(key, "default")
    message = str(first["msg"]).removeprefix("Value error, ")
    if origin.startswith("flag"):
        return UsageError(f"{origin.removeprefix('flag ')}: {message}")
    return ConfigError(f"{origin}: {key}: {message}")


def _from_text(key: str, text: str) -> object:
    """Turn a variable into a value; `NO_COLOR` and `CI` count by being set to anything but a plain no."""
    if key in {"no_color", "ci"}:
        return key == "no_color" or text.lower() not in {"0", "false", "no", "off"}
    if key == "log_level":
        return text.lower()
    if key == "models":
        pairs = (each.strip().partition("=") for each in text.split(",") if each.strip())
        return {name.strip(): meant.strip() or None for name, _, meant in pairs}
    return text


def _config_file(environ: Mapping[str, str]) -> Path:
    if environ.get("ANDON_CONFIG"):
        return Path(environ["ANDON_CONFIG"])
    base = _absolute(environ, "XDG_CONFIG_HOME") or _home(environ) / ".config"
    return base / "andon" / "config.yaml"


def _default_state_directory(environ: Mapping[str, str]) -> Path:
    return (_absolute(environ, "XDG_STATE_HOME") or _home(environ) / ".local" / "state") / "andon"


def _absolute(environ: Mapping[str, str], name: str) -> Path | None:
    """Return a directory of the XDG rules, which say that a relative one is ignored."""
    path = Path(environ.get(name) or ".")
    return path if path.is_absolute() else None


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)


def _file_values(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_FILE_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > CONFIG_FILE_BYTES_MAX:
        raise ConfigError(f"{path}: more than {CONFIG_FILE_BYTES_MAX} bytes")
    try:
        content = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping of keys to values")
    allowed = [key for key in ENVIRONMENT if key not in ENVIRONMENT_ONLY]
    for key in content:
        if key not in allowed:
            raise ConfigError(f"{path}: unknown key {str(key)!r}; known: {', '.join(allowed)}")
    return {str(key): value for key, value in content.items() if value is not None}


def _shown_of(key: str, value: object) -> str:
    # A URL has more places for a password than one expression finds (`?password=`, an `@` inside it).
    return "set" if key == "database_url" and value is not None else _shown(value)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ",".join(f"{name}={meant}" for name, meant in value.items()) or "-"
    return _without_userinfo(str(value))


def _without_userinfo(text: str) -> str:
    """Return a URL without its user and password."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)
