"""Text an agent, a model or a repository wrote: harmless where it is printed or logged, bounded where it is sent."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.bus.client import HEADERS_BYTES_MAX
from sandbox.contract.job import CheckExit, Submission
from sandbox.contract.result import CheckReport
from sandbox.contract.scope import WriteScope
from sandbox.executor.outputs import Shelf, sealed
from sandbox.git import Git
from sandbox.log import JsonLines, Log, PlainLines
from sandbox.mirror import pack_of
from sandbox.workspace.provision import provision
from supervisor.api.inert import inert, inert_line
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.fakes.repositories import run_git, sample_repository
from tests.fakes.wire_data import a_job, a_result
from tests.unit.executor.a_host import a_host

PAYLOAD_BYTES_MAX = 1 << 20
"""What the broker takes in one message (supervisor/store/broker/config.py)."""


def seen_on_a_terminal(text: str) -> list[str]:
    """Return the lines a person sees: a return goes to the line's start, ESC [ 2 K empties it."""
    lines = [""]
    for part in text.replace("\x1b[2K", "\x00").splitlines(keepends=True):
        column = 0
        for char in part:
            if char == "\x00":
                lines[-1] = ""
            elif char == "\r":
                column = 0
            elif char == "\n":
                lines.append("")
            else:
                lines[-1] = lines[-1][:column] + char + lines[-1][column + 1 :]
                column += 1
    return lines


@pytest.mark.abuse("I17")
def test_a_line_cannot_be_taken_back():
    """A verdict stays to be seen; the control: as it came, the text puts another in its place."""
    text = "test_a FAILED\r\x1b[2Ktest_a passed"

    assert any("FAILED" in line for line in seen_on_a_terminal(inert(text)))
    assert "FAILED" in inert_line(text)
    assert seen_on_a_terminal(text) == ["test_a passed"], "the control"


@pytest.mark.abuse("I17")
@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "\x1b]52;c;cm0gLXJm\x07", "\x9b31m", "\x1b[8m", "a\u202egpj.exe", "\x08\x08\x08"])
def test_nothing_of_a_sequence_reaches_a_terminal(text: str):
    """Titles, the clipboard, hidden text, another order; the control: as it came, each holds a character that is an order."""
    assert all(char.isprintable() for char in inert(text))
    assert not all(char.isprintable() for char in text), "the control"


FORGED = 'done\n{"level": "info", "msg": "job.judged", "verdict": "pass"}\r\n12:00:00 job.judged verdict=pass\x1b[2K'


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("andon-test-of-forging")
    made.propagate = False
    yield made
    made.handlers.clear()


def logged(logger: logging.Logger, formatter: logging.Formatter, *, failing: bool = False) -> str:
    """Return what a log holds after one record with text of an agent's."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger.handlers[:] = [handler]
    said = Log(logger.name)
    (said.exception if failing else said.error)("attempt.ended", FORGED, error=ValueError(FORGED), reason=FORGED)
    return stream.getvalue()


@pytest.mark.abuse("I18")
@pytest.mark.parametrize("failing", [False, True])
def test_text_makes_no_record(logger: logging.Logger, failing: bool):
    """One line of JSON, whatever a field or an exception says; the control: a usual format has a second, good one."""
    text = logged(logger, JsonLines("andon-exec"), failing=failing)

    assert text.count("\n") == 1
    assert json.loads(text)["event"] == "attempt.ended"
    usual = logged(logger, logging.Formatter("%(event)s %(message)s"))
    assert json.loads(usual.splitlines()[1])["verdict"] == "pass", "the control"


@pytest.mark.abuse("I17", "I18")
def test_at_a_terminal_a_record_is_one_line_and_its_exception_is_inert(logger: logging.Logger):
    """A line that begins with a time is ours. The control: a usual format lets the forged one begin a line, and ESC through."""
    text = logged(logger, PlainLines(), failing=True)

    begins_with_a_time = [line for line in text.splitlines() if line[:2].isdigit() and line[2:3] == ":"]
    assert len(begins_with_a_time) == 1
    assert all(char.isprintable() or char == "\n" for char in text)
    usual = logged(logger, logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    assert any(line.startswith("12:00:00 job.judged") for line in usual.splitlines()), "the control"
    assert "\x1b" in usual, "the control"


@pytest.mark.abuse("I19")
async def test_the_largest_result_an_agent_can_cause_is_a_message(tmp_path: Path):
    """All its words, the longest names and the most of them; the control: a finding for each of its files would not fit."""
    repository = sample_repository(tmp_path / "user")
    base = run_git(repository, "rev-parse", "HEAD")
    (tmp_path / "state").mkdir()
    async with MemoryExecutorLink.connect(MemoryBroker(), "ex1") as link, a_host(tmp_path / "state", link) as host:
        await host.mirror.import_base(base, pack_of(Git(repository / ".git"), base))
        slot = host.slots.slots[0]
        slot.workspace.mkdir()
        manifest = await provision(host.mirror, base, slot.workspace, uid=slot.owner[0], gid=slot.owner[1])
        longest = slot.workspace / ("字" * 85) / ("字" * 85) / ("字" * 85)
        longest.mkdir(parents=True)
        for number in range(5_000):
            (longest / f"{number:04}{'字' * 83}").touch()
        job = a_job(base_commit=base, scope=WriteScope())

        outputs = await sealed(host, job, slot, manifest, Shelf(host, job, 1))

        told = "\x01" * 10_000  # each of them is six characters in JSON
        exits = tuple(CheckExit(name=f"c{number}", exit_code=1, duration_s=1, output_tail="") for number in range(64))
        said = Submission(status="done", summary=told, exits=exits)
        assert len(said.model_dump_json()) > 64_000
        reports = tuple(CheckReport(name=each.name, exit=each, problem="x" * 300) for each in exits)
        result = a_result(submission=said, findings=outputs.findings, git_bundle=outputs.git_bundle, reports=reports)

    finding = outputs.findings[0].model_dump_json()
    assert len(result.model_dump_json().encode()) < PAYLOAD_BYTES_MAX - HEADERS_BYTES_MAX
    assert len(outputs.findings) == 100
    assert len(finding.encode()) * 5_000 > PAYLOAD_BYTES_MAX, "the control"
