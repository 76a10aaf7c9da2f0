"""Floors of evidence: commands that say yes although they looked at nothing, or broke (REQUIREMENTS.md b-6); only ever a reason to fail."""

import re
from pathlib import PurePosixPath

from supervisor.gates.evidence import CheckEvidence

_SCANNED_NOTHING = (
    (re.compile(r"^\s*Total lines of code: 0\s*$", re.MULTILINE), "looked at no line of code"),
    (re.compile(r"^Files skipped \([1-9][0-9]*\):", re.MULTILINE), "skipped files it could not read"),
    (re.compile(r"No Python files found under the given path"), "found no Python file"),
    (re.compile(r"No Python files are present to be formatted"), "found no Python file"),
)
_BROKE = {
    "bandit": {2},
    "black": {2, 123},
    "detect-secrets-hook": {2},
    "eslint": {2},
    "flake8": {2},
    "isort": {2},
    "mypy": {2},
    "pyright": {2, 3, 4},
    "pylint": {32},
    "ruff": {2},
}
"""Exit codes by which a tool says that it could not look, not what it saw."""
_ALWAYS_FINE = frozenset({"--exit-zero", "--fix", "--unsafe-fixes"})
_REWRITES = {"black": {"--check", "--diff"}, "isort": {"--check", "--check-only", "-c", "--diff"}, "ruff format": {"--check", "--diff"}}
_BANDIT_LOOKED = re.compile(r"Total lines of code: [1-9]")
_TRACEBACK = "Traceback (most recent call last):"


def unreliable(check: CheckEvidence) -> str:
    """Return why a command's word proves nothing, as a sentence without its subject, or an empty text."""
    words = [PurePosixPath(word).name for word in check.argv]
    tool = tool_of(words)
    return (
        _by_options(tool, words)
        or next((reason for pattern, reason in _SCANNED_NOTHING if pattern.search(check.output_tail)), "")
        or ("" if check.is_tests else _by_its_end(tool, check))
    )


def tool_of(words: list[str]) -> str:
    """Return the program a command runs, by name or by `python -m`; `ruff format` is one of its own."""
    if "-m" in words[:4]:
        words = words[words.index("-m") + 1 :]
    return "ruff format" if words[:2] == ["ruff", "format"] else next(iter(words), "")


def _by_options(tool: str, words: list[str]) -> str:
    if tool == "detect-secrets" and "scan" in words:
        return "ends with 0 whether or not it finds secrets; use `detect-secrets-hook` with file names"
    if "--collect-only" in words or "--co" in words:
        return "collects tests and runs none"
    fine = sorted(_ALWAYS_FINE & set(words))
    if fine:
        return f"is told by {fine[0]} to end well although it finds something"
    if tool in _REWRITES and not _REWRITES[tool] & set(words):
        return "changes files instead of judging them; add `--check`"
    return ""


def _by_its_end(tool: str, check: CheckEvidence) -> str:
    if check.exit_code in _BROKE.get(tool.removesuffix(" format"), ()):
        return f"could not look at everything (exit code {check.exit_code}): {_last_line(check)}"
    if check.exit_code not in {0, None} and _TRACEBACK in check.output_tail:
        return f"broke instead of judging: {_last_line(check)}"
    if tool == "bandit" and check.report == "none" and not _BANDIT_LOOKED.search(check.output_tail):
        return "does not say how many lines it looked at; leave its text output on (no `-q`, no `-f`), or let it write SARIF"
    return ""


def _last_line(check: CheckEvidence) -> str:
    return (check.output_tail.strip().splitlines() or ["no output"])[-1][:300]
