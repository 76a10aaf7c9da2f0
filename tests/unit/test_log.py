"""A log line is one record with known fields, whatever a process is told to write, and holds no key."""

import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from sandbox.contract.errors import BrokerError, ConfigError
from sandbox.contract.ids import process_span_id, span_id, trace_id
from sandbox.log import (
    FIELD_CHARS_MAX,
    LEVEL,
    TRACE_CHARS_MAX,
    Log,
    about,
    log_to_stderr,
    note,
    of_attempt,
    of_job,
    of_run,
)

RUN = "0123456789"
JOB = f"{RUN}-red-check-2"
KEY = "sk-scripted-canary-7f3a9c51e2"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where a process's lines go; the handlers of the test run are back at the end."""
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in ("sandbox", "supervisor", "__main__", "")}
    handlers, hook = root.handlers[:], sys.excepthook
    yield io.StringIO()
    root.handlers[:] = handlers
    sys.excepthook = hook
    logging.captureWarnings(capture=False)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


log = Log("sandbox.somewhere")


def test_a_line_has_the_fields_of_its_event(stream: io.StringIO):
    """What happened, when, where, and what was given."""
    log_to_stderr("andon-exec", {}, stream=stream)

    log.info("attempt.ended", "it is over", outcome="submitted", duration_ms=1_200)

    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", line.pop("ts"))
    assert line == {
        "level": "info",
        "event": "attempt.ended",
        "msg": "it is over",
        "logger": "sandbox.somewhere",
        "service.name": "andon-exec",
        "outcome": "submitted",
        "duration_ms": 1_200,
    }


def test_without_words_a_person_reads_the_event(stream: io.StringIO):
    """A name is made of words already."""
    log_to_stderr("andon-exec", {}, stream=stream)

    log.info("result.left_on_disk")

    assert lines(stream)[0]["msg"] == "result left on disk"


def test_the_gateway_is_a_service_of_its_own(stream: io.StringIO):
    """As in traces, although it is a part of the executor's process."""
    log_to_stderr("andon-exec", {}, stream=stream)

    Log("sandbox.gateway.session").warning("gateway.second_peer")

    assert lines(stream)[0]["service.name"] == "andon-gw"


def test_an_error_has_its_type_and_message_and_a_trace_only_as_a_fault_of_ours(stream: io.StringIO):
    """A warning says what went wrong in one line; `exc` is there at level error alone."""
    log_to_stderr("andon-exec", {}, stream=stream)

    try:
        raise BrokerError("it does not answer")
    except BrokerError as error:
        log.warning("broker.away", error=error)
        log.exception("request.broke")

    first, second = lines(stream)
    assert [(each["error.type"], each["error.message"]) for each in (first, second)] == [("BrokerError", "it does not answer")] * 2
    assert "exc" not in first
    assert second["exc"].startswith("Traceback")
    assert second["level"] == "error"


async def test_whose_lines_they_are_holds_in_a_block_its_tasks_and_its_threads(stream: io.StringIO):
    """Said once; an inner block adds, and nothing is left behind."""
    log_to_stderr("andon-exec", {}, stream=stream)

    with about(run_id=RUN, stage="implement"):
        with about(attempt=2):
            await asyncio.gather(asyncio.create_task(said("in.task")), asyncio.to_thread(log.info, "in.thread"))
            note(container_id="c0ffee")
            log.info("in.block")
        log.info("after.block")
    log.info("after.all")

    found = {line["event"]: {key: line.get(key) for key in ("run_id", "stage", "attempt", "container_id")} for line in lines(stream)}
    of_it = {"run_id": RUN, "stage": "implement", "attempt": 2, "container_id": None}
    assert found["in.task"] == found["in.thread"] == of_it
    assert found["in.block"] == of_it | {"container_id": "c0ffee"}
    assert found["after.block"] == of_it | {"attempt": None}
    assert set(found["after.all"].values()) == {None}


async def said(event: str) -> None:
    log.info(event)


def test_the_fields_of_an_attempt_follow_from_its_job_and_number():
    """Its trace is the run's, its span the one its traces have; a stage's name may hold dashes."""
    path = f"{RUN}/red-check/2/3"
    of_it = {"run_id": RUN, "job_id": JOB, "stage": "red-check", "round": 2, "trace_id": trace_id(RUN)}

    assert of_run(RUN, "00") == {"run_id": RUN, "trace_id": trace_id(RUN), "span_id": span_id(RUN), "trace_flags": "00"}
    assert of_job(JOB) == of_it | {"span_id": span_id(RUN)}
    assert of_attempt(JOB, 3, "01") == of_it | {"span_id": process_span_id(path), "trace_flags": "01", "attempt": 3}
    assert of_attempt(JOB, 3, is_executors=False)["span_id"] == span_id(path)


def test_a_field_cannot_pass_for_the_head_of_its_line(stream: io.StringIO):
    """Fields may be named by others; who speaks and when is ours."""
    log_to_stderr("andon-exec", {}, stream=stream)

    log.info("a.b", "", {"ts": "never", "level": "error", "service.name": "andon-sup"})

    (line,) = lines(stream)
    assert (line["level"], line["service.name"]) == ("info", "andon-exec")
    assert line["ts"] != "never"


@pytest.mark.parametrize(("chars", "kept"), [(FIELD_CHARS_MAX, FIELD_CHARS_MAX), (FIELD_CHARS_MAX + 1, FIELD_CHARS_MAX)])
def test_a_field_is_cut_at_its_limit(stream: io.StringIO, chars: int, kept: int):
    """A line has a bound; so has what a person reads."""
    log_to_stderr("andon-exec", {}, stream=stream)

    log.info("a.b", "m" * chars, reason="a" * chars)

    (line,) = lines(stream)
    assert (len(line["reason"]), len(line["msg"])) == (kept, kept)


@pytest.mark.parametrize(("chars", "kept"), [(TRACE_CHARS_MAX - 200, None), (TRACE_CHARS_MAX + 1, TRACE_CHARS_MAX)])
def test_a_trace_keeps_its_end(stream: io.StringIO, chars: int, kept: int | None):
    """What broke is said last."""
    log_to_stderr("andon-exec", {}, stream=stream)

    log.exception("a.b", error=ValueError("a" * chars + "the end"))

    exc = lines(stream)[0]["exc"]
    assert exc.endswith("the end")
    assert len(exc) == kept if kept else exc.startswith("ValueError")


def test_a_figure_that_is_no_number_is_still_json(stream: io.StringIO):
    """Readers other than Python's refuse NaN."""
    log_to_stderr("andon-exec", {}, stream=stream)

    log.info("a.b", age_s=float("nan"))

    assert "NaN" not in stream.getvalue()
    assert lines(stream)[0]["age_s"] == "nan"


@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1), ("", 3), ("Warning", 2)])
def test_the_level_is_a_setting(stream: io.StringIO, level: str, heard: int):
    """From that level on; unset it is info."""
    log_to_stderr("andon-exec", {LEVEL: level}, stream=stream)

    for say in (log.debug, log.info, log.warning, log.error):
        say("a.b")

    assert len(lines(stream)) == heard


def test_a_level_that_is_none_is_refused(stream: io.StringIO):
    """The message names the variable and what it may be."""
    with pytest.raises(ConfigError, match="ANDON_LOG_LEVEL='loud' is none of debug, info, warning, error"):
        log_to_stderr("andon-exec", {LEVEL: "loud"}, stream=stream)


def test_libraries_are_heard_from_warning_on_at_every_level(stream: io.StringIO):
    """Their debug lines hold headers; what they say is a line of JSON all the same."""
    log_to_stderr("andon-exec", {LEVEL: "debug"}, stream=stream)

    logging.getLogger("httpx2").info("HTTP Request: POST %s", "https://somewhere")
    logging.getLogger("httpx2").warning("it is %s", "slow")

    (line,) = lines(stream)
    assert (line["event"], line["msg"], line["logger"]) == ("library.said", "it is slow", "httpx2")


def test_no_line_holds_a_key(stream: io.StringIO):
    """Neither one of our environment, nor what has the shape of one, nor a password in an address, wherever it stands."""
    log_to_stderr("andon-exec", {"ANTHROPIC_API_KEY": KEY}, stream=stream)
    others = ["sk-ant-api03-" + "A" * 20, "SU" + "A" * 56, "Bearer abcdefghijkl", "http://user:pass@proxy:3128"]

    log.info("a.b", f"with {KEY}", {f"field{number}": other for number, other in enumerate(others)})
    log.exception("a.b", error=ValueError(f"{KEY} in {others[0]}"))

    text = stream.getvalue()
    assert not [secret for secret in (KEY, others[0], others[1], "abcdefgh", "user:pass") if secret in text]
    assert lines(stream)[0]["msg"] == "with [secret]"
    assert lines(stream)[0]["field3"] == "http://[secret]@proxy:3128"


def test_a_key_is_hidden_before_the_line_is_cut(stream: io.StringIO):
    """Half a key helps whoever guesses the rest."""
    log_to_stderr("andon-exec", {"ANTHROPIC_API_KEY": KEY}, stream=stream)

    log.info("a.b", reason="a" * (FIELD_CHARS_MAX - 10) + KEY)

    assert KEY[:9] not in stream.getvalue()


def test_a_crash_is_a_line_too(stream: io.StringIO):
    """A process that a fault of ours ends leaves no loose lines in its log."""
    log_to_stderr("andon-exec", {}, stream=stream)

    sys.excepthook(ValueError, ValueError("a bug"), None)

    (line,) = lines(stream)
    assert (line["event"], line["level"], line["error.message"]) == ("process.crashed", "error", "a bug")


def test_a_terminal_gets_text(stream: io.StringIO):
    """The time, what happened and of which attempt, as the other commands name it; ids of traces are for machines."""
    screen = Terminal()
    log_to_stderr("andon-exec", {"TERM": "xterm", "NO_COLOR": "1"}, stream=screen)

    with about(**of_attempt(JOB, 3, "01"), worker_id="ex1"):
        log.info("attempt.started", slot=1)
        log.warning("broker.away", "the broker does not answer; trying on", error=BrokerError("no route"))

    first, second = (line[9:] for line in screen.getvalue().splitlines())
    assert first == f"{RUN}/red-check-2-3 attempt started slot=1"
    assert second == f"{RUN}/red-check-2-3 warning the broker does not answer; trying on: no route"


def test_a_terminal_gets_figures_as_a_person_reads_them(stream: io.StringIO):
    """Seconds, dollars, the first digits of a digest; what is not so is left out."""
    screen = Terminal()
    log_to_stderr("andon-exec", {}, stream=screen)

    log.info("attempt.ended", duration_ms=36_978, cost_nano_usd=17_489_100, image="sha256:" + "0b54b3aa043c" + "7" * 52)
    log.info("container.exited", exit_code=0, oom_killed=False, is_relayed=True, what="", who=None)

    first, second = (line[9:] for line in screen.getvalue().splitlines())
    assert first == "attempt ended after 37.0 s $0.0175 image=sha256:0b54b3aa043c"
    assert second == "container exited exit_code=0 is_relayed"


@pytest.mark.parametrize(
    ("environment", "is_coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({}, False)],
)
def test_colours_are_for_terminals_that_have_them(stream: io.StringIO, environment: dict[str, str], is_coloured: bool):
    """`NO_COLOR` is honoured; the text is the same."""
    screen = Terminal()
    log_to_stderr("andon-exec", environment, stream=screen)

    log.warning("a.b", "it is slow", age_s=2)

    assert ("\x1b[33mwarning" in screen.getvalue()) is is_coloured
    assert re.sub(r"\x1b\[\d+m", "", screen.getvalue())[9:] == "warning it is slow age_s=2\n"
