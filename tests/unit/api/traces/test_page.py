"""Where a run's trace is looked at, from how the supervisor exports."""

import pytest

from supervisor.api.traces.page import traces_at
from supervisor.config import load

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ""),
        ({ENDPOINT: "http://127.0.0.1:4318"}, "http://127.0.0.1:16686"),
        ({ENDPOINT: "http://collector.example:4318/", TRACES_ENDPOINT: "http://traces.example/v1/traces"}, "http://traces.example:16686"),
        ({ENDPOINT: "http://[::1]:4318"}, "http://[::1]:16686"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:16686"),
        ({ENDPOINT: "https://otlp.service.example"}, ""),
        ({ENDPOINT: "https://otlp.service.example", "ANDON_JAEGER_UI": "https://ui.example/jaeger/"}, "https://ui.example/jaeger"),
        ({ENDPOINT: "http://127.0.0.1:4318", "ANDON_JAEGER_UI": "none"}, ""),
        ({"ANDON_JAEGER_UI": "http://127.0.0.1:16686"}, ""),
        ({ENDPOINT: "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, ""),
        ({ENDPOINT: "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({ENDPOINT: "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ""),
    ],
)
def test_the_page_is_the_one_set_or_a_jaeger_beside_the_collector(environment: dict[str, str], expected: str):
    """No link where nothing arrives, and none that is a guess about somebody's service."""
    assert traces_at(load(environ={"HOME": "/home/ada", **environment})) == expected


@pytest.mark.parametrize("address", ["jaeger:16686", "ftp://jaeger", "http://", "http://jaeger/?a=b", "http://jaeger /"])
def test_what_is_no_address_is_refused(address: str):
    """A link is built from it."""
    with pytest.raises(Exception, match="ANDON_JAEGER_UI"):
        load(environ={"HOME": "/home/ada", "ANDON_JAEGER_UI": address})
