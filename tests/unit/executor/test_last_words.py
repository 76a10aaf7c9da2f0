"""What a container printed last is in the executor's log where nothing else says why it ended, and bounded."""

import logging

import pytest

from sandbox.executor.last_words import LINE_CHARS_MAX, LINES_MAX, retell
from sandbox.runtime.container_spec import LastWords

PRINTED: LastWords = {"stdout": b"turn 1: bash\n\n", "stderr": b"Traceback:\nOSError: no space left\n"}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Every line, at level debug."""
    caplog.set_level(logging.DEBUG, "sandbox.executor.last_words")
    return caplog


def told(said: pytest.LogCaptureFixture) -> list[tuple[str, str, str, str]]:
    return [
        (record.levelname, record.__dict__["event"], record.__dict__["fields"]["stream"], record.getMessage()) for record in said.records
    ]


@pytest.mark.parametrize(("is_needed", "level"), [(True, "WARNING"), (False, "DEBUG")])
def test_each_line_is_a_record_with_its_stream(said: pytest.LogCaptureFixture, is_needed: bool, level: str):
    """At level info it is there only if the program did not say itself how it went: it is text of what ran there."""
    retell(PRINTED, is_needed=is_needed)

    assert told(said) == [
        (level, "container.output", "stdout", "| turn 1: bash"),
        (level, "container.output", "stderr", "| Traceback:"),
        (level, "container.output", "stderr", "| OSError: no space left"),
    ]


@pytest.mark.parametrize(("lines", "kept"), [(LINES_MAX, LINES_MAX), (LINES_MAX + 1, LINES_MAX)])
def test_the_last_lines_are_kept(said: pytest.LogCaptureFixture, lines: int, kept: int):
    """What broke is said last."""
    retell({"stderr": b"".join(b"%d\n" % number for number in range(lines))}, is_needed=True)

    assert [text for *_, text in told(said)] == [f"| {number}" for number in range(lines - kept, lines)]


@pytest.mark.parametrize(("chars", "kept"), [(LINE_CHARS_MAX, LINE_CHARS_MAX), (LINE_CHARS_MAX + 1, LINE_CHARS_MAX)])
def test_a_line_is_cut_at_its_limit(said: pytest.LogCaptureFixture, chars: int, kept: int):
    """Bytes that are no text are no reason to say nothing."""
    retell({"stdout": b"\xff" * chars}, is_needed=True)

    ((*_, text),) = told(said)
    assert text == "| " + "\ufffd" * kept
