"""Where a person looks at what is exported: the address of Jaeger's page; exporting is `export`'s."""

from typing import Final
from urllib.parse import urlsplit

from sandbox.contract.errors import ConfigError
from supervisor.api.traces.export.endpoint import Endpoint
from supervisor.config import Config

PORT: Final = 16686
"""Of Jaeger's page."""


def traces_at(config: Config) -> str:
    """Return the address below which `/trace/ID` shows a run's trace, without a final slash; empty: nothing is exported, or not shown.

    Without a setting it is the page of a Jaeger on the collector's host. A collector behind TLS is some service's, whose page is
    unknown: it is to be set.
    """
    try:
        endpoint = Endpoint.of(config.telemetry)
    except ConfigError:  # the exporter says so, and exports nothing
        return ""
    if endpoint is None or config.jaeger_ui == "none":
        return ""
    if config.jaeger_ui is not None:
        return config.jaeger_ui.rstrip("/")
    url = urlsplit(endpoint.url)
    if url.scheme != "http" or url.hostname is None:
        return ""
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"http://{host}:{PORT}"
