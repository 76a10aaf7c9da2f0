"""The `andon` command: which commands there are, and how every end becomes one line and an exit code; no command's own work.

`andon --help` imports click and this file only: a command's module is imported when it is called.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from sandbox.contract.errors import AndonError
from supervisor.cli.app import App
from supervisor.errors import ExitCode, root_cause

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS = {
    "run": "Take a request through the line, to a landed commit.",
    "resume": "Go on with a parked run.",
    "status": "Show where a run is, and why it waits.",
    "why": "Say what a run waits for or does at this moment.",
    "list": "Show the runs of this host, newest first.",
    "history": "Show what runs came to: cost, time, reworks.",
    "trace": "Show the trace of a run as a tree.",
    "cost": "Show what model calls cost.",
    "logs": "Show what happened in a run; -f follows it.",
    "diff": "Show what a run changed.",
    "apply": "Make the branch of a landed run in its repository.",
    "stop": "Park a run, or end it; everything written is kept.",
    "salvage": "Show work that did not land, and bring it back.",
    "doctor": "Check what Andon needs on this host.",
    "gc": "Remove what nobody needs any more.",
    "up": "Start the embedded stack and keep it running.",
    "down": "Stop the embedded stack.",
    "fleet": "Show the executors; admit, drain or remove one.",
    "trust": "Agree to build a repository's own image.",
    "executor": "Join a fleet and run its jobs.",
    "config": "Show the configuration and where it came from.",
    "completion": "Print a shell completion script.",
    "version": "Show the version.",
}
_BROKEN_PIPE = 128 + 13
"""What a shell shows for a program whose reader went away."""


class _ReaderGone(Exception):
    """Stdout was closed; click would exit with 1 for it, which here means that a gate failed."""


class LazyGroup(click.Group):
    """A group whose commands are modules of this package, imported when they are called."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names in the order of a person's day, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"supervisor.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; keep a closed pipe apart from a failure."""
        _quiet_libraries()
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Complete a command's name without importing one."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]


def _quiet_libraries() -> None:
    """Keep libraries' warnings from a person's eyes: without a handler the interpreter would print them. `executor` has its own."""
    import logging

    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.invoke(importlib.import_module("supervisor.cli.version").command)
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 a gate failed, 2 usage, 3 waiting for approval, 4 budget, 5 infrastructure, 6 conflict, 124 deadline, "
    "130 interrupted.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version and exit.")
def andon() -> None:
    """Turn a feature request into a validated, traced commit.

    Start with: andon run "Add rate limiting to the API" --repo PATH
    """


def main(argv: Sequence[str] | None = None, app: App | None = None) -> int:
    """Run one command and return its exit code; every failure is one line on stderr, never a traceback.

    Args:
        argv: The arguments after the program's name; None: this process's own.
        app: What commands reach the world through; None: the real one.
    """
    _survive_odd_encodings()
    try:
        returned = andon.main(list(argv) if argv is not None else None, prog_name="andon", standalone_mode=False, obj=app or App())
        sys.stdout.flush()
        return returned if isinstance(returned, int) else ExitCode.DONE
    except BaseException as error:  # noqa: BLE001 - the last frame of the program: every end becomes one line and an exit code
        return _ended_by(root_cause(error))


def _ended_by(error: BaseException) -> int:
    """Say why in one line; return the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError | _ReaderGone):
        return _reader_went_away()
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else ExitCode.DONE
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _fail("interrupted", ExitCode.INTERRUPTED, label="")
    if isinstance(error, click.ClickException):
        return _fail(_usage(error), ExitCode.USAGE)
    if isinstance(error, AndonError):
        return _fail(str(error), error.exit_code, label="" if error.exit_code == ExitCode.INTERRUPTED else "error: ")
    return _fail(_bug(error), ExitCode.INFRASTRUCTURE)


def _fail(message: str, exit_code: int, *, label: str = "error: ") -> int:
    from supervisor.api.inert import inert

    line = " ".join(part.strip() for part in inert(message).splitlines() if part.strip()) or "no reason was given"
    try:
        click.echo(f"andon: {label}{line}", err=True)
    except OSError:
        return exit_code  # nobody reads stderr any more
    return exit_code


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    return f"{message}; see '{context.command_path} --help'" if context is not None else message


def _bug(error: BaseException) -> str:
    """Keep the trace in a file and return the line that names it."""
    import tempfile
    import traceback

    handle, name = tempfile.mkstemp(prefix="andon-crash-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(traceback.format_exception(error)))
    return f"this is a bug in andon: {type(error).__name__}: {str(error)[:200]}; please report it with {name}"


def _reader_went_away() -> int:
    """Leave quietly, as `andon list | head` should: nothing is written when the interpreter flushes."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):
        return _BROKEN_PIPE
    finally:
        os.close(nowhere)
    return _BROKEN_PIPE


def _survive_odd_encodings() -> None:
    """Show what a terminal's encoding lacks as an escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
