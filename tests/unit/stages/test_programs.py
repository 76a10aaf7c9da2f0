"""Looking for the programs of foreign agents: which names, by a real shell, and how it is told."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sandbox.contract.agent_spec import DriverSpec
from sandbox.contract.job import Check
from supervisor.gates.baseline import judge_baseline
from supervisor.gates.evidence import CheckEvidence, Evidence
from supervisor.stages.programs import CLAUDE_CODE, NAME, program_of, programs_check
from tests.fakes.memory_tree import MemoryTree

ROOT = Path(__file__).parents[3]


def command(*words: str, **environment: str) -> DriverSpec:
    return DriverSpec(kind="command", command=words, environment=environment)


def test_the_program_of_a_driver_is_its_first_word():
    """For Claude Code the one its driver file names."""
    file = tomllib.loads((ROOT / "sandbox/inside/drivers/claude-code.toml").read_text())

    assert program_of(DriverSpec(kind="claude-code")) == CLAUDE_CODE == file["command"][0]
    assert program_of(command("mini", "--yolo")) == "mini"


@pytest.mark.parametrize(
    "driver", [None, DriverSpec(), command("./agent.sh"), command("/opt/agent"), command("{workspace}"), command("mini", PATH="/opt/bin")]
)
def test_what_only_the_stage_can_tell_is_not_looked_for(driver: DriverSpec | None):
    """A path may be made by an earlier stage, and a PATH of its own is the agent's alone."""
    assert program_of(driver) == ""


def test_a_check_of_that_name_is_the_repositorys_own():
    """It is not replaced; and where there is nothing to look for there is no check."""
    theirs = (Check(name=NAME, argv=("true",)),)

    assert programs_check(["mini"], theirs) == ()
    assert programs_check(["", ""], ()) == ()


@pytest.mark.parametrize(("program", "verdict"), [(Path(sys.executable).name, "pass"), ("no-such-agent", "fail")])
def test_a_program_that_is_missing_fails_the_baseline_and_is_named(program: str, verdict: str):
    """As a real shell finds it: exit 2 of the run, with what to do; one that is there is not mentioned."""
    (check,) = programs_check([program, "sh"], ())
    done = subprocess.run(check.argv, capture_output=True, text=True, check=False, env={"PATH": f"{Path(sys.executable).parent}:/bin"})
    seen = CheckEvidence(
        name=check.name, argv=check.argv, report="none", exit_code=done.returncode, output_tail=done.stdout, duration_s=0.1, said=True
    )

    said = judge_baseline(Evidence(checks={check.name: seen}), MemoryTree())

    assert said.verdict == verdict
    assert [each.message.startswith("the program of an agent is not in the image: no-such-agent; ") for each in said.findings] == (
        [True] if verdict == "fail" else []
    )
