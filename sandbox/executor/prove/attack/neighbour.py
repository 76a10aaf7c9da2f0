"""Two sandboxes at once: one takes all it can of what is counted by user and leaves a mark; the other looks for what it can reach of it."""

import contextlib
import ctypes
import fcntl
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
_PIPES_MAX = 200
_PIPE_BYTES, _LARGE_PIPE_BYTES = 64 << 10, 1 << 20
"""What a pipe has, and what any user may have it enlarged to; by default there is room for 64 large ones of one user."""
_HOLD_S = 100.0
_LIBC = ctypes.CDLL(None, use_errno=True)


def hold(mark: str, places: list[str], *, limits: bool) -> None:
    """Take all inotify instances and pipe buffers of this user (if `limits`), listen, leave the mark, say so, and stay until killed."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("0.0.0.0", PORT))
    listener.listen(8)
    for place in places:
        Path(place, "prove-mark").write_text(mark)
    if limits:
        take_instances()
        take_pipes()
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    time.sleep(_HOLD_S)


def take_instances() -> None:
    """Take all inotify instances of this user, or a good many where the kernel does not say how many there are."""
    for _ in range(-(-_asked_for() // _IN_ONE_PROCESS)):
        _take_in_a_child()


def _allowed() -> int:
    """Return how many inotify instances a user may have; 0 if this kernel does not say."""
    try:
        return int(Path(_INOTIFY_MAX).read_text())
    except OSError:
        return 0


def _asked_for() -> int:
    """Return how many inotify instances one takes: all there are, or a good many."""
    return min(_allowed() or _IN_ALL_MAX, _IN_ALL_MAX)


def take_pipes() -> None:
    """Make pipes until a new one is shorter than it should be: then the user has no buffers left."""
    for _ in range(_PIPES_MAX):
        reading, _writing = os.pipe()  # left open
        if _is_short(reading):
            return
        with contextlib.suppress(OSError):  # too little is left for a large one
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, _LARGE_PIPE_BYTES)


def _is_short(pipe: int) -> bool:
    return fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) < _PIPE_BYTES


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
    if limits:
        attempt("neighbour.limits", denied)
    else:
        report("neighbour.limits", False, "not tried", made=False)
    attempt("neighbour.network", lambda: _connected(address or "127.0.0.1"))
    attempt("neighbour.files", lambda: search.in_files(wanted))
    attempt("neighbour.processes", lambda: _seen(wanted))


def denied() -> str:
    """Return what is not to be had because the other took it.

    Raises:
        Stopped: There is some of everything.
    """
    if _LIBC.inotify_init1(0) < 0:
        return f"{os.strerror(ctypes.get_errno())}: the other took all inotify instances"
    reading, writing = os.pipe()
    is_short = _is_short(reading)
    os.close(reading)
    os.close(writing)
    if is_short:
        return "a pipe is shorter than it should be: the other took all buffers"
    asked = f"{_asked_for()} of {_allowed() or 'uncounted'} instances"
    raise Stopped(f"an inotify instance and a whole pipe are left, after the other asked for {asked} and for every pipe buffer")


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
