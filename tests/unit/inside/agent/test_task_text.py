"""The task bundle as one text."""

from pathlib import Path

from sandbox.inside.agent.task_text import TEXT_CHARS_MAX, read_task_text


def test_an_empty_or_missing_bundle_is_no_text(tmp_path: Path) -> None:
    """The transcript then has no block for it."""
    assert read_task_text(tmp_path) == ""
    assert read_task_text(tmp_path / "missing") == ""


def test_files_are_inline_in_order_of_path(tmp_path: Path) -> None:
    """Equal bundles give equal bytes, whatever order they were written in."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b/two.yaml").write_text("two: 2\n")
    (tmp_path / "a.md").write_text("# One\n")

    assert read_task_text(tmp_path) == '<file path="/task/a.md">\n# One\n</file>\n\n<file path="/task/b/two.yaml">\ntwo: 2\n</file>'


def test_code_and_what_is_too_long_are_named_only(tmp_path: Path) -> None:
    """The agent reads them when it needs them."""
    (tmp_path / "snippet.py").write_text("x = 1\n")
    (tmp_path / "long.md").write_text("x" * (TEXT_CHARS_MAX + 1))
    (tmp_path / "binary.md").write_bytes(b"\xff")
    (tmp_path / "short.md").write_text("short")

    text = read_task_text(tmp_path)

    assert '<file path="/task/short.md">\nshort\n</file>' in text
    assert text.endswith("when needed:\n/task/binary.md\n/task/long.md\n/task/snippet.py")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A bundle holds regular files only."""
    (tmp_path / "link.md").symlink_to("/etc/hostname")

    assert read_task_text(tmp_path) == ""
