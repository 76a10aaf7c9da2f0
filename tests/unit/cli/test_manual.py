"""`docs/cli.md` and `docs/wire.md` name everything there is, and nothing there is not."""

import re
from pathlib import Path

import click
import pytest

from sandbox.contract import subjects
from supervisor.api.fleet import ExecutorRow
from supervisor.api.views import ListRow, Probe, RunResult
from supervisor.api.walls import WallProof
from supervisor.cli.entry import COMMANDS, andon
from supervisor.config import ENVIRONMENT, PROVIDER_ENVIRONMENT
from supervisor.errors import ExitCode
from supervisor.pipeline.submit import Reason
from tests.fakes.command_line import CommandLine

DOCS = Path(__file__).parents[3] / "docs"
MANUAL = (DOCS / "cli.md").read_text()


def section(command: str) -> str:
    """Return the part of the manual about one command."""
    found = re.search(rf"(?ms)^## [^\n]*\bandon {command}\b[^\n]*\n.*?(?=^## |\Z)", MANUAL)
    assert found, f"docs/cli.md has no heading for andon {command}"
    return found[0]


def options_of(command: click.Command) -> set[str]:
    """Return every spelling of every option, those of subcommands included."""
    own = {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}
    return own.union(*(options_of(each) for each in getattr(command, "commands", {}).values()))


@pytest.fixture
def command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Return a command line with a home of its own; `andon` is the group here."""
    return CommandLine(tmp_path / "home", capsys)


@pytest.mark.parametrize("name", sorted({*COMMANDS} - {"executor"}))
def test_every_option_is_in_its_commands_section(name: str) -> None:
    """And the section names no option the command has not."""
    command = andon.get_command(click.Context(andon), name)
    assert command is not None

    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(re.findall(r"`([^`]+)`", section(name)))))

    assert options_of(command) <= named
    assert named - {"--help", "--version", "--budget"} <= options_of(command)


def test_every_option_of_the_executor_is_in_its_section(command_line: CommandLine) -> None:
    """It reads its own arguments; what its help names is what there is."""
    offered = set(re.findall(r"--[a-z-]+", command_line("executor", "--help").out)) - {"--help"}

    assert set(re.findall(r"`(--[a-z-]+)", section("executor"))) == offered


def test_every_setting_is_in_the_table() -> None:
    """With its environment's name."""
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \| `(\w+)` \|", MANUAL))

    assert rows == {key: names[0] for key, names in ENVIRONMENT.items()}
    assert [name for name in PROVIDER_ENVIRONMENT if name.isupper() and f"`{name}`" not in MANUAL] == []


def test_every_exit_code_is_in_the_table() -> None:
    """141 is the shell's own."""
    assert {int(code) for code in re.findall(r"(?m)^\| (\d+) \|", MANUAL)} == {*map(int, ExitCode), 141}


@pytest.mark.parametrize(
    ("model", "command"),
    [(RunResult, "run"), (ListRow, "list"), (Probe, "doctor"), (WallProof, "doctor"), (ExecutorRow, "fleet"), (Reason, "why")],
)
def test_every_key_of_an_object_is_named(model: type[RunResult | ListRow | Probe | WallProof | ExecutorRow | Reason], command: str) -> None:
    """What a program may rely on is written down."""
    assert [key for key in model.model_fields if f"`{key}`" not in section(command)] == []


def test_every_subject_is_on_the_page_about_the_wire() -> None:
    """Constants, and what the functions return for a placeholder."""
    page = (DOCS / "wire.md").read_text()
    constants = [
        value for name, value in vars(subjects).items() if name.isupper() and isinstance(value, str) and value.startswith("andon.")
    ]
    made = [
        subjects.job("<pool>"),
        subjects.result("<executor>"),
        subjects.events("<run>"),
        subjects.telemetry("<executor>"),
        subjects.claim("<executor>"),
        subjects.budget("<executor>"),
        subjects.control("<executor>", "<verb>"),
        subjects.progress("<executor>"),
    ]

    assert [subject for subject in (*constants, *made) if f"`{subject}`" not in page] == []
