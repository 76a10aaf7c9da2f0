"""Who is at the other end of a unix socket, as the kernel says it; not what they may do (`session`)."""

import socket
import struct
from dataclasses import dataclass
from pathlib import Path

_CREDENTIALS = struct.Struct("3i")
_START_TIME_FIELD = 22  # of /proc/<pid>/stat, see proc(5)


@dataclass(frozen=True)
class Peer:
    """One process; its start time tells it from a later one with the same pid."""

    pid: int
    """0 if the peer's process is not visible from here: another pid namespace, or gVisor."""
    uid: int
    started_ticks: int
    """0 if unknown."""


def peer_of(connection: socket.socket) -> Peer:
    """Return the process that called connect() (SO_PEERCRED).

    Raises:
        OSError: Not a connected unix socket.
    """
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid, _started_ticks(pid))


def _started_ticks(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # The command name, field 2, may hold spaces and parentheses: count from the last one.
    return int(stat.rpartition(")")[2].split()[_START_TIME_FIELD - 3])
