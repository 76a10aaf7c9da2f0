"""The bash tool."""

import os
from pathlib import Path

import pytest

from sandbox.inside.agent.tools.bash import COMMAND_CHARS_MAX, Bash
from sandbox.inside.agent.tools.call import MalformedCall, ToolResult


@pytest.fixture
def bash(tmp_path: Path) -> Bash:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return Bash(workspace, {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, tmp_path / "state", tmp_path / "output")


def run(bash: Bash, command: str, timeout_s: float = 20.0) -> ToolResult:
    return bash.run({"command": command}, timeout_s)


def test_the_exit_code_is_always_said(bash: Bash) -> None:
    """A failing command is an answer, not an error of the tool."""
    assert run(bash, "echo hello; exit 7") == ToolResult("hello\n[exit code 7]", exit_code=7)


def test_empty_output_is_said(bash: Bash) -> None:
    """An empty answer would read like a broken tool."""
    assert run(bash, "true").text == "(no output)\n[exit code 0]"


def test_directory_and_exports_stay(bash: Bash) -> None:
    """Each call is a fresh shell that takes up where the last one stopped."""
    run(bash, "mkdir inner && cd inner && export COLOUR='a \"b\"' && local_only=1")

    assert run(bash, 'basename "$PWD"; echo "$COLOUR/$local_only"').text == 'inner\na "b"/\n[exit code 0]'


def test_exit_and_errexit_keep_the_state(bash: Bash) -> None:
    """A command that exits does not kill a session: there is none."""
    run(bash, "export KEPT=yes; set -e; false; export KEPT=never")

    assert run(bash, "echo $KEPT").text == "yes\n[exit code 0]"


def test_a_lost_directory_leads_back_to_the_workspace(bash: Bash) -> None:
    """A directory that was removed is no dead end."""
    run(bash, "mkdir gone; cd gone; rmdir ../gone")

    assert run(bash, 'basename "$PWD"').text == "workspace\n[exit code 0]"


def test_restart_forgets(bash: Bash) -> None:
    """The one way out of a broken PATH."""
    run(bash, "export PATH=/nowhere")

    bash.run({"restart": True}, 5)

    assert run(bash, "ls; echo fine").text == "fine\n[exit code 0]"


def test_a_timeout_keeps_partial_output_and_the_state_before(bash: Bash) -> None:
    """The answer says that it was killed, and when."""
    run(bash, "export KEPT=before")

    result = run(bash, "export KEPT=after; echo partial; sleep 100", timeout_s=0.5)

    assert result.is_error
    assert result.text.startswith("partial\n[killed after 0.5 s")
    assert run(bash, "echo $KEPT").text == "before\n[exit code 0]"


def test_a_command_longer_than_one_argument_runs(bash: Bash) -> None:
    """One argument of a process holds 128 KiB."""
    assert run(bash, f"x={'a' * 200_000}; echo ${{#x}}").text == "200000\n[exit code 0]"


def test_a_syntax_error_is_an_answer(bash: Bash) -> None:
    """With the line it is on."""
    result = run(bash, "echo one\nif then")

    assert "line 2" in result.text
    assert "[exit code 0]" not in result.text


def test_long_output_is_cut_once_and_kept_whole(bash: Bash, tmp_path: Path) -> None:
    """Head, tail, and the file that holds everything."""
    text = run(bash, "seq 1 20000").text

    assert text.startswith("1\n2\n")
    assert text.endswith("20000\n[exit code 0]")
    assert len(text) < 13_000
    saved = tmp_path / "output" / "0001.txt"
    assert str(saved) in text
    assert saved.read_text().splitlines() == [str(number) for number in range(1, 20001)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "`command`"),
        ({"command": 3}, "string"),
        ({"command": "  "}, "empty"),
        ({"command": "x" * (COMMAND_CHARS_MAX + 1)}, "editor"),
        ({"command": "a\0b"}, "NUL"),
    ],
)
def test_a_malformed_call_is_named(bash: Bash, arguments: dict[str, object], said: str) -> None:
    """The message says what is wrong, for the model to mend."""
    with pytest.raises(MalformedCall, match=said):
        bash.run(arguments, 5)
