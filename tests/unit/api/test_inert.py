"""Text of others is harmless to print, and otherwise unchanged."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from supervisor.api.inert import inert, inert_line


def test_escapes_titles_and_reordering_are_gone() -> None:
    """What would move the cursor, change the title or the clipboard, or show text in another order."""
    assert inert("\x1b[2Ja\x1b]52;c;x\x07\x9b1m b\u202ec\u2066d\x00\x7f") == "[2Ja]52;c;x1m bcd"


def test_line_ends_and_tabs_stay() -> None:
    """Windows line ends become plain ones; a lone return would let a line overwrite itself."""
    assert inert("a\r\nb\tc\rd") == "a\nb\tcd"


def test_other_scripts_and_emoji_stay() -> None:
    """Only control is taken away, not language."""
    text = "добавить ограничение 速率制限 👩‍💻 naïve"

    assert inert(text) == text


@given(st.text(alphabet=st.characters()))
def test_nothing_inert_controls_a_terminal(text: str) -> None:
    """Whatever goes in; and to make it inert twice changes nothing."""
    shown = inert(text)

    assert all(char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cs", "Zl", "Zp"} for char in shown)
    assert inert(shown) == shown


@given(st.text(alphabet=st.characters()), st.integers(3, 80))
def test_a_line_is_one_line_of_bounded_length(text: str, chars_max: int) -> None:
    """Cut with an ellipsis."""
    line = inert_line(text, chars_max)

    assert len(line) <= chars_max
    assert "\n" not in line
