"""A host that reads as most programs do, for positive controls; it runs in a process of its own that cannot harm this machine."""

import resource
import signal
import subprocess
import sys

CPU_S = 2
"""Of computing, whatever else the machine does; more is a hang."""
_WALL_S = 60.0
_STARTS = "import sys, os, json\n"


def naive(code: str, *args: object, memory_bytes_max: int = 512 << 20, timeout_s: float = _WALL_S) -> str:
    """Return how a Python program ends: `ok`, `hangs`, `dies <code>`, or its exception's name.

    Args:
        code: The program; `sys`, `os` and `json` are imported.
        args: Its arguments.
        memory_bytes_max: Address space it may use.
        timeout_s: Seconds until a program that waits is said to hang.
    """
    argv = [sys.executable, "-I", "-c", _STARTS + code, *map(str, args)]
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    resource.prlimit(child.pid, resource.RLIMIT_AS, (memory_bytes_max, memory_bytes_max))
    resource.prlimit(child.pid, resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    try:
        said = child.communicate(timeout=timeout_s)[1].strip()
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return "hangs"
    if child.returncode in (0, -signal.SIGXCPU):
        return "hangs" if child.returncode else "ok"
    return said.splitlines()[-1].partition(":")[0] if said and child.returncode > 0 else f"dies {child.returncode}"
