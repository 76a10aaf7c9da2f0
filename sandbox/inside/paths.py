"""Where things are in a sandbox, and the environment its tool and check processes begin with; nothing is read here."""

from pathlib import Path
from typing import NamedTuple


class Paths(NamedTuple):
    """The fixed places (DECISIONS D9)."""

    gateway: Path
    workspace: Path
    task: Path
    out: Path
    tmp: Path
    home: Path

    @classmethod
    def below(cls, root: str) -> "Paths":
        """Return the paths of a sandbox whose root is `root`."""
        top = Path(root)
        return cls(top / "gw/gateway.sock", top / "workspace", top / "task", top / "out", top / "tmp", top / "home/agent")


def base_environment(paths: Paths) -> dict[str, str]:
    """Return the environment of tool and check processes, built from empty; the assignment's `tool_env` goes on top."""
    return {
        "PATH": "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(paths.home),
        "TMPDIR": str(paths.tmp),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "PYTHONPYCACHEPREFIX": str(paths.tmp / "pycache"),
    }
