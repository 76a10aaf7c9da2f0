"""Output made fit for a conversation."""

from pathlib import Path

import pytest

from sandbox.inside.agent.tools.output import HEAD_CHARS, KEPT_BYTES_MAX, TAIL_CHARS, Capture, clean, shortened


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07shown", "shown"),
        (b"10%\r50%\r100%\ndone", "100%\ndone"),
        (b"line\r\nnext\r\n", "line\nnext\n"),
        (b"nul\x00bell\x07", "nulbell"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("tab\tä\n".encode(), "tab\tä\n"),
    ],
)
def test_output_is_cleaned(raw: bytes, text: str) -> None:
    """Escapes, overwritten progress and controls go; text, tabs and newlines stay."""
    assert clean(raw) == text


def test_text_at_the_limit_is_whole(tmp_path: Path) -> None:
    """Nothing is cut or saved up to head plus tail."""
    text = "x" * (HEAD_CHARS + TAIL_CHARS)

    assert shortened(text, tmp_path / "1.txt") == text
    assert not (tmp_path / "1.txt").exists()


def test_text_beyond_the_limit_keeps_head_and_tail(tmp_path: Path) -> None:
    """The number of characters left out and the file are named."""
    text = "h" * HEAD_CHARS + "?" + "t" * TAIL_CHARS

    cut = shortened(text, tmp_path / "full" / "1.txt")

    assert cut == f"{'h' * HEAD_CHARS}\n[... 1 characters left out; whole output in {tmp_path}/full/1.txt ...]\n{'t' * TAIL_CHARS}"
    assert (tmp_path / "full" / "1.txt").read_text() == text


def test_a_full_disk_is_said_and_stops_nothing(tmp_path: Path) -> None:
    """The file is a convenience."""
    (tmp_path / "file").write_text("")

    assert "could not be saved" in shortened("x" * 20_000, tmp_path / "file" / "1.txt")


def test_memory_is_bounded_and_the_newest_bytes_are_kept() -> None:
    """Beyond the limit only the tail moves on, and the loss is counted."""
    capture = Capture()
    for _ in range(KEPT_BYTES_MAX // 65_536 + 64):
        capture.take(b"a" * 65_536)
    capture.take(b"the end")

    text = capture.text()

    assert text.endswith("the end")
    assert "bytes not kept" in text
    assert len(text) < KEPT_BYTES_MAX + 3 * 65_536
    assert capture.bytes_total == KEPT_BYTES_MAX + 64 * 65_536 + len("the end")
