"""The attack on limits that are counted by user, between two real users and within one."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLAY = """
import os, sys
sys.path.insert(0, sys.argv[1])
from sandbox.executor.prove.attack import neighbour
first, second, neighbour._INOTIFY_MAX = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ready, writing = os.pipe()
going, goes = os.pipe()  # its other end closes with the visitor
if os.fork() == 0:
    os.close(goes)
    os.setuid(first)
    getattr(neighbour, sys.argv[5])()
    os.write(writing, b"x")
    os.read(going, 1)
    os.killpg(0, 9)
os.close(writing)
os.close(going)
assert os.read(ready, 1), "the other broke off"
os.setuid(second)
try:
    print("won:", neighbour.denied())
except neighbour.Stopped as stopped:
    print("stopped:", stopped)
sys.stdout.flush()
"""
COUNTED, UNCOUNTED = "/proc/sys/fs/inotify/max_user_instances", "/nonexistent"


def played(first: int, second: int, counted_in: str, taken: str) -> str:
    program = [sys.executable, "-c", PLAY, str(ROOT), str(first), str(second), counted_in, taken]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False, start_new_session=True)
    assert done.stdout, done.stderr
    return done.stdout


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="not run (needs root)")
@pytest.mark.parametrize(
    ("taken", "counted_in", "gained"),
    [
        ("take_instances", COUNTED, "the other took all inotify instances"),
        ("take_instances", UNCOUNTED, "the other took all inotify instances"),
        ("take_pipes", COUNTED, "a pipe is shorter than it should be"),
    ],
)
def test_who_takes_all_leaves_none_to_the_same_user_and_all_to_another(taken: str, counted_in: str, gained: str):
    """Also where the kernel does not say how many there are: what was not tried would not have failed."""
    user = random.randrange(3_000_000, 4_000_000)

    same, other = (played(user, visitor, counted_in, taken) for visitor in (user, user + 1))

    assert same.startswith("won: ")
    assert gained in same
    assert other.startswith("stopped: an inotify instance and a whole pipe are left")
