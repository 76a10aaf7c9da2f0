"""The command itself: help without imports, every end one line, no traceback."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from supervisor.cli.entry import COMMANDS
from tests.fakes import run_events
from tests.fakes.command_line import CommandLine

PYTHON = [sys.executable, "-c", "import sys; from supervisor.cli import main; sys.exit(main())"]


def test_help_imports_no_command_and_no_library_but_click() -> None:
    """What makes `andon --help` quick: neither pydantic nor rich nor yaml."""
    probe = (
        "import sys; from supervisor.cli import main; main(['--help']); "
        "print([name for name in ('pydantic', 'rich', 'yaml', 'asyncio', 'supervisor.config') if name in sys.modules], file=sys.stderr)"
    )

    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)

    assert ended.stderr == "[]\n"
    assert [line.split()[0] for line in ended.stdout.splitlines() if line.startswith("  ") and line.split()[0] in COMMANDS] == list(
        COMMANDS
    )


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_that_begins_with_its_line(andon: CommandLine, name: str) -> None:
    """The table of commands and each command's own help do not drift apart."""
    ended = andon(name, "--help")

    assert ended.code == 0
    assert COMMANDS[name].split(";")[0].split(",")[0].rstrip(".") in " ".join(ended.out.split())


def test_an_unknown_command_is_exit_code_2(andon: CommandLine) -> None:
    """With the way to the help."""
    ended = andon("frobnicate")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("andon: error: No such command 'frobnicate'")


def test_the_version_is_one_line(andon: CommandLine) -> None:
    """As an option and as a command."""
    assert andon("--version").out == andon("version").out
    assert set(andon("version", "--json").json) == {"andon", "protocol", "python"}


def test_a_bug_is_one_line_and_its_trace_is_kept(andon: CommandLine, tmp_path: Path) -> None:
    """Never a traceback on the terminal."""
    old, tempfile.tempdir = tempfile.tempdir, str(tmp_path)
    andon.bootstrap.host_error = ZeroDivisionError("division by zero")
    try:
        ended = andon("up")
    finally:
        tempfile.tempdir = old

    (trace,) = tmp_path.glob("andon-crash-*.log")
    assert ended.code == 5
    assert ended.err == f"andon: error: this is a bug in andon: ZeroDivisionError: division by zero; please report it with {trace}\n"
    assert "in ensure_host" in trace.read_text()


def test_a_reader_that_goes_away_is_no_error(andon: CommandLine) -> None:
    """`andon logs | head -1` is quiet."""
    andon.has_run(run_events.happy())
    environ = {**os.environ, "HOME": str(andon.home), "XDG_STATE_HOME": "", "PYTHONUNBUFFERED": "1"}

    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        ended = subprocess.run([*PYTHON, "logs"], stdout=closed, stderr=subprocess.PIPE, env=environ, check=False, text=True)

    assert (ended.returncode, ended.stderr) == (141, "")


def test_another_encoding_shows_escapes_instead_of_failing(andon: CommandLine) -> None:
    """A request in another script on a Latin-1 terminal."""
    story = run_events.Story(request="\u0434\u043e\u0431\u0430\u0432\u0438\u0442\u044c").accepted()
    andon.has_run(story.log)
    environ = {**os.environ, "HOME": str(andon.home), "XDG_STATE_HOME": "", "PYTHONIOENCODING": "latin-1"}

    ended = subprocess.run([*PYTHON, "status"], capture_output=True, env=environ, check=True)

    assert rb"\u0434\u043e" in ended.stdout


def test_commands_are_completed_without_importing_them() -> None:
    """Names, and the runs of this host."""
    environ = {**os.environ, "_ANDON_COMPLETE": "bash_complete", "COMP_WORDS": "andon st", "COMP_CWORD": "1"}

    ended = subprocess.run(PYTHON, capture_output=True, text=True, env=environ, check=False)

    assert ended.stdout == "plain,status\nplain,stop\n"


def test_runs_are_completed(andon: CommandLine) -> None:
    """From the state directory, newest first."""
    andon.has_run(run_events.happy())
    environ = {**os.environ, "HOME": str(andon.home), "XDG_STATE_HOME": "", "_ANDON_COMPLETE": "bash_complete"}

    ended = subprocess.run(
        PYTHON, capture_output=True, text=True, env={**environ, "COMP_WORDS": "andon resume 01", "COMP_CWORD": "2"}, check=False
    )

    assert ended.stdout == f"plain,{run_events.RUN}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(andon: CommandLine, shell: str) -> None:
    """For the three shells click knows."""
    assert "_ANDON_COMPLETE" in andon("completion", shell).out
