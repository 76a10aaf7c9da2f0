"""The file the stack's processes log to, kept below a size while they write; not what they write (`sandbox.log`)."""

import os
import shutil
from pathlib import Path

LOG_BYTES_MAX = 10 << 20
"""Of the file; as much again is kept beside it, as `stack.log.1`."""


def keep_bounded(path: Path) -> bool:
    """Move what is in a log aside if it is too much, over what was put there before; return whether it was.

    The processes hold the file open, in append mode, so it is emptied in place: a line that is written between the copy and the
    end of the old content is lost.
    """
    if not path.exists() or path.stat().st_size <= LOG_BYTES_MAX:
        return False
    aside = path.with_name(f"{path.name}.1")
    with path.open("rb") as source, aside.open("wb") as target:
        os.fchmod(target.fileno(), 0o600)
        shutil.copyfileobj(source, target)
    os.truncate(path, 0)
    return True
