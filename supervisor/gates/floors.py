"""Floors of evidence: commands that end with 0 although nothing was looked at (REQUIREMENTS.md b-6); only ever a reason to fail."""

import re
from pathlib import PurePosixPath

from supervisor.gates.evidence import CheckEvidence

_SCANNED_NOTHING = (
    (re.compile(r"^\s*Total lines of code: 0\s*$", re.MULTILINE), "looked at no line of code"),
    (re.compile(r"^Files skipped \([1-9][0-9]*\):", re.MULTILINE), "skipped files it could not read"),
    (re.compile(r"No Python files found under the given path"), "found no Python file"),
    (re.compile(r"No Python files are present to be formatted"), "found no Python file"),
)


def unreliable(check: CheckEvidence) -> str:
    """Return why a command's success proves nothing, as a sentence without its subject, or an empty text."""
    names = [PurePosixPath(word).name for word in check.argv]
    if "detect-secrets" in names and "scan" in names:
        return "ends with 0 whether or not it finds secrets; use `detect-secrets-hook` with file names"
    if "--collect-only" in names or "--co" in names:
        return "collects tests and runs none"
    return next((reason for pattern, reason in _SCANNED_NOTHING if pattern.search(check.output_tail)), "")
