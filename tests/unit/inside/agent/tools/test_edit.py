"""The editor tool."""

import os
from pathlib import Path
from typing import Any

import pytest

from sandbox.inside.agent.tools.call import MalformedCall, ToolResult
from sandbox.inside.agent.tools.edit import FILE_BYTES_MAX, Edit


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


@pytest.fixture
def edit(workspace: Path, tmp_path: Path) -> Edit:
    (tmp_path / "tmp").mkdir()
    return Edit(workspace, (tmp_path / "tmp",))


def do(edit: Edit, command: str, path: Path | str, **arguments: Any) -> ToolResult:
    return edit.run({"command": command, "path": str(path), **arguments}, 5)


def test_create_makes_directories_and_says_so(edit: Edit, workspace: Path) -> None:
    """A new file needs no mkdir first."""
    result = do(edit, "create", workspace / "a/b/c.py", file_text="x = 1\n")

    assert (workspace / "a/b/c.py").read_text() == "x = 1\n"
    assert result == ToolResult(f"created {workspace}/a/b/c.py")


def test_create_keeps_the_mode_of_a_file_it_replaces(edit: Edit, workspace: Path) -> None:
    """An executable stays one."""
    script = workspace / "run.sh"
    script.write_text("old")
    script.chmod(0o755)

    do(edit, "create", script, file_text="new")

    assert script.read_text() == "new"
    assert script.stat().st_mode & 0o777 == 0o755


def test_a_relative_path_begins_at_the_workspace(edit: Edit, workspace: Path) -> None:
    """Models write both."""
    do(edit, "create", "a.txt", file_text="here")

    assert (workspace / "a.txt").read_text() == "here"


def test_view_numbers_lines_and_takes_a_range(edit: Edit, workspace: Path) -> None:
    """Numbers are those `insert_line` counts by."""
    (workspace / "a").write_text("one\ntwo\nthree\n")

    assert do(edit, "view", workspace / "a", view_range=[2, 3]).text == "     2\ttwo\n     3\tthree"
    assert do(edit, "view", workspace / "a", view_range=[3, -1]).text.startswith("     3\tthree")


def test_a_long_view_says_where_to_go_on(edit: Edit, workspace: Path) -> None:
    """The next call is spelled out."""
    (workspace / "a").write_text("".join(f"line {number} {'x' * 90}\n" for number in range(1000)))

    text = do(edit, "view", workspace / "a").text

    assert "go on with view_range [" in text
    assert len(text) < 25_000


def test_view_lists_a_directory_two_levels_deep(edit: Edit, workspace: Path) -> None:
    """Hidden entries are left out."""
    (workspace / "a/b/c").mkdir(parents=True)
    (workspace / ".git").mkdir()
    (workspace / "z.txt").write_text("")

    assert do(edit, "view", workspace).text == f"{workspace}:\na/\na/b/\nz.txt"


def test_replace_changes_one_place_and_nothing_else(edit: Edit, workspace: Path) -> None:
    """Line ends, mark and missing last newline stay as they were."""
    file = workspace / "a"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\nthree\nlast")

    result = do(edit, "str_replace", file, old_str="one\ntwo", new_str="1\n2")

    assert file.read_bytes() == b"\xef\xbb\xbf1\r\n2\r\nthree\nlast"
    assert "now reads" in result.text


def test_replace_without_new_text_deletes(edit: Edit, workspace: Path) -> None:
    """`new_str` may be left out."""
    (workspace / "a").write_text("keep\ndrop\n")

    do(edit, "str_replace", workspace / "a", old_str="drop\n")

    assert (workspace / "a").read_text() == "keep\n"


@pytest.mark.parametrize(("old", "said"), [("missing", "is not in"), ("x", "2 times")])
def test_replace_refuses_what_is_not_there_once(edit: Edit, workspace: Path, old: str, said: str) -> None:
    """The file stays as it was and the answer says why."""
    (workspace / "a").write_text("x\nx\n")

    result = do(edit, "str_replace", workspace / "a", old_str=old, new_str="y")

    assert result.is_error
    assert said in result.text
    assert (workspace / "a").read_text() == "x\nx\n"


@pytest.mark.parametrize(
    ("before", "after_line", "text", "after"),
    [
        ("a\nb\n", 0, "x", "x\na\nb\n"),
        ("a\nb\n", 1, "x\n", "a\nx\nb\n"),
        ("a\nb\n", 2, "x", "a\nb\nx"),
        ("a\nb", 2, "x", "a\nb\nx"),
        ("a\r\nb\r\n", 1, "x", "a\r\nx\r\nb\r\n"),
        ("", 0, "x", "x"),
        ("a\u2028b\nc\n", 1, "x", "a\u2028b\nx\nc\n"),
    ],
)
def test_insert_keeps_lines_apart(edit: Edit, workspace: Path, before: str, after_line: int, text: str, after: str) -> None:
    """Whatever ends the text, whatever ends the file."""
    (workspace / "a").write_bytes(before.encode())

    do(edit, "insert", workspace / "a", insert_line=after_line, insert_text=text)

    assert (workspace / "a").read_bytes().decode() == after


def test_insert_beyond_the_end_is_refused(edit: Edit, workspace: Path) -> None:
    """With the range that is possible."""
    (workspace / "a").write_text("a\n")

    result = do(edit, "insert", workspace / "a", insert_line=2, insert_text="x")

    assert result.is_error
    assert "0 to 1" in result.text


def test_writing_leaves_no_root(edit: Edit, workspace: Path, tmp_path: Path) -> None:
    """Neither by dots nor through a link nor into the private repository; the temporary directory is allowed."""
    (workspace / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()

    for path in ("../outside", str(tmp_path / "outside"), "link/file", ".git/config"):
        assert do(edit, "create", path, file_text="x").is_error, path
    assert not do(edit, "create", tmp_path / "tmp/notes.txt", file_text="x").is_error
    assert not (tmp_path / "outside").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_is_no_text_file_is_refused_and_never_waited_for(edit: Edit, workspace: Path) -> None:
    """A FIFO does not hang, a huge or binary file does not fill the conversation, a link loop does not spin."""
    os.mkfifo(workspace / "fifo")
    (workspace / "binary").write_bytes(b"a\0b")
    (workspace / "latin").write_bytes(b"\xe4")
    with (workspace / "huge").open("wb") as huge:
        huge.truncate(FILE_BYTES_MAX + 1)
    (workspace / "loop").symlink_to("loop")

    for name in ("fifo", "binary", "latin", "huge", "loop", "missing", "/dev/zero"):
        assert do(edit, "view", name).is_error, name
    assert do(edit, "create", "fifo", file_text="x").is_error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"path": "/a"}, "command"),
        ({"command": "undo_edit", "path": "/a"}, "view, create, str_replace, insert"),
        ({"command": "view"}, "path"),
        ({"command": "view", "path": ""}, "path"),
        ({"command": "view", "path": "a\0b"}, "NUL"),
        ({"command": "create", "path": "a"}, "file_text"),
        ({"command": "create", "path": "a", "file_text": ["x"]}, "string"),
        ({"command": "str_replace", "path": "a", "old_str": ""}, "empty"),
        ({"command": "insert", "path": "a", "insert_line": "1", "insert_text": ""}, "whole number"),
        ({"command": "insert", "path": "a", "insert_line": True, "insert_text": ""}, "whole number"),
        ({"command": "view", "path": "f", "view_range": [1]}, "view_range"),
    ],
)
def test_a_malformed_call_names_the_argument(edit: Edit, workspace: Path, arguments: dict[str, Any], said: str) -> None:
    """For the model to mend."""
    (workspace / "f").write_text("x\n")

    with pytest.raises(MalformedCall, match=said):
        edit.run(arguments, 5)
