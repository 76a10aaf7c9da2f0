"""The standard names of an OTLP exporter mean what their specification says."""

from pathlib import Path

import pytest

from sandbox.contract.errors import ConfigError
from supervisor.api.traces.export.endpoint import TIMEOUT_S, TIMEOUT_S_MAX, Endpoint

BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "http://collector:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector/otlp/"}, "https://collector/otlp/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector/own"}, "http://collector/own"),
        (BASE | {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://other/own"}, "http://other/own"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318/v1/traces"),
        (BASE | {"OTEL_TRACES_EXPORTER": "otlp,console"}, "http://collector:4318/v1/traces"),
        (BASE | {"OTEL_TRACES_EXPORTER": "zipkin"}, None),
        (BASE | {"OTEL_TRACES_EXPORTER": "none"}, None),
        (BASE | {"OTEL_SDK_DISABLED": "TRUE"}, None),
        ({}, None),
    ],
)
def test_the_address_is_the_one_named(environment: dict[str, str], url: str | None) -> None:
    """The path of traces is added to the address of all signals, and to no other."""
    endpoint = Endpoint.of(environment)

    assert (endpoint.url if endpoint else None) == url


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", TIMEOUT_S), ("1", 0.001), ("2500", 2.5), (f"{TIMEOUT_S_MAX * 1000:.0f}", TIMEOUT_S_MAX), ("60000", TIMEOUT_S_MAX)],
)
def test_a_timeout_is_in_milliseconds_and_bounded(text: str, seconds: float) -> None:
    """A request must end within its messages' turn in the buffer."""
    endpoint = Endpoint.of(BASE | {"OTEL_EXPORTER_OTLP_TIMEOUT": text})

    assert endpoint is not None
    assert endpoint.timeout_s == seconds


def test_what_is_said_of_traces_wins_over_what_is_said_of_all() -> None:
    """Each name by itself."""
    endpoint = Endpoint.of(
        BASE
        | {"OTEL_EXPORTER_OTLP_HEADERS": "a=1", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "b=2, c = %C3%A4,junk,=x"}
        | {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "none"}
        | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}
    )

    assert endpoint is not None
    assert endpoint.headers == (("b", "2"), ("c", "ä"))
    assert (endpoint.is_gzip, endpoint.is_json) == (False, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://"),
    ],
)
def test_what_cannot_be_honoured_is_named(name: str, value: str) -> None:
    """Silence would look like an empty collector."""
    with pytest.raises(ConfigError, match=name.removeprefix("OTEL_EXPORTER_OTLP_").removeprefix("TRACES_")):
        Endpoint.of(BASE | {name: value})


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Before the first request."""
    endpoint = Endpoint.of(BASE | {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "none.pem")})

    assert endpoint is not None
    with pytest.raises(ConfigError, match="CERTIFICATE"):
        endpoint.trust()
