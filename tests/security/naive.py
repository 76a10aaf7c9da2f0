"""A host that reads as most programs do, for positive controls; it runs in a process of its own that cannot harm this machine."""

import resource
import subprocess
import sys

_TIMEOUT_S = 3
_STARTS = "import sys, os, json\n"


def naive(code: str, *args: object, memory_bytes_max: int = 512 << 20, timeout_s: float = _TIMEOUT_S) -> str:
    """Return how a Python program ends: `ok`, `hangs`, `dies <code>`, or its exception's name."""
    argv = [sys.executable, "-I", "-c", _STARTS + code, *map(str, args)]
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    resource.prlimit(child.pid, resource.RLIMIT_AS, (memory_bytes_max, memory_bytes_max))
    try:
        said = child.communicate(timeout=timeout_s)[1].strip()
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return "hangs"
    if child.returncode == 0:
        return "ok"
    return said.splitlines()[-1].partition(":")[0] if said and child.returncode > 0 else f"dies {child.returncode}"
