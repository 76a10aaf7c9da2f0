"""The spans of a run's `trace.otlp.jsonl`, as OTLP/JSON has them; who writes them is `sink`, who reads them `span_tree`."""

import json
from collections.abc import Iterator
from typing import Any


def spans_of(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield every span of the whole lines in `data`; a line that a bad disk made unreadable is passed over."""
    for line in data.splitlines():
        try:
            resources = json.loads(line)["resourceSpans"]
            yield from [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"] if "spanId" in span]
        except (ValueError, KeyError, TypeError):
            continue
