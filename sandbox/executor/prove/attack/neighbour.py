"""Two sandboxes at once: one takes all it can of what is counted by user and leaves a mark; the other looks for what it can reach of it."""

import ctypes
import os
import socket
import sys
import time
from pathlib import Path

from . import search
from .attempts import Stopped, attempt, report

PORT = 4242
READY = "andon-prove-ready"
_INOTIFY_MAX = "/proc/sys/fs/inotify/max_user_instances"
_IN_ONE_PROCESS = 900
_IN_ALL_MAX = 4_000
_HOLD_S = 100.0
_LIBC = ctypes.CDLL(None, use_errno=True)


def hold(mark: str, places: list[str], *, limits: bool) -> None:
    """Take every inotify instance of this user (if `limits`), listen, leave the mark, say so, and stay until killed, a while at most."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("0.0.0.0", PORT))
    listener.listen(8)
    for place in places:
        Path(place, "prove-mark").write_text(mark)
    allowed = _allowed()
    if limits and 0 < allowed <= _IN_ALL_MAX:
        for _ in range(-(-allowed // _IN_ONE_PROCESS)):
            _take_in_a_child()
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    time.sleep(_HOLD_S)


def _allowed() -> int:
    """Return how many inotify instances a user may have; 0 if this kernel does not say."""
    try:
        return int(Path(_INOTIFY_MAX).read_text())
    except OSError:
        return 0


def _take_in_a_child() -> None:
    reading, writing = os.pipe()
    if os.fork() == 0:
        for _ in range(_IN_ONE_PROCESS):
            if _LIBC.inotify_init1(0) < 0:
                break
        os.write(writing, b"x")
        time.sleep(_HOLD_S)
        os._exit(0)
    os.read(reading, 1)


def visit(address: str, wanted: search.Wanted, *, limits: bool) -> None:
    """Look for the other.

    Args:
        address: Where the other would be by IP; empty: it has no address, and loopback is tried.
        wanted: Its mark.
        limits: Whether to try the limits of the user.
    """
    allowed = _allowed()
    if not limits:
        report("neighbour.limits", False, "not tried")
    elif not 0 < allowed <= _IN_ALL_MAX:
        report("neighbour.limits", False, "not tried: " + (f"{allowed} inotify instances a user" if allowed else "this kernel counts none"))
    else:
        attempt("neighbour.limits", _denied)
    attempt("neighbour.network", lambda: _connected(address or "127.0.0.1"))
    attempt("neighbour.files", lambda: search.in_files(wanted))
    attempt("neighbour.processes", lambda: _seen(wanted))


def _denied() -> str:
    if _LIBC.inotify_init1(0) < 0:
        return f"{os.strerror(ctypes.get_errno())}: the other took them all"
    raise Stopped("there is one for us")


def _connected(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as going:
        going.settimeout(1)
        going.connect((address, PORT))
        return f"connected to the other at {address}"


def _seen(wanted: search.Wanted) -> str:
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        if wanted.is_in(Path(f"/proc/{pid}/cmdline").read_bytes()):
            return f"process {pid} is the other"
    raise Stopped("no process of the other is seen")
