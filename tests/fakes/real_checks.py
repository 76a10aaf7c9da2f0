"""Runs real pytest on files a test gives, as the program in the container does, and returns what gates read; nothing is faked."""

import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from sandbox.contract.blob import BlobRef
from sandbox.contract.job import Check, CheckExit
from sandbox.contract.result import CheckReport
from sandbox.inside.checks.importing import import_and_read
from sandbox.inside.checks.sealing import plugins_for
from sandbox.inside.paths import Paths
from supervisor.gates.evidence import Evidence, read_evidence

TESTS = Check(name="tests", argv=("python", "-m", "pytest", "-q"), report="junit", is_tests=True, canary=True)


def evidence_of(directory: Path, files: Mapping[str, str], *options: str) -> Evidence:
    """Return the evidence real pytest leaves on a directory of `files`."""
    ended, report = run_pytest(directory, files, *options)
    return read_evidence([TESTS], [report_of(TESTS, ended)], {} if report is None else {"tests": report})


def run_pytest(directory: Path, files: Mapping[str, str], *options: str) -> tuple[CheckExit, bytes | None]:
    """Write files, run pytest in its own process, return how it ended and its JUnit file."""
    root = directory / "repository"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    report = directory / "tests.xml"
    paths = Paths.below(str(directory))._replace(workspace=root)
    paths.tmp.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTEST_ADDOPTS": f"--junitxml={report} --continue-on-collection-errors -p no:cacheprovider",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment = plugins_for(TESTS, paths, environment).environment
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options], cwd=root, env=environment, capture_output=True, timeout=60, check=False
    )
    tail = (done.stdout + done.stderr).decode("utf-8", "replace")[-16_000:]
    ended = CheckExit(name="tests", exit_code=done.returncode, duration_s=1.0, output_tail=tail)
    return ended, report.read_bytes() if report.exists() else None


def run_import(directory: Path, files: Mapping[str, str], check: Check) -> tuple[CheckExit, bytes | None]:
    """Write files, let this Python import what a check names, return how it ended and the report."""
    paths = Paths.below(str(directory))
    for each in (paths.workspace, paths.tmp):
        each.mkdir(parents=True)
    for name, text in files.items():
        path = paths.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    output: list[bytes] = []
    environment = {"PATH": os.environ["PATH"]}
    ended, report = import_and_read(check.model_copy(update={"argv": (sys.executable,)}), paths, environment, 60, output.append)
    tail = b"".join(output).decode("utf-8", "replace")[-16_000:]
    digest = hashlib.sha256(report).hexdigest() if report is not None else None
    return CheckExit(name=check.name, exit_code=ended.exit_code, duration_s=1.0, output_tail=tail, report_sha256=digest), report


def report_of(check: Check, ended: CheckExit | None, problem: str | None = None) -> CheckReport:
    """Return what an executor says of one check."""
    ref = BlobRef(bucket="OUT_ex1", name=f"x/report-{check.name}", sha256="0" * 64, size_bytes=1)
    return CheckReport(name=check.name, exit=ended, report=None if problem else ref, problem=problem)
