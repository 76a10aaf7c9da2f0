"""Which foreign programs a run's agents are, for the baseline to look for them in the image before a cent is spent; not how they run."""

from collections.abc import Iterable

from sandbox.contract.agent_spec import DriverSpec
from sandbox.contract.job import Check

NAME = "agent-programs"
CLAUDE_CODE = "claude"
"""The first word of the driver's file, `sandbox/inside/drivers/claude-code.toml`."""
_LOOK = 'for name; do command -v "$name" >/dev/null || { echo "$name"; code=127; }; done; exit "${code:-0}"'
"""Prints the names that are nowhere on `PATH`."""
_COMMAND = ("sh", "-c", _LOOK, "sh")
_LOOK_S = 30


def program_of(driver: DriverSpec | None) -> str:
    """Return the name an image has to have on its `PATH` for this driver; empty if there is none, or only the sandbox can tell."""
    if driver is None or driver.kind == "builtin" or "PATH" in driver.environment:
        return ""
    name = CLAUDE_CODE if driver.kind == "claude-code" else driver.command[0]
    return "" if "/" in name or "{" in name or name.startswith("-") else name


def programs_check(programs: Iterable[str], checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """Return the check that looks for programs, none where there is nothing to look for or a repository's own check has its name."""
    names = sorted({name for name in programs if name})
    if not names or any(check.name == NAME for check in checks):
        return ()
    return (Check(name=NAME, argv=(*_COMMAND, *names), timeout_s=_LOOK_S),)


def is_programs_check(argv: tuple[str, ...]) -> bool:
    """Return whether a command is the one of `programs_check`."""
    return argv[: len(_COMMAND)] == _COMMAND
