"""How a child process is bound to its parent's life; not which children there are (`embedded`, `stack`)."""

import os
import sys

# The parent-death signal is asked for by the child itself, between fork and exec of its program: nothing of ours runs in a
# forked copy of a process with threads. The second look at the parent closes the gap in which it may have died.
_LAUNCH = """
import ctypes, os, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, 15, 0, 0, 0) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG) failed")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound_to_us(argv: list[str]) -> list[str]:
    """Return the command that runs `argv` (absolute program first) and gets SIGTERM when this process dies, even by kill -9.

    The signal follows the thread that forks: start such a child on the main thread.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *argv]
