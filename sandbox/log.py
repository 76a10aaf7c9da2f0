"""Log lines of our processes: events with fields, one JSON object a line on stderr; not spans (`telemetry`), never prompts or keys."""

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
FIELD_CHARS_MAX = 2_000


class JsonLines(logging.Formatter):
    """Fields of TRACING.md §4; what a call gives as `extra` stands beside them."""

    def __init__(self, service: str) -> None:
        """Name the service, e.g. `andon-exec`."""
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, whatever the fields hold."""
        fields: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "service.name": self._service,
            "msg": record.getMessage()[:FIELD_CHARS_MAX],
        }
        fields |= {key: _plain(value) for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            fields["exc"] = self.formatException(record.exc_info)[-4 * FIELD_CHARS_MAX :]
        return json.dumps(fields, ensure_ascii=True)


def log_to_stderr(service: str) -> None:
    """Send the log lines of this process, from level info on, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(service))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _plain(value: object) -> object:
    return value if isinstance(value, (bool, int, float)) or value is None else str(value)[:FIELD_CHARS_MAX]
