"""Which process of the sandbox holds a TCP connection to us, as the kernel says it; not what it may do (`route`)."""

from pathlib import Path

TABLE = "/proc/net/tcp"
_LOCAL, _REMOTE, _INODE = 1, 2, 9  # columns, see proc(5)


def holds(pid: int, client: tuple[str, int], server: tuple[str, int], table: str = TABLE) -> bool:
    """Return whether the connection from `client` to `server` is open in process `pid`; no, if it cannot be known.

    Args:
        pid: A process of our own uid.
        client: Address and port of the far end.
        server: Address and port of ours.
        table: The kernel's list of connections.
    """
    inode = _inode_of(client, server, table)
    if inode is None:
        return False
    try:
        return any(_link(file) == f"socket:[{inode}]" for file in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _inode_of(client: tuple[str, int], server: tuple[str, int], table: str) -> str | None:
    wanted = (_as_in_table(client), _as_in_table(server))
    try:
        lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        columns = line.split()
        if (columns[_LOCAL], columns[_REMOTE]) == wanted and columns[_INODE] != "0":
            return columns[_INODE]
    return None


def _as_in_table(address: tuple[str, int]) -> str:
    """Return an address as the kernel prints it: hexadecimal, the bytes of the host reversed."""
    host, port = address
    return "".join(f"{int(part):02X}" for part in reversed(host.split("."))) + f":{port:04X}"


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
