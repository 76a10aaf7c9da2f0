"""Log lines of our processes: events with fields on stderr, JSON or readable; not spans (`telemetry`), never prompts, keys or files.

A module says `log = Log(__name__)`, and then what happened: a stable name, what a person should read, and fields.

    log.warning("lease.lost", "another executor may have the job", decision=reply.decision)

Whose it is, a block says once: `with about(run_id=..., stage=...)` puts these fields on every line of the block, of the tasks it
starts and of its threads. Every name and field is listed in docs/logs.md.
"""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Final, Literal, TextIO, get_args

from sandbox.contract import ids
from sandbox.contract.errors import ConfigError
from sandbox.scrub import Scrub, secrets_of

Level = Literal["debug", "info", "warning", "error"]
Value = str | bool | int | float | os.PathLike[str] | None
Fields = Mapping[str, Value]

LEVEL: Final = "ANDON_LOG_LEVEL"
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
FIELD_CHARS_MAX = 2_000
TRACE_CHARS_MAX = 8_000
"""Of an exception's trace, its end."""
ID_CHARS = 12
"""Of a container's id, as `docker ps` shows it."""

FOREIGN: Final = "library.said"
"""The event of a line that is not ours."""
_OURS = ("sandbox", "supervisor", "__main__")
_GATEWAY = ("andon-gw", "sandbox.gateway.")
"""The gateway is a part of the executor's process, and a service of its own in traces and logs."""
_DIGEST = re.compile(rf"(sha256:[0-9a-f]{{{ID_CHARS}}})[0-9a-f]{{52}}")

NONE: Final[Fields] = MappingProxyType({})
_about: ContextVar[Fields] = ContextVar("about", default=NONE)


class Log:
    """Says what happens in one module: an event's name, what a person should read, and fields, `more` of them as a mapping."""

    def __init__(self, name: str) -> None:
        """Take the module's name."""
        self._logger = logging.getLogger(name)

    def debug(self, event: str, text: str = "", more: Fields = NONE, /, *, error: BaseException | None = None, **fields: Value) -> None:
        """Say what only somebody who looks for a fault wants to know."""
        self._say(logging.DEBUG, event, text, error, {**more, **fields})

    def info(self, event: str, text: str = "", more: Fields = NONE, /, *, error: BaseException | None = None, **fields: Value) -> None:
        """Say what happened; without `text` a person reads the event's words."""
        self._say(logging.INFO, event, text, error, {**more, **fields})

    def warning(self, event: str, text: str = "", more: Fields = NONE, /, *, error: BaseException | None = None, **fields: Value) -> None:
        """Say what went wrong and is dealt with."""
        self._say(logging.WARNING, event, text, error, {**more, **fields})

    def error(self, event: str, text: str = "", more: Fields = NONE, /, *, error: BaseException | None = None, **fields: Value) -> None:
        """Say what went wrong for good, by its message alone: it says what, which and what to do."""
        self._say(logging.ERROR, event, text, error, {**more, **fields})

    def exception(self, event: str, text: str = "", more: Fields = NONE, /, *, error: BaseException | None = None, **fields: Value) -> None:
        """Say a fault of ours, with its trace: of `error`, by default of the exception that is handled now."""
        error = error or sys.exception()
        self._say(logging.ERROR, event, text, error, {**more, **fields}, with_trace=True)

    def _say(self, level: int, event: str, text: str, error: BaseException | None, fields: Fields, *, with_trace: bool = False) -> None:
        if not self._logger.isEnabledFor(level):
            return
        why: dict[str, Value] = {"error.type": type(error).__name__, "error.message": str(error)} if error is not None else {}
        extra = {"event": event, "fields": {**fields, **why}}
        self._logger.log(level, text or _words(event), extra=extra, exc_info=error if with_trace else None)


@contextmanager
def about(**fields: Value) -> Iterator[None]:
    """Put fields on every line of a block; an inner block's fields win."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def note(**fields: Value) -> None:
    """Put fields on the lines that follow in the innermost block, e.g. what it learnt only now."""
    _about.set({**_about.get(), **fields})


def of_run(run_id: str, trace_flags: str = "") -> dict[str, Value]:
    """Return the fields of lines about a run as a whole; `trace_flags` are those of a W3C header, left out where nobody knows them."""
    flags = {"trace_flags": trace_flags} if trace_flags else {}
    return {"run_id": run_id, "trace_id": ids.trace_id(run_id), "span_id": ids.span_id(run_id), **flags}


def of_job(job_id: str, trace_flags: str = "") -> dict[str, Value]:
    """Return the fields of lines about a job; its id says run, stage and round."""
    run_id, rest = job_id[: ids.RUN_ID_CHARS], job_id[ids.RUN_ID_CHARS + 1 :]
    stage, _, round_ = rest.rpartition("-")
    return {**of_run(run_id, trace_flags), "job_id": job_id, "stage": stage, "round": int(round_)}


def of_attempt(job_id: str, attempt: int, trace_flags: str = "", *, is_executors: bool = True) -> dict[str, Value]:
    """Return the fields of lines about an attempt: those of an executor belong to its own span, the supervisor's to the stage's."""
    fields = of_job(job_id, trace_flags)
    path = ids.attempt_path(job_id[: ids.RUN_ID_CHARS], str(fields["stage"]), int(str(fields["round"])), attempt)
    return {**fields, "attempt": attempt, "span_id": ids.process_span_id(path) if is_executors else ids.span_id(path)}


def level_of(environment: Mapping[str, str]) -> Level:
    """Return from which level on lines are said.

    Raises:
        ConfigError: The variable is none of the levels.
    """
    text = (environment.get(LEVEL) or "info").lower()
    for level in LEVELS:
        if text == level:
            return level
    raise ConfigError(f"{LEVEL}={text!r} is none of {', '.join(LEVELS)}")


def log_to_stderr(service: str, environment: Mapping[str, str], level: Level | None = None, *, stream: TextIO | None = None) -> None:
    """Send the log lines of this process to stderr, readable ones to a terminal, else JSON; also a fault that ends it.

    Args:
        service: Its name in traces and logs, e.g. `andon-exec`.
        environment: Says the level (`ANDON_LOG_LEVEL`) and colours; the values of its secrets are never said.
        level: From which level on, if that is known already.
        stream: Where to, by default stderr.

    Raises:
        ConfigError: The environment's level is none.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter_for(stream, service, environment))
    # Of libraries only what is wrong: their own lines, at any level, may hold headers.
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    set_level(level or level_of(environment))
    logging.captureWarnings(capture=True)
    sys.excepthook = _say_crash


def set_level(level: Level, *names: str) -> None:
    """Say lines from `level` on: those of the modules below `names`, by default all of ours."""
    for name in names or _OURS:
        logging.getLogger(name).setLevel(level.upper())


def formatter_for(stream: TextIO, service: str, environment: Mapping[str, str]) -> "JsonLines | PlainLines":
    """Return how lines are written to a stream."""
    scrub = Scrub(secrets_of(environment))
    if not stream.isatty():
        return JsonLines(service, scrub)
    return PlainLines(scrub, is_coloured=not environment.get("NO_COLOR") and environment.get("TERM", "dumb") != "dumb")


class JsonLines(logging.Formatter):
    """One JSON object a line, with the fields of docs/logs.md."""

    def __init__(self, service: str, scrub: Scrub | None = None) -> None:
        """Name the service, e.g. `andon-exec`, and what takes secrets out."""
        super().__init__()
        self._service = service
        self._scrub = scrub or Scrub()

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, whatever the fields hold."""
        said: dict[str, Value] = {
            "ts": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "event": _event(record),
            "msg": record.getMessage(),
            "logger": record.name,
            "service.name": _GATEWAY[0] if record.name.startswith(_GATEWAY[1]) else self._service,
        }
        said |= {key: value for key, value in {**_about.get(), **_fields(record)}.items() if key not in said}
        if record.exc_info and record.levelno >= logging.ERROR:
            said["exc"] = self.formatException(record.exc_info)[-TRACE_CHARS_MAX:]
        limits = {"exc": TRACE_CHARS_MAX}
        return json.dumps({key: _plain(value, self._scrub, limits.get(key, FIELD_CHARS_MAX)) for key, value in said.items()})


class PlainLines(logging.Formatter):
    """The same for a person at a terminal: the time, of which attempt, what happened, and the line's own fields."""

    def __init__(self, scrub: Scrub | None = None, *, is_coloured: bool = False) -> None:
        """Say what takes secrets out; colours tell a warning from an error and what was said from its fields."""
        super().__init__()
        self._scrub = scrub or Scrub()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, without control characters but for our colours, and a trace's lines set in below it."""
        fields = _fields(record)
        error = fields.pop("error.message", "")
        when = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else record.levelname.lower()
        what = f"{record.getMessage()}: {error}" if error else record.getMessage()
        parts = [
            self._painted(when, "2"),
            self._painted(_whose(_about.get()), "2"),
            self._painted(level, "31" if record.levelno >= logging.ERROR else "33"),
            self._painted(what, ""),
            self._painted(" ".join(_beside(fields)), "2"),
        ]
        # An exception may quote an agent: its lines are set in, so that none of them can pass for a record.
        trace = self.formatException(record.exc_info)[-TRACE_CHARS_MAX:].splitlines() if record.exc_info else []
        return "\n".join([" ".join(part for part in parts if part), *(f"  {_printable(self._scrub.of(each))}" for each in trace)])

    def _painted(self, text: str, colour: str) -> str:
        shown = _printable(self._scrub.of(text))[: 2 * FIELD_CHARS_MAX]
        return f"\x1b[{colour}m{shown}\x1b[0m" if self._is_coloured and colour and shown else shown


def _whose(fields: Fields) -> str:
    """Return of which attempt or run a line is, as other commands name it: RUN/STAGE-ROUND-ATTEMPT."""
    run, stage = fields.get("run_id"), fields.get("stage")
    if not run or not stage:
        return str(run or "")
    return "-".join(str(part) for part in (f"{run}/{stage}", fields.get("round"), fields.get("attempt")) if part is not None)


def _beside(fields: Fields) -> list[str]:
    return [text for key, value in fields.items() if key != "error.type" and (text := _readable(key, value))]


def _readable(key: str, value: Value) -> str:
    """Return a field as a person reads it; empty if it says nothing."""
    if value is None or value is False or value == "":
        return ""
    if value is True:
        return key
    if key == "duration_ms" and isinstance(value, int):
        return f"after {value / 1_000:.1f} s"
    if key == "cost_nano_usd" and isinstance(value, int):
        return f"${value / 1e9:.4f}"
    # Digests are for looking up, which their first digits are enough for.
    return f"{key}=" + _DIGEST.sub(r"\1", str(value))


def _event(record: logging.LogRecord) -> str:
    return str(record.__dict__.get("event", FOREIGN))


def _fields(record: logging.LogRecord) -> dict[str, Value]:
    return dict(record.__dict__.get("fields", {}))


def _words(event: str) -> str:
    return event.replace(".", " ").replace("_", " ")


def _rfc3339(seconds: float) -> str:
    """Return Unix seconds as UTC with nine digits; the clock that was read gives six or seven of them."""
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%S}.{int(seconds % 1 * 1e9):09d}Z"


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else " " for char in line)


def _plain(value: Value, scrub: Scrub, chars_max: int) -> str | bool | int | float | None:
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    # Hidden before it is cut: half a key is a key to whoever guesses the rest.
    return scrub.of(str(value))[:chars_max]


def _say_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    Log("sandbox.log").exception("process.crashed", "this is a bug in Andon", error=error)
