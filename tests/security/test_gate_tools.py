"""Real gate tools in a real sandbox, each where it must not say yes: one checks job, through program, gateway, reports and gates.

The versions are those whose behaviour was measured (REQUIREMENTS.md §4 b-6). Each row says what the tool's own exit code would have made
of it: where that is 0, it is the control.
"""

import asyncio
import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from sandbox.contract.job import Assignment, Check, CheckExit
from sandbox.contract.result import CheckReport
from sandbox.contract.scope import WriteScope
from sandbox.gateway.session import Session
from sandbox.runtime.container_spec import SlotSpec
from sandbox.runtime.docker import DockerRuntime
from supervisor.gates.baseline import judge_baseline
from supervisor.gates.checks import judge_validate
from supervisor.gates.evidence import Evidence, read_evidence
from supervisor.stages.path_classes import OF_THE_TESTS
from tests.fakes.gateway_ledger import MemoryLedger
from tests.fakes.memory_tree import MemoryTree
from tests.servers.engines import TestEngine

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.abuse("S09")]

TOOLS = ["bandit==1.9.4", "black==26.10.1", "detect-secrets==1.5.0", "mypy==2.4.1", "pyright==1.1.414", "pytest-cov==7.1.0", "ruff==0.17.5"]
IMAGE = "andon/test-gate-tools"
SECRET = "AKIA" + "IOSFODNN7EXAMPLF"

FILES = {
    "clean/a.py": '"""Fine."""\n\n\ndef one() -> int:\n    """Return one."""\n    return 1\n',
    "dirty/a.py": "import os\nx=1\ny: int = 'a'\nassert eval('1')\n",
    "syntax/a.py": "def (\n",
    "secrets/a.py": f'key = "{SECRET}"\n',
    "failing/test_failing.py": "def test_a(): assert 0\n",
    "collection/test_collection.py": "import nowhere_at_all\n",
    "none/a.py": "x = 1\n",
    "skipped/test_skipped.py": """
        import pytest
        @pytest.mark.skip
        def test_a(): assert 0
        @pytest.mark.xfail
        def test_b(): assert 0
    """,
    "rewritten/conftest.py": """
        import pytest
        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_makereport(item, call):
            done = yield
            done.get_result().outcome = "passed"
    """,
    "rewritten/test_rewritten.py": "def test_a(): assert 0\n",
    "left/test_left.py": "import os\ndef test_a(): os._exit(0)\n",
    "good/test_good.py": "def test_a(): assert 1\n",
    "whole/app.py": "def one(): return 1\n",
    "whole/tests/test_whole.py": "import sys; sys.path.insert(0, 'whole')\nimport app\ndef test_a(): assert app.one() == 1\n",
    "peek/peeking.py": """
        import pathlib
        def one(): return 1 if "one() == 1" in pathlib.Path("/workspace/peek/tests/test_peek.py").read_text() else 0
    """,
    "peek/tests/test_peek.py": "import sys; sys.path.insert(0, 'peek')\nimport peeking\ndef test_a(): assert peeking.one() == 1\n",
}


@dataclass(frozen=True)
class Row:
    """One tool where it must not say yes."""

    name: str
    command: str
    exit_code: int
    """What the tool itself says."""
    told: str
    """A part of our finding; empty: it has to pass."""
    report: bool = False
    sealed: bool = False


ROWS = (
    Row("secrets-scan", "detect-secrets scan secrets", 0, "whether or not it finds secrets"),
    Row("secrets-scan-all", "detect-secrets scan --all-files secrets", 0, "whether or not it finds secrets"),
    Row("secrets-hook", "detect-secrets-hook secrets/a.py", 1, "exit code 1"),
    Row("secrets-clean", "detect-secrets-hook clean/a.py", 0, ""),
    Row("bandit-missing", "bandit -r nowhere", 0, "looked at no line of code"),
    Row("bandit-syntax", "bandit -r syntax", 0, "skipped files it could not read"),
    Row("bandit-quiet", "bandit -q -r syntax", 0, "does not say how many lines"),
    Row("bandit-json", "bandit -f json -r nowhere", 0, "does not say how many lines"),
    Row("bandit-zero", "bandit --exit-zero -r dirty", 0, "--exit-zero"),
    Row("bandit-dirty", "bandit -r dirty", 1, "exit code 1"),
    Row("bandit-clean", "bandit -r clean", 0, ""),
    Row("black-dirty", "black --check dirty", 1, "exit code 1"),
    Row("black-syntax", "black --check syntax", 123, "could not look at everything"),
    Row("black-missing", "black --check nowhere", 2, "could not look at everything"),
    Row("black-rewrites", "black --quiet dirty", 0, "changes files instead of judging"),
    Row("black-clean", "black --check clean", 0, ""),
    Row("ruff-dirty", "ruff check --no-cache dirty", 1, "exit code 1"),
    Row("ruff-syntax", "ruff check --no-cache syntax", 1, "exit code 1"),
    Row("ruff-missing", "ruff check --no-cache nowhere", 1, "exit code 1"),
    Row("ruff-zero", "ruff check --no-cache --exit-zero dirty", 0, "--exit-zero"),
    Row("ruff-clean", "ruff check --no-cache clean", 0, ""),
    Row("mypy-dirty", "mypy --cache-dir /tmp/mypy dirty", 1, "exit code 1"),
    Row("mypy-syntax", "mypy --cache-dir /tmp/mypy syntax", 2, "could not look at everything"),
    Row("mypy-missing", "mypy --cache-dir /tmp/mypy nowhere", 2, "could not look at everything"),
    Row("mypy-clean", "mypy --cache-dir /tmp/mypy clean", 0, ""),
    Row("pyright", "pyright clean", 1, "broke instead of judging"),
    Row("pytest-failing", "python -m pytest -q failing", 1, "test_a failed", report=True),
    Row("pytest-collection", "python -m pytest -q collection", 1, "cannot be collected", report=True),
    Row("pytest-missing", "python -m pytest -q nowhere", 4, "wrong command line", report=True),
    Row("pytest-none", "python -m pytest -q none", 5, "no new test passed", report=True),
    Row("pytest-skipped", "python -m pytest -q skipped", 0, "no new test passed", report=True),
    Row("pytest-rewritten", "python -m pytest -q rewritten", 0, "rewrites results", report=True),
    Row("pytest-left", "python -m pytest -q left", 0, "left no evidence", report=True),
    Row(
        "pytest-cov",
        "python -m pytest -q --cov=nowhere_at_all --cov-fail-under=60 good",
        1,
        "although its report is all green",
        report=True,
    ),
    Row("pytest-good", "python -m pytest -q good", 0, "", report=True),
    Row("pytest-peek", "python -m pytest -q peek", 0, "", report=True),
    Row("sealed-good", "python -m pytest -q whole", 0, "", report=True, sealed=True),
    Row("sealed-peek", "python -m pytest -q peek", 1, "test_a failed", report=True, sealed=True),
)

UNRELIABLE = [row for row in ROWS if not row.report and row.told and (row.exit_code == 0 or "could not look" in row.told)]


def check_of(row: Row) -> Check:
    scope = WriteScope(patterns=OF_THE_TESTS) if row.sealed else None
    return Check(
        name=row.name,
        argv=tuple(row.command.split()),
        report="junit" if row.report else "none",
        is_tests=row.report,
        canary=row.report,
        tests_scope=scope,
        timeout_s=120,
    )


def image_with_tools(engine: TestEngine, agent_image: str, directory: Path) -> str:
    """Return the agent image with the tools on it; they are fetched and put in once for each version of the image."""
    key = hashlib.sha256(" ".join([agent_image, *TOOLS]).encode()).hexdigest()[:24]
    tag = f"{IMAGE}:{key}"
    with contextlib.closing(docker.APIClient(engine.url, timeout=300)) as client:
        if not client.images(tag):
            for old in client.images(IMAGE):  # of an earlier agent image
                client.remove_image(old["Id"], force=True)
            wheels = directory / "wheels"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", str(wheels), *TOOLS]
            subprocess.run(command, check=True, timeout=300)
            install = f"RUN pip install --quiet --no-index --find-links /wheels {' '.join(TOOLS)}"
            recipe = f"FROM {agent_image.removeprefix('sha256:')}\nUSER root\nCOPY wheels /wheels\n{install}\n"
            context = io.BytesIO()
            with tarfile.open(fileobj=context, mode="w") as archive:
                archive.add(wheels, "wheels")
                entry = tarfile.TarInfo("Dockerfile")
                entry.size = len(recipe)
                archive.addfile(entry, io.BytesIO(recipe.encode()))
            context.seek(0)
            said = list(client.build(fileobj=context, custom_context=True, tag=tag, rm=True, network_mode="none", decode=True))
            assert "error" not in said[-1], said[-1]
        return str(client.images(tag)[0]["Id"])


async def run_in_a_sandbox(runtime: DockerRuntime, slot: SlotSpec, image: str, checks: tuple[Check, ...]) -> tuple[CheckExit, ...]:
    """Run checks as an executor does, and return how each ended."""
    assignment = Assignment(
        job_id="0123456789-validate-1", stage="validate", round=1, attempt=1, kind="checks", checks=checks, traceparent="", wall_s=600
    )
    async with Session(slot.gateway, None, MemoryLedger(), None, stage="validate", round_=1, peer_uid=slot.uid) as session:
        box = await runtime.stand_by(slot, image)
        try:
            session.assign(assignment)
            await asyncio.wait_for(box.wait(), 600)
        finally:
            await box.remove()
        assert session.submission is not None
        return session.submission.exits


@pytest.fixture(scope="module")
def left_on() -> dict[str, dict[str, tuple[CheckExit, Evidence]]]:
    """Keep what the one job of each engine left, by row, for all tests of this file."""
    return {}


@pytest.fixture
async def evidence(
    docker_runtime: DockerRuntime,
    engine: TestEngine,
    agent_image: str,
    a_slot: Callable[..., SlotSpec],
    tmp_path: Path,
    left_on: dict[str, dict[str, tuple[CheckExit, Evidence]]],
) -> dict[str, tuple[CheckExit, Evidence]]:
    """Return each row's end and evidence."""
    left = left_on.setdefault(engine.name, {})
    if not left:
        image = await asyncio.to_thread(image_with_tools, engine, agent_image, tmp_path)
        slot = a_slot(deadline=time.time() + 900)
        for name, text in FILES.items():
            path = slot.workspace / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        for path in [slot.workspace, *slot.workspace.rglob("*")]:
            os.chown(path, slot.uid, slot.gid)
        checks = tuple(check_of(row) for row in ROWS)
        for check, ended in zip(checks, await run_in_a_sandbox(docker_runtime, slot, image, checks), strict=True):
            report = slot.out / f"{check.name}.xml"
            problem = None if report.exists() or check.report == "none" else f"no report at /out/{report.name}"
            told = [CheckReport(name=check.name, exit=ended, problem=problem)]
            left[check.name] = ended, read_evidence([check], told, {check.name: report.read_bytes()} if report.exists() else {})
    return left


GREEN = Check(name="green", argv=("python", "-m", "pytest"), report="junit", is_tests=True)
GREEN_REPORT = b'<testsuite><testcase classname="tests.test_new" name="test_new"/></testsuite>'


def judged(row: Row, of_row: Evidence) -> str:
    """Return our findings on a row; a tool that is no test stands beside tests that are all green."""
    ended = CheckReport(name="green", exit=CheckExit(name="green", exit_code=0, duration_s=1))
    green = read_evidence([GREEN], [ended], {"green": GREEN_REPORT})
    checks = of_row.checks if row.report else {**green.checks, **of_row.checks}
    return "\n".join(each.message for each in judge_validate(Evidence(checks=checks), None, None, []).findings)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_tool_that_must_not_say_yes_does_not(row: Row, evidence: dict[str, tuple[CheckExit, Evidence]]):
    """Its exit code is what it was measured to be (the control where it is 0), and our gate says no, with the reason."""
    ended, of_row = evidence[row.name]
    found = judged(row, of_row)

    assert ended.exit_code == row.exit_code, ended.output_tail  # control
    assert (row.told in found) if row.told else (found == ""), found


@pytest.mark.parametrize(
    "row", [row for row in ROWS if "could not look" in row.told or (row.exit_code == 0 and row.told and not row.report)]
)
async def test_a_tool_that_cannot_look_stops_the_baseline(row: Row, evidence: dict[str, tuple[CheckExit, Evidence]]):
    """Else it would be red before and red after, and that counts as no worse."""
    said = judge_baseline(evidence[row.name][1], MemoryTree())

    assert said.verdict == "fail"
    assert said.usage_error


async def test_a_sealed_run_in_a_sandbox_is_said_to_be_one(evidence: dict[str, tuple[CheckExit, Evidence]]):
    """Landlock works behind the walls of the sandbox, and the product cannot read the tests there; in one process it can."""
    sealed, plain = evidence["sealed-good"][1], evidence["pytest-peek"][1]

    assert judge_validate(sealed, None, None, []).assurance == "sealed"
    assert judge_validate(plain, None, None, []).assurance == "in-process"
    assert "Permission denied" in str(evidence["sealed-peek"][1].checks["sealed-peek"].red)
