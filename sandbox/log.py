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


class PlainLines(logging.Formatter):
    """The same for a person at a terminal: the time, what happened, and the fields as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, without control characters."""
        fields = [f"{key}={_plain(value)}" for key, value in record.__dict__.items() if key not in _STANDARD and _plain(value) != ""]
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = " ".join([when, record.getMessage()[:FIELD_CHARS_MAX], *fields])
        # An exception may quote an agent: its lines are set in, so that none of them can pass for a record.
        below = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return "\n".join([_printable(line), *(f"  {_printable(each)}" for each in below)])


def say_on_stdout(service: str) -> None:
    """Send the log lines of this process to stdout: plain ones to a terminal, JSON elsewhere; stderr is left for the last word."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(PlainLines() if sys.stdout.isatty() else JsonLines(service))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def log_to_stderr(service: str) -> None:
    """Send the log lines of this process, from level info on, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(service))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else " " for char in line)


def _plain(value: object) -> object:
    return value if isinstance(value, (bool, int, float)) or value is None else str(value)[:FIELD_CHARS_MAX]
