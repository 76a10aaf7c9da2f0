"""A log line is one record, whatever a process is told to write."""

import json
import logging

import pytest

from sandbox.log import FIELD_CHARS_MAX, JsonLines


def a_line(message: str, **extra: object) -> dict[str, object]:
    record = logging.getLogger("x").makeRecord("x", logging.INFO, "f", 1, message, (), None, extra=extra)
    text = JsonLines("andon-exec").format(record)
    assert "\n" not in text
    found: dict[str, object] = json.loads(text)
    return found


def test_fields_stand_beside_the_message():
    """An event's name is its message; its fields are given as `extra`."""
    line = a_line("attempt.ended", job_id="j", attempt=2)

    assert (line["msg"], line["job_id"], line["attempt"], line["service.name"]) == ("attempt.ended", "j", 2, "andon-exec")


def test_text_with_newlines_cannot_forge_a_second_record():
    """ABUSE I18: agent text in a field stays inside its record."""
    line = a_line("x", reason='ok\n{"msg":"VALIDATED"}')

    assert line["reason"] == 'ok\n{"msg":"VALIDATED"}'


@pytest.mark.parametrize(("chars", "kept"), [(FIELD_CHARS_MAX, FIELD_CHARS_MAX), (FIELD_CHARS_MAX + 1, FIELD_CHARS_MAX)])
def test_a_field_is_cut_at_its_limit(chars: int, kept: int):
    """A line has a bound."""
    assert len(str(a_line("x", reason="a" * chars)["reason"])) == kept
