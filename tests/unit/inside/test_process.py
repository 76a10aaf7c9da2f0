"""One command in its own process group."""

import os
import signal
import time
from pathlib import Path

import pytest

from sandbox.inside.process import CommandNotStarted, Ended, run_process

ENV = {"PATH": os.environ["PATH"]}


def run(script: str, cwd: Path, timeout_s: float = 20.0) -> tuple[Ended, str]:
    output = bytearray()
    ended = run_process(["bash", "-c", script], cwd=cwd, env=ENV, timeout_s=timeout_s, sink=output.extend)
    return ended, output.decode()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + 5
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is alive"
        time.sleep(0.01)


def test_output_and_exit_code_come_back(tmp_path: Path) -> None:
    """Both streams are merged in the order they were written."""
    ended, output = run("echo one; echo two >&2; echo three; exit 3", tmp_path)

    assert (ended.exit_code, output) == (3, "one\ntwo\nthree\n")


def test_a_signal_is_a_negative_exit_code(tmp_path: Path) -> None:
    """As subprocess says it."""
    ended, _ = run("kill -KILL $$", tmp_path)

    assert ended.exit_code == -signal.SIGKILL


def test_the_environment_is_exactly_what_was_given(tmp_path: Path) -> None:
    """Nothing of ours leaks into a command."""
    output = bytearray()

    run_process(["/usr/bin/env"], cwd=tmp_path, env={"ONE": "1"}, timeout_s=5, sink=output.extend)

    assert output == b"ONE=1\n"


def test_a_timeout_kills_grandchildren_that_hold_the_pipe(tmp_path: Path) -> None:
    """Partial output is kept and the call returns at its deadline."""
    started = time.monotonic()

    ended, output = run("echo begun; sleep 100 & echo $!; wait", tmp_path, timeout_s=0.5)

    assert ended.exit_code is None
    assert time.monotonic() - started < 5
    begun, pid = output.split()
    assert begun == "begun"
    wait_until_dead(int(pid))


def test_a_background_child_dies_with_its_command(tmp_path: Path) -> None:
    """The end of the first process ends the call, although the child holds the pipe."""
    started = time.monotonic()

    ended, output = run("sleep 100 & echo $!", tmp_path)

    assert ended.exit_code == 0
    assert time.monotonic() - started < 5
    wait_until_dead(int(output))


def test_an_escaped_grandchild_is_not_waited_for(tmp_path: Path) -> None:
    """`setsid` leaves the group and is not found again; the call ends all the same."""
    started = time.monotonic()

    ended, output = run("setsid sleep 100 & echo $!; sleep 0.2", tmp_path)

    assert ended.exit_code == 0
    assert time.monotonic() - started < 5
    os.kill(int(output), signal.SIGKILL)


def test_a_command_that_closes_its_output_is_still_timed(tmp_path: Path) -> None:
    """End of output is not end of process."""
    ended, _ = run("exec >&- 2>&-; sleep 100", tmp_path, timeout_s=0.3)

    assert ended.exit_code is None


def test_endless_output_ends_at_the_deadline(tmp_path: Path) -> None:
    """A pipe that is never empty does not hide the clock."""
    ended = run_process(["yes"], cwd=tmp_path, env=ENV, timeout_s=0.3, sink=lambda chunk: None)

    assert ended.exit_code is None
    assert ended.duration_s < 5


def test_a_missing_program_is_said(tmp_path: Path) -> None:
    """Not a crash of the runner."""
    with pytest.raises(CommandNotStarted, match="no-such-program"):
        run_process(["no-such-program"], cwd=tmp_path, env=ENV, timeout_s=5, sink=lambda chunk: None)


def test_a_command_reads_nothing(tmp_path: Path) -> None:
    """Standard input is empty, so that a question does not hang until the timeout."""
    ended, output = run("cat; echo done", tmp_path)

    assert (ended.exit_code, output) == (0, "done\n")
